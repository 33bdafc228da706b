"""The commands on results: of one run, of two arms, brought in, published, packed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvab.cli.options import (
    ClusterOption,
    JsonOption,
    ReplayedOption,
    RunsOption,
    SentOption,
    StudyOption,
    print_json,
    print_table,
    tell,
)

app = typer.Typer()


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
    tell(source.told(declared.slo))
    if as_json:
        print_json(source.summary(declared.slo))
    else:
        print_table(summary_lines(source, declared.slo))


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
    first, second = comparable(arms)
    tell(line for arm in arms for source in arm for line in source.told(declared.slo))
    result = compare_tables(
        first,
        second,
        declared.slo,
        margins=declared.margins,
        **declared.statistics.model_dump(),
    )
    if as_json:
        print_json(result.to_json())
    else:
        print_table(comparison_lines(result))


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
    tell(told)
    print(written)


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
