"""What several commands take, and how they print."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer


def _default_study() -> Path:
    from kvab.study import default_study

    return default_study()


StudyOption = Annotated[
    Path,
    typer.Option(
        default_factory=_default_study,
        show_default="the only one, or the only published one",
        help="The study file, from the checkout.",
    ),
]
ClusterOption = Annotated[str, typer.Option(help="A profile of recipes/clusters/.")]
RowsOption = Annotated[int | None, typer.Option(help="Replay only the first N trace rows.")]
TraceOption = Annotated[
    Path | None, typer.Option("--trace", help="Replay another trace on purpose; pages name it.")
]
SentOption = Annotated[
    int | None, typer.Option("--rows", help="Requests that AIPerf was to send, if it does not say.")
]
ReplayedOption = Annotated[
    Path | None, typer.Option("--trace", help="The trace that AIPerf replayed, if not the study's.")
]
RunsOption = Annotated[Path, typer.Option("--runs", help="The folder of runs.")]
OnOption = Annotated[
    str | None,
    typer.Option(help="A Kubernetes profile to replay on, in one Indexed Job; else this machine."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document only.")]


def print_json(document: Any) -> None:
    """Print one document, and nothing that JSON does not know."""
    print(json.dumps(document, indent=2, allow_nan=False))


def tell(lines: Iterable[str]) -> None:
    """Print lines that are no result, on stderr."""
    for line in lines:
        print(line, file=sys.stderr)


def print_table(rows: list[tuple[str, str]]) -> None:
    """Print labels and values, aligned."""
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        print(f"{label:<{width}}  {value}")
