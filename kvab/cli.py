"""The command line: thin; the notebooks call the same functions.

Exit codes: 0 done, 2 wrong usage or input, 3 the cluster or a dependency failed, 4 the validity
gate is red.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from kvab.errors import InputError, KvabError

app = typer.Typer(
    name="kvab",
    help="Does disaggregated, KV-aware routing pay off? Replay the study's configurations on a "
    "cluster, compare them, and build the report. `kvab report` does all of it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # the frames of rich cost a second of start-up
    pretty_exceptions_enable=False,
)
trace_app = typer.Typer(help="Fetch, describe, cut or make up the workload.", no_args_is_help=True)
app.add_typer(trace_app, name="trace")


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


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, allow_nan=False))


def _tell(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _table(rows: list[tuple[str, str]]) -> None:
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        print(f"{label:<{width}}  {value}")


@app.command()
def run(
    configuration: Annotated[str, typer.Option(help="A configuration of the study.")],
    study: StudyOption,
    cluster: ClusterOption = "simulated-h200",
    repeat: Annotated[int, typer.Option(help="Which repeat, from 1.")] = 1,
    rows: RowsOption = None,
    trace: TraceOption = None,
    runs: RunsOption = Path("runs"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the deployment up.")] = False,
) -> None:
    """Replay one configuration on one cluster by executing notebooks/03_replay.ipynb."""
    from kvab.report.notebooks import run_replay_notebook
    from kvab.runs.replay import open_cluster, plan_job
    from kvab.study import load_study, root
    from kvab.trace import find_trace

    workload = find_trace(load_study(study).trace, trace)
    job = plan_job(load_study(study), cluster, configuration, repeat, rows, workload, root() / runs)
    parameters = {
        "study": str(study),
        "cluster": cluster,
        "configuration": configuration,
        "repeat": repeat,
        "rows": rows or 0,
        "trace": str(trace.resolve()) if trace else "",
        "runs": str(root() / runs),
        "keep": keep,
    }
    target = job.path.with_name(f"{job.path.name}.replay.ipynb")
    try:
        notebook = run_replay_notebook(parameters, target)
    except KeyboardInterrupt:  # the notebook's kernel is gone: what it started is stopped here
        if not keep:
            open_cluster(job.cluster, job).teardown()
        raise
    print(f"{job.path}\n{notebook}")


@app.command()
def summarize(
    path: Annotated[Path, typer.Argument(help="A run folder, AIPerf artifacts or an archive.")],
    study: StudyOption,
    as_json: JsonOption = False,
    rows: SentOption = None,
    trace: ReplayedOption = None,
) -> None:
    """Print the metrics of one run: TTFT, ITL, latency, goodput."""
    from kvab.runs.sources import read_source
    from kvab.study import load_study
    from kvab.terminal import summary_lines

    declared = load_study(study)
    source = read_source(path, declared, trace, rows)
    _tell(source.told(declared.slo))
    if as_json:
        _print_json(source.summary(declared.slo))
    else:
        _table(summary_lines(source, declared.slo))


@app.command()
def compare(
    baseline: Annotated[str, typer.Argument(help="As for summarize; several comma-separated.")],
    comparison: Annotated[str, typer.Argument(help="As many of the other arm.")],
    study: StudyOption,
    as_json: JsonOption = False,
    rows: SentOption = None,
    trace: ReplayedOption = None,
) -> None:
    """Compare two configurations request by request; differences are comparison minus baseline."""
    from kvab.compare import compare as compare_tables
    from kvab.runs.sources import comparable, read_source
    from kvab.study import load_study
    from kvab.terminal import comparison_lines

    declared = load_study(study)
    arms = [
        [read_source(Path(name), declared, trace, rows) for name in names.split(",")]
        for names in (baseline, comparison)
    ]
    tables = comparable(arms)
    _tell(line for arm in arms for source in arm for line in source.told(declared.slo))
    result = compare_tables(
        *tables,
        declared.slo,
        margins=declared.margins,
        **declared.statistics.model_dump(),
    )
    if as_json:
        _print_json(result.to_json())
    else:
        _table(comparison_lines(result))


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="AIPerf artifacts: a folder or an archive.")],
    cluster: Annotated[str, typer.Option(help="A profile, or a name for where they ran.")],
    configuration: Annotated[str, typer.Option(help="The configuration that was replayed.")],
    study: StudyOption,
    repeat: Annotated[int, typer.Option(help="Which repeat, from 1.")] = 1,
    rows: SentOption = None,
    trace: ReplayedOption = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Make a run folder of AIPerf's artifacts, so that `kvab report` takes it as its own."""
    from kvab.runs.imports import import_run

    written, told = import_run(path, study, cluster, configuration, repeat, rows, trace, runs)
    _tell(told)
    print(written)


@app.command()
def report(
    study: StudyOption,
    cluster: ClusterOption = "simulated-h200",
    rows: RowsOption = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Only the first N repeats; all by default.")
    ] = None,
    trace: TraceOption = None,
    out: Annotated[Path, typer.Option(help="Where the book is built.")] = Path("book/_build"),
    runs: RunsOption = Path("runs"),
    from_: Annotated[
        Path | None,
        typer.Option("--from", help="Build from these runs, or a bundle of them; replay nothing."),
    ] = None,
    on: OnOption = None,
) -> None:
    """Replay what is missing, analyze it and build the book; ends with the headline."""
    from kvab.report import building

    if from_ and from_.suffix == ".zst":
        headline, index = building.report_bundle(from_, cluster, out)
    else:
        headline, index = building.report(
            study, cluster, rows, repeats, trace, out, runs, from_, on
        )
    print(f"\n{headline}\n{index}")


@app.command()
def capacity(
    study: StudyOption,
    cluster: ClusterOption = "simulated-h200",
    rows: RowsOption = None,
    trace: TraceOption = None,
    runs: RunsOption = Path("runs"),
    on: OnOption = None,
) -> None:
    """Sweep arrival speed and split on a simulated cluster; complete cells are kept."""
    from kvab.capacity.cells import sweep

    print(sweep(study, cluster, rows, trace, runs, on))


@app.command()
def publish(
    study: StudyOption,
    cluster: ClusterOption = "simulated-h200",
    runs: RunsOption = Path("runs"),
    to: Annotated[Path, typer.Option(help="Folder of the published runs.")] = Path(
        "book/published"
    ),
) -> None:
    """Copy the complete runs of a cluster, made small, to book/published."""
    from kvab.report.published import publish as publish_runs

    for path in publish_runs(study, cluster, runs, to):
        print(path)


@app.command()
def bundle(
    paths: Annotated[list[Path], typer.Argument(help="Folders of runs, or single runs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write: X.tar.zst.")],
    study: StudyOption,
    hosts: Annotated[
        bool, typer.Option(help="Keep names of nodes, pods and contexts; left out otherwise.")
    ] = False,
) -> None:
    """Pack runs with all that a book needs of them; `kvab report --from` builds it elsewhere.

    Records, logs and diagnostics stay behind, and names of machines unless asked for.
    """
    from kvab.report.bundle import bundle as pack

    made = pack(study, paths, out, hosts=hosts)
    size_mb = out.stat().st_size / 1e6
    print(f"{out}: {', '.join(made.clusters)}; {len(made.files)} files, {size_mb:.1f} MB")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the new study: recipes/NAME/.")],
    like: StudyOption,
) -> None:
    """Begin a study of your own: copy one that works, and say what to change."""
    from kvab.study.copying import new_study

    print(new_study(name, like))


@app.command()
def check() -> None:
    """Check every study, configuration and cluster profile of recipes/; asks no cluster."""
    from kvab.doctor import check_declarations

    for line in check_declarations():
        print(line)


@app.command()
def doctor(study: StudyOption, cluster: ClusterOption = "simulated-h200") -> None:
    """Say what is missing for a cluster and how to mend it; changes nothing."""
    from kvab.doctor import findings

    found = findings(study, cluster)
    for finding in found:
        print(f"{'ok  ' if finding.ok else 'MEND'}  {finding.what}")
    if not all(finding.ok for finding in found):
        raise typer.Exit(3)


@trace_app.command()
def fetch(
    study: StudyOption,
    to: Annotated[Path | None, typer.Option(help="Where to put it; default: the cache.")] = None,
) -> None:
    """Download the study's trace, checked against its sha256."""
    from kvab.study import load_study
    from kvab.trace import fetch_trace

    print(fetch_trace(load_study(study).trace, to))


@trace_app.command()
def describe(
    trace: Annotated[Path, typer.Argument(help="A Mooncake trace, JSON lines.")],
    as_json: JsonOption = False,
) -> None:
    """Print the figures of the page's setup table, and what it does not say."""
    from kvab.trace import read_trace
    from kvab.trace.describe import describe as description_of
    from kvab.trace.describe import describe_rows

    description = description_of(read_trace(trace))
    if as_json:
        _print_json(description)
    else:
        _table(describe_rows(description))


@trace_app.command("slice")
def slice_(
    trace: Annotated[Path, typer.Argument(help="A Mooncake trace, JSON lines.")],
    out: Annotated[Path, typer.Argument(help="Where to write the part.")],
    rows: Annotated[int | None, typer.Option(help="Only the first N rows.")] = None,
    start_s: Annotated[float | None, typer.Option(help="From this second on.")] = None,
    end_s: Annotated[float | None, typer.Option(help="Before this second.")] = None,
) -> None:
    """Write a part of a trace as a trace of its own."""
    from kvab.trace import read_trace, slice_trace, write_rows

    read = read_trace(trace)
    chosen = slice_trace(read, rows=rows, start_s=start_s, end_s=end_s)
    write_rows(read, chosen, out)
    print(f"{out}: {len(chosen):,} of {len(read):,} rows")


@trace_app.command()
def synthesize(
    out: Annotated[Path, typer.Argument(help="Where to write the made-up trace.")],
    rows: Annotated[int, typer.Option(help="How many requests.")] = 12031,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal traces.")] = 1,
) -> None:
    """Make a SYNTHETIC WORKLOAD with the published marginals, where the trace cannot be had."""
    from kvab.trace.synthesize import write_synthetic

    if out.exists():
        raise InputError(f"{out}: exists already; choose another name")
    print(write_synthetic(out, rows=rows, seed=seed))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; expected failures are one line on stderr and their exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        app(args=arguments, standalone_mode=True)
    except KvabError as error:
        print(f"kvab: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as stop:
        if stop.code == 130:  # typer turns Ctrl-C into this exit and says nothing
            kept = "complete runs are kept, run the same command again"
            print(f"kvab: stopped; {kept}", file=sys.stderr)
        raise
