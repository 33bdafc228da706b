"""The commands on results: of one run, of two arms, brought in, published, packed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvab.cli import options

app = typer.Typer()


@app.command()
def summarize(
    path: Annotated[Path, typer.Argument(help="A run folder, AIPerf artifacts or an archive.")],
    study: options.OwnStudy = None,
    as_json: options.Json = False,
    rows: options.Sent = None,
    trace: options.Replayed = None,
    ttft_ms: options.Ttft = None,
    itl_ms: options.Itl = None,
    token_counts: options.Counts = None,
) -> None:
    """Print the metrics of one run: TTFT, ITL, latency, goodput."""
    from kvab.pages.printed import summary_lines
    from kvab.runs.sources import Hints, read_source, study_of, terms

    declared = study_of([path], study)
    source = read_source(path, Hints(declared, trace, rows, token_counts))
    by = terms([source], declared, study is not None, ttft_ms, itl_ms)
    options.note(source.remarks(by.slo))
    document = source.summary(by.slo) | {"bounds": by.basis}
    options.show(document, summary_lines(source, by.slo, by.basis), as_json)


@app.command()
def compare(
    baseline: Annotated[str, typer.Argument(help="As for summarize; several comma-separated.")],
    comparison: Annotated[str, typer.Argument(help="As many of the other arm.")],
    study: options.OwnStudy = None,
    as_json: options.Json = False,
    rows: options.Sent = None,
    trace: options.Replayed = None,
    ttft_ms: options.Ttft = None,
    itl_ms: options.Itl = None,
    token_counts: options.Counts = None,
) -> None:
    """Compare two configurations request by request. Differences: comparison minus baseline."""
    from kvab.pages.printed import comparison_lines, header_lines
    from kvab.runs import sources
    from kvab.stats.compare import compare as compare_tables
    from kvab.stats.compare import compare_unpaired

    named = [[Path(name) for name in names.split(",")] for names in (baseline, comparison)]
    declared = sources.study_of([path for arm in named for path in arm], study)
    hints = sources.Hints(declared, trace, rows, token_counts)
    arms = [[run for path in arm for run in sources.read_sources(path, hints)] for arm in named]
    tables = sources.comparable(arms)
    runs = [run for arm in arms for run in arm]
    by = sources.terms(runs, declared, study is not None, ttft_ms, itl_ms)
    options.note(line for run in runs for line in run.remarks(by.slo))
    options.note(sources.mixed_counts(runs))
    method = compare_tables if sources.paired(arms) else compare_unpaired
    settings = declared.statistics.model_dump()
    result = method(tables[0], tables[1], by.slo, margins=by.margins, **settings)
    judged = {"slo": by.slo.model_dump(), "bounds": by.basis}
    counts = {"token_counts": [run.token_counts for run in runs]}
    lines = header_lines(arms, declared.statistics.level, by.slo, by.basis)
    options.show(result.to_json() | judged | counts, lines + comparison_lines(result), as_json)


@app.command()
def hardware(
    runs: options.Runs,
    name: Annotated[
        str | None, typer.Argument(help="One scenario of recipes/hardware; all by default.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--from", help="A scenario's folder elsewhere, or a folder of such."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Hold the simulator against published measurements. Simulates what is missing."""
    from kvab.pages.hardware import hardware_lines
    from kvab.runs.hardware import hold
    from kvab.study.hardware import load_scenarios

    held = hold(load_scenarios(name, folder), runs)
    options.show(held.to_json(), hardware_lines(held), as_json)


@app.command()
def advise(
    ttft_ms: Annotated[
        float, typer.Option("--ttft-ms", help="The first token has to come within so many ms.")
    ],
    itl_ms: Annotated[
        float, typer.Option("--itl-ms", help="The next ones within so many ms each, on average.")
    ],
    load: Annotated[
        float,
        typer.Option("--load", help="Arrival speed, in multiples of the trace's: 1 is its own."),
    ],
    study: options.Study,
    runs: options.Runs,
    cluster: options.Cluster = "simulated-h200",
    workload: options.Workload = "",
    as_json: options.Json = False,
) -> None:
    """Say which configuration to take at your bounds and load.

    A request is good if both bounds hold. Of each configuration the share of good requests is
    shown, with its workload interval and GPU-hours; then which keeps the most, by how much, and the
    nearest load and bounds at which another one does.

    Nothing is replayed: the sweep of `kvab capacity` is read, this machine's, else the published
    one. --load is one that was swept. Bounds may be any within the grid of study.yaml; one between
    two of the grid counts as the stricter.

    Example: kvab advise --ttft-ms 1500 --itl-ms 30 --load 0.75
    """
    from kvab.pages.printed import advice_lines
    from kvab.requests.metrics import Bounds
    from kvab.runs.bounds import advise as advice_of
    from kvab.study import load_study

    declared = load_study(study).on(workload)
    advice = advice_of(declared, cluster, runs, Bounds(ttft_ms, itl_ms), load)
    options.note(f"{advice.swept.cluster}: {change}" for change in advice.swept.changes)
    options.show(advice.to_json(), advice_lines(advice), as_json)


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(help="AIPerf artifacts: a folder or an archive.")],
    cluster: Annotated[str, typer.Option(help="A profile, or a name for where they ran.")],
    configuration: options.Configuration,
    study: options.Study,
    runs: options.Runs,
    workload: options.Workload = "",
    repeat: options.Repeat = 1,
    rows: options.Sent = None,
    trace: options.Replayed = None,
    token_counts: options.Counts = None,
) -> None:
    """Make a run folder of AIPerf's artifacts. `kvab report` takes it as its own."""
    from kvab.runs.importing import import_runs
    from kvab.runs.sources import Hints
    from kvab.study import load_study

    hints = Hints(load_study(study).on(workload), trace, rows, token_counts)
    for written, remarks in import_runs(path, hints, cluster, configuration, repeat, runs):
        options.note(remarks)
        print(written)


@app.command()
def publish(
    study: options.Study,
    runs: options.Runs,
    to: options.Published,
    cluster: options.Cluster = "simulated-h200",
    workload: options.Workload = "",
) -> None:
    """Copy a cluster's complete runs to book/published, made small."""
    from kvab.book.publish import publish as publish_runs

    for path in publish_runs(options.on(study, workload), cluster, runs, to):
        print(path)


@app.command()
def bundle(
    paths: Annotated[list[Path], typer.Argument(help="Folders of runs, or single runs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write: X.tar.zst.")],
    study: options.Study,
    workload: options.Workload = "",
    hosts: Annotated[
        bool, typer.Option(help="Keep names of nodes, pods and contexts; left out otherwise.")
    ] = False,
) -> None:
    """Pack runs with all that a book needs. `kvab report --from` builds it elsewhere.

    Records, logs and diagnostics stay behind, and names of machines unless asked for.
    """
    from kvab.book.publish import bundle as pack

    made, left = pack(options.on(study, workload), paths, out, hosts=hosts)
    options.note(left)
    size_mb = out.stat().st_size / 1e6
    print(f"{out}: {', '.join(made.clusters)}; {len(made.files)} files, {size_mb:.1f} MB")
