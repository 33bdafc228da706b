"""The command line: thin; the notebooks call the same functions.

Exit codes: 0 done, 2 wrong usage or input, 3 the cluster or a dependency failed, 4 the validity
gate is red.
"""

from __future__ import annotations

import codecs
import io
import logging
import sys
import unicodedata
from typing import Annotated

import typer

import kvab
from kvab.cli import declarations, replaying, results, traces
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
    said = ""
    for sign in error.object[error.start : error.end]:
        plain = unicodedata.normalize("NFKD", SIGNS.get(sign, sign)).encode("ascii", "ignore")
        said += plain.decode() or "?"
    return said, error.end


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


for part in (replaying, results, declarations):
    app.add_typer(part.app)
app.add_typer(traces.trace_app, name="trace")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; expected failures are one line on stderr and their exit code."""
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
        if not (said := lacking(str(error))):
            raise
        print(f"kvab: {said}", file=sys.stderr)
        sys.exit(DependencyError.exit_code)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        print(f"kvab: cannot write ({error}); {remedy(error)}", file=sys.stderr)
        sys.exit(InputError.exit_code)
    except SystemExit as stop:
        if stop.code == 130:  # typer turns Ctrl-C into this exit and says nothing
            kept = "complete runs are kept, run the same command again"
            print(f"kvab: stopped; {kept}", file=sys.stderr)
        raise
