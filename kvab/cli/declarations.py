"""The commands on what is declared: a new study, a check, what a cluster lacks."""

from __future__ import annotations

from typing import Annotated

import typer

from kvab.cli.options import ClusterOption, StudyOption

app = typer.Typer()


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the new study: recipes/NAME/.")],
    like: StudyOption,
    profile: Annotated[
        str, typer.Option(help="The cluster profile to copy with it.")
    ] = "simulated-h200",
) -> None:
    """Begin a study of your own: copy one that works. Says what to change."""
    from kvab.study.copying import new_study

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
def doctor(study: StudyOption, cluster: ClusterOption = "simulated-h200") -> None:
    """Say what is missing for a cluster and how to fix it. Changes nothing."""
    from kvab.cli.doctor import findings

    found = findings(study, cluster)
    for finding in found:
        print(f"{'ok  ' if finding.ok else 'FIX '}  {finding.what}")
    if not all(finding.ok for finding in found):
        raise typer.Exit(3)
