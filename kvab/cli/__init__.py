"""The command line, with the commands on what is declared; the notebooks call the same functions.

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
from typing import Annotated

import typer

import kvab
from kvab.cli import options, replaying, results, traces
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
    from kvab.study.new import new_study

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


for part in (replaying, results):
    app.add_typer(part.app)
app.add_typer(traces.trace_app, name="trace")


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
