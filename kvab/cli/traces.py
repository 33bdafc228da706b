"""``kvab trace``: the workload."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvab.cli import options

BlockOption = Annotated[
    int, typer.Option("--block-tokens", help="Prompt tokens that a hash id stands for.", min=1)
]
trace_app = typer.Typer(help="Fetch, describe, cut or generate a workload.", no_args_is_help=True)


@trace_app.command()
def fetch(
    study: options.Study,
    workload: options.Workload = "",
    to: Annotated[Path | None, typer.Option(help="Where to put it; default: the cache.")] = None,
) -> None:
    """Download a workload's trace and check its sha256."""
    from kvab.study import load_study
    from kvab.trace.finding import fetch_trace

    print(fetch_trace(load_study(study).on(workload).trace, to))


@trace_app.command()
def describe(
    trace: options.TraceFile,
    as_json: options.Json = False,
    block_tokens: BlockOption = 512,
) -> None:
    """Print the figures of a trace, and what it does not say."""
    from kvab.trace.describe import describe as description_of
    from kvab.trace.describe import describe_rows
    from kvab.trace.reading import read_trace

    description = description_of(read_trace(trace, block_tokens=block_tokens))
    if as_json:
        options.print_json(description)
    else:
        options.print_table(describe_rows(description))


@trace_app.command("slice")
def slice_(
    trace: options.TraceFile,
    out: Annotated[Path, typer.Argument(help="Where to write the part.")],
    rows: Annotated[int | None, typer.Option(help="Only the first N rows.")] = None,
    start_s: Annotated[float | None, typer.Option(help="From this second on.")] = None,
    end_s: Annotated[float | None, typer.Option(help="Before this second.")] = None,
    block_tokens: BlockOption = 512,
) -> None:
    """Write a part of a trace as a trace of its own."""
    from kvab.trace.reading import read_trace, slice_trace, write_rows

    read = read_trace(trace, block_tokens=block_tokens)
    chosen = slice_trace(read, rows=rows, start_s=start_s, end_s=end_s)
    write_rows(read, chosen, out)
    print(f"{out}: {len(chosen):,} of {len(read):,} rows")


@trace_app.command()
def synthesize(
    out: Annotated[Path, typer.Argument(help="Where to write the generated trace.")],
    rows: Annotated[int, typer.Option(help="How many requests.")] = 12031,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal traces.")] = 1,
) -> None:
    """Generate a trace with the published marginals.

    Whatever is replayed of it says GENERATED WORKLOAD.
    """
    from kvab.trace.synthesize import write_generated

    print(write_generated(out, rows=rows, seed=seed))
