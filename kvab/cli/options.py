"""What several commands take, and how they print."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer


def _place(name: str, text: str, shown: str = "{} of the checkout") -> object:
    """Return an option for a place in the checkout; a named one counts from the working folder."""

    def default() -> Path:
        from kvab.study import default_study, root

        return root() / name if name else default_study()

    shown = shown.format(name)
    return typer.Option(default_factory=default, resolve_path=True, show_default=shown, help=text)


ONLY = "the checkout's only one, or the only published one"
Study = Annotated[Path, _place("", "The study file.", ONLY)]
Workload = Annotated[str, typer.Option(show_default="its first", help="A workload of the study.")]
OwnStudy = Annotated[
    Path | None,
    typer.Option(
        "--study",
        resolve_path=True,
        show_default="the runs' own, else the checkout's, else the one packed with kvab",
        help="The study file.",
    ),
]
Cluster = Annotated[str, typer.Option(help="A profile of recipes/clusters/.")]
Reported = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        show_default="simulated-h200; of a bundle its only one",
        help="A profile of recipes/clusters/, or the name of imported runs.",
    ),
]
Configuration = Annotated[str, typer.Option(help="A configuration of the study.")]
Repeat = Annotated[int, typer.Option(help="Which repeat, from 1.")]
Rows = Annotated[int | None, typer.Option(help="Replay only the first N trace rows.")]
Trace = Annotated[
    Path | None, typer.Option("--trace", help="Replay another trace on purpose; pages name it.")
]
Sent = Annotated[
    int | None, typer.Option("--rows", help="Requests that AIPerf was to send, if it does not say.")
]
Replayed = Annotated[
    Path | None, typer.Option("--trace", help="The trace that AIPerf replayed, if not the study's.")
]
Runs = Annotated[Path, _place("runs", "The folder of runs.")]
Published = Annotated[Path, _place("book/published", "Folder of the published runs.")]
Out = Annotated[Path, _place("book/_build", "Where the book is built.")]
Counts = Annotated[
    Literal["server", "client"] | None,
    typer.Option(
        "--token-counts", help="Whose token counts; by default the server's where it gives any."
    ),
]
Ttft = Annotated[
    float | None, typer.Option("--ttft-ms", help="Judge by this TTFT instead of the run's own.")
]
Itl = Annotated[
    float | None, typer.Option("--itl-ms", help="Judge by this ITL instead of the run's own.")
]
On = Annotated[
    str | None,
    typer.Option(help="A Kubernetes profile to replay on, in one Indexed Job; else this machine."),
]
TakeOver = Annotated[
    bool,
    typer.Option("--take-over", help="On Kubernetes: take runs from clients that are alive."),
]
TraceFile = Annotated[Path, typer.Argument(help="A Mooncake trace, JSON lines.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document only.")]


def on(study: Path, workload: str) -> Path:
    """Return how the study of a workload is named: its file, and the workload if not the first."""
    from kvab.study import FRAGMENT

    return Path(f"{study}{FRAGMENT}{workload}") if workload else study


def note(lines: Iterable[str]) -> None:
    """Print lines that are no result, on stderr."""
    for line in lines:
        print(line, file=sys.stderr)


def show(document: object, lines: list[tuple[str, str]], as_json: bool) -> None:
    """Print one document, with nothing that JSON does not know, or labels and values, aligned."""
    if as_json:
        print(json.dumps(document, indent=2, allow_nan=False))
        return
    width = max(len(label) for label, _ in lines)
    for label, value in lines:
        print(f"{label:<{width}}  {value}")
