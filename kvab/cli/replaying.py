"""The commands that replay: one run, a whole report, the capacity sweep."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from kvab.cli.options import (
    ClusterOption,
    OnOption,
    OutOption,
    ReportedOption,
    RowsOption,
    RunsOption,
    StudyOption,
    TakeOverOption,
    TraceOption,
)

app = typer.Typer()


@app.command()
def run(
    configuration: Annotated[str, typer.Option(help="A configuration of the study.")],
    study: StudyOption,
    runs: RunsOption,
    cluster: ClusterOption = "simulated-h200",
    repeat: Annotated[int, typer.Option(help="Which repeat, from 1.")] = 1,
    rows: RowsOption = None,
    trace: TraceOption = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the deployment up.")] = False,
    take_over: TakeOverOption = False,
) -> None:
    """Replay one configuration on one cluster. Executes notebooks/03_replay.ipynb."""
    from kvab.book.notebooks import run_replay_notebook
    from kvab.clusters import open_cluster
    from kvab.runs.jobs import plan_job
    from kvab.study import load_study

    job = plan_job(load_study(study), cluster, configuration, repeat, rows, trace, runs)
    parameters = {
        "study": str(study),
        "cluster": cluster,
        "configuration": configuration,
        "repeat": repeat,
        "rows": rows or 0,
        "trace": str(job.trace.path.resolve()),  # found once: the kernel does not look for it
        "runs": str(runs),
        "keep": keep,
        "take_over": take_over,
    }
    target = job.path.with_name(f"{job.path.name}.replay.ipynb")
    try:
        notebook = run_replay_notebook(parameters, target)
    except KeyboardInterrupt:  # the notebook's kernel is gone: what it started is stopped here
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # nbclient's tasks miss the kernel
        if not keep:
            open_cluster(job.cluster).start(job).teardown(keep_answers=False)
        raise
    print(f"{job.path}\n{notebook}")


@app.command()
def report(
    study: StudyOption,
    out: OutOption,
    runs: RunsOption,
    cluster: ReportedOption = None,
    rows: RowsOption = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Only the first N repeats; all by default.")
    ] = None,
    trace: TraceOption = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            resolve_path=True,
            help="Build from these runs, or a bundle of them; replay nothing.",
        ),
    ] = None,
    on: OnOption = None,
    take_over: TakeOverOption = False,
) -> None:
    """Replay what is missing, analyze it and build the book. Ends with the headline."""
    from kvab.book import building

    if from_ and from_.suffix == ".zst":
        headline, index = building.report_bundle(from_, cluster, out)
    else:
        headline, index = building.report(
            study,
            cluster or "simulated-h200",
            rows,
            repeats,
            trace,
            out,
            runs,
            from_,
            on,
            take_over,
        )
    print(f"\n{headline}\n{index}")


@app.command()
def capacity(
    study: StudyOption,
    runs: RunsOption,
    cluster: ClusterOption = "simulated-h200",
    rows: RowsOption = None,
    trace: TraceOption = None,
    on: OnOption = None,
) -> None:
    """Sweep arrival speed and split on a simulated cluster. Complete cells are kept."""
    from kvab.runs.capacity.cells import sweep

    print(sweep(study, cluster, rows, trace, runs, on))
