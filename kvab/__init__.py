"""The study of disaggregated, KV-aware routing: its cluster, metric and page helpers.

The public face, for notebooks and scripts of one's own: `load_study`, `read_trace`, `read_run`,
`read_source` (a run, AIPerf's artifacts or an archive of them), `load_evidence`, and `KvabError`,
which every expected failure is. Each is loaded when it is first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_ROOMS = {
    "KvabError": "errors",
    "load_evidence": "evidence",
    "load_study": "study",
    "read_run": "runs",
    "read_source": "runs.sources",
    "read_trace": "trace",
}
__all__ = ["__version__", *_ROOMS]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module kvab has no attribute {name}")
    return getattr(import_module(f"kvab.{_ROOMS[name]}"), name)
