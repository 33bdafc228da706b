"""The command line, with the commands on declarations and traces; the notebooks call the same code.

Exit codes: 0 done, 2 wrong usage or input, 3 the cluster or a dependency failed, 4 the validity
gate is red.
"""

from __future__ import annotations

import codecs
import gc
import io
import logging
import sys
import unicodedata
from pathlib import Path
from typing import Annotated

import typer

import kvab
from kvab.cli import options, replaying, results
from kvab.errors import UNWRITABLE, DependencyError, InputError, KvabError, lacking, remedy

app = typer.Typer(
    name="kvab",
    help="Does disaggregated, KV-aware routing pay off? Replay the study's configurations on a "
    "cluster, compare them, and build the report. `kvab report` does all of it.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # the frames of rich cost a second of start-up
    pretty_exceptions_enable=False,
)


SIMPLER = "kvab.simpler"  # what stands for a character that a terminal's encoding lacks
SIGNS = {"\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{PLUS-MINUS SIGN}": "+-",
         "\N{MULTIPLICATION SIGN}": "x", "\N{RIGHTWARDS ARROW}": "->"}  # fmt: skip


def _simpler(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = ""
    for sign in error.object[error.start : error.end]:
        plain = unicodedata.normalize("NFKD", SIGNS.get(sign, sign)).encode("ascii", "ignore")
        text += plain.decode() or "?"
    return text, error.end


codecs.register_error(SIMPLER, _simpler)


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"kvab {kvab.__version__}")
        raise typer.Exit


@app.callback()
def _itself(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Say which this is."),
    ] = False,
) -> None:
    pass


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the new study: recipes/NAME/.")],
    like: options.Study,
    profile: Annotated[
        str, typer.Option(help="The cluster profile to copy with it.")
    ] = "simulated-h200",
) -> None:
    """Begin a study of your own: copy one that works. Says what to change."""
    from kvab.study import new_study

    print(new_study(name, like, profile))


@app.command()
def check(
    fix: Annotated[
        bool, typer.Option("--fix", help="Write deploy.v1beta1.yaml anew from deploy.yaml.")
    ] = False,
) -> None:
    """Check all studies, configurations and cluster profiles. Asks no cluster."""
    from kvab.cli.doctor import check_declarations

    for line in check_declarations(fix=fix):
        print(line)


@app.command()
def doctor(
    study: options.Study,
    cluster: options.Cluster = "simulated-h200",
    workload: options.Workload = "",
) -> None:
    """Say what is missing for a cluster and how to fix it. Changes nothing."""
    from kvab.cli.doctor import findings

    seen = list(findings(options.on(study, workload), cluster))
    for finding in seen:
        print(f"{'ok  ' if finding.ok else 'FIX '}  {finding.what}")
    if not all(finding.ok for finding in seen):
        raise typer.Exit(3)


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
    from kvab.trace import reading

    description = reading.describe(reading.read_trace(trace, block_tokens=block_tokens))
    options.show(description, reading.describe_rows(description), as_json)


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


for part in (replaying, results):
    app.add_typer(part.app)
app.add_typer(trace_app, name="trace")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; expected failures are one line on stderr and their exit code."""
    gc.set_threshold(100_000)  # imports make many objects and leave next to none to collect
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=SIMPLER)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    try:
        app(args=arguments, standalone_mode=True)
    except KvabError as error:
        print(f"kvab: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        if not (message := lacking(str(error))):
            raise
        print(f"kvab: {message}", file=sys.stderr)
        sys.exit(DependencyError.exit_code)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        print(f"kvab: cannot write ({error}); {remedy(error)}", file=sys.stderr)
        sys.exit(InputError.exit_code)
    except SystemExit as stop:
        if stop.code == 130:  # typer turns Ctrl-C into this exit and says nothing
            print("kvab: stopped; complete runs are kept, run the same command again",
                  file=sys.stderr)  # fmt: skip
        raise
    finally:
        gc.freeze()  # what is collected at the end of the interpreter would be looked for in vain
