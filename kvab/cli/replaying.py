"""The commands that replay: one run, a whole report, the capacity sweep, made hours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvab.cli import options

app = typer.Typer()


@app.command()
def run(
    configuration: options.Configuration,
    study: options.Study,
    runs: options.Runs,
    cluster: options.Cluster = "simulated-h200",
    workload: options.Workload = "",
    repeat: options.Repeat = 1,
    rows: options.Rows = None,
    trace: options.Trace = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the deployment up.")] = False,
    take_over: options.TakeOver = False,
) -> None:
    """Replay one configuration on one cluster. Executes notebooks/03_replay.ipynb."""
    from kvab.book.notebooks import execute
    from kvab.clusters.base import run_path
    from kvab.study import load_cluster, load_study, root

    study = options.on(study, workload)
    declared = load_study(study)  # the rest is checked where the run is planned: in the notebook
    declared.configuration_folder(configuration)
    declared.seed(repeat)
    load_cluster(cluster)
    path = run_path(runs, declared, cluster, configuration, repeat)
    parameters = {
        "study": str(study),
        "cluster": cluster,
        "configuration": configuration,
        "repeat": repeat,
        "rows": rows or 0,
        "trace": str(trace.resolve()) if trace else "",
        "runs": str(runs),
        "keep": keep,
        "take_over": take_over,
    }
    try:
        source = root() / "notebooks" / "03_replay.ipynb"
        executed = execute(source, path.with_name(f"{path.name}.replay.ipynb"), parameters)
    except KeyboardInterrupt:  # perhaps between two steps, where nothing tears down
        if not keep:
            from kvab.clusters import open_cluster
            from kvab.runs.replay import plan_job

            job = plan_job(declared, cluster, configuration, repeat, rows, trace, runs)
            open_cluster(job.cluster).start(job).teardown(keep_answers=False)
        raise
    print(f"{path}\n{executed}")


@app.command()
def report(
    study: options.Study,
    out: options.Out,
    runs: options.Runs,
    cluster: options.Reported = None,
    workload: options.Workload = "",
    rows: options.Rows = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Only the first N repeats; all by default.")
    ] = None,
    trace: options.Trace = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            resolve_path=True,
            help="Build from these runs, or a bundle of them; replay nothing.",
        ),
    ] = None,
    on: options.On = None,
    take_over: options.TakeOver = False,
) -> None:
    """Replay what is missing, analyze it and build the book. Ends with the headline."""
    from kvab.book import build

    if from_ and from_.suffix == ".zst":
        headline, index = build.report_bundle(from_, cluster, out)
    else:
        named, name = options.on(study, workload), cluster or "simulated-h200"
        headline, index = build.report(
            named, name, rows, repeats, trace, out, runs, from_, on, take_over
        )
    print(f"\n{headline}\n{index}")


@app.command()
def capacity(
    study: options.Study,
    runs: options.Runs,
    cluster: options.Cluster = "simulated-h200",
    workload: options.Workload = "",
    rows: options.Rows = None,
    trace: options.Trace = None,
    on: options.On = None,
) -> None:
    """Sweep arrival speed and split on a simulated cluster. Complete cells are kept."""
    from kvab.runs.sweep import replay_sweep

    print(replay_sweep(options.on(study, workload), cluster, rows, trace, runs, on))


@app.command()
def resample(
    study: options.Study,
    runs: options.Runs,
    cluster: options.Cluster = "simulated-h200",
    workload: options.Workload = "",
    hours: Annotated[
        int | None, typer.Option(min=3, help="Make N hours; by default as many as declared.")
    ] = None,
    rows: options.Rows = None,
    trace: options.Trace = None,
) -> None:
    """Replay hours that are made of the trace's conversations.

    Each made hour draws as many conversations as the trace has, some twice and some not at all, and
    begins each at another time. Baseline and comparison are replayed on it, on a simulated cluster.
    How the effect differs between made hours says what to expect of another hour. Complete replays
    are kept; `kvab publish` copies the table.
    """
    from kvab.runs.hours import replay_hours
    from kvab.study import load_study

    print(replay_hours(load_study(study).on(workload), cluster, hours, rows, trace, runs))


@app.command()
def sensitivity(
    study: options.Study,
    runs: options.Runs,
    cluster: options.Cluster = "simulated-h200",
    workload: options.Workload = "",
    rows: options.Rows = None,
    trace: options.Trace = None,
    on: options.On = None,
) -> None:
    """Replay what the simulation leaves out at other values. Complete cells are kept."""
    from kvab.runs.sensitivity import replay_sensitivity

    print(replay_sensitivity(options.on(study, workload), cluster, rows, trace, runs, on))
