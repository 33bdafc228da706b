"""One cell of a campaign: what a pod is told of it, and its replay there.

Input: the campaign's file, the trace on the shared volume and an index. Output: a run folder on the
volume, as a replay on this machine leaves it. A pod of the Job runs
``python -m kvab.runs.cell CAMPAIGN TRACE RUNS``.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from kvab.declare import Declared
from kvab.errors import InputError, KvabError
from kvab.job import Job
from kvab.recipes.manifests import DEPLOY, PERF
from kvab.runs.jobs import plan_job
from kvab.runs.replay import Replay
from kvab.study import Study, load_study
from kvab.study.sweep import Variant
from kvab.trace import read_trace


class Cell(Declared):
    """One replay: its folder below that of runs, and what its run has to depend on."""

    place: str
    configuration: str
    repeat: int
    rows: int
    variant: Variant
    depends_on: dict[str, Any]


class Campaign(Declared):
    """What is sent: the study's files by their path in a checkout, and the cells by index."""

    study: str
    cluster: str
    trace: str
    trace_sha256: str
    block_tokens: int
    files: dict[str, str]
    cells: list[Cell]


def cell_of(job: Job) -> Cell:
    """Return a job as a pod is told of it."""
    return Cell(
        place=job.path.relative_to(job.runs).as_posix(),
        configuration=job.configuration,
        repeat=job.repeat,
        rows=job.rows,
        variant=job.variant,
        depends_on=job.depends_on(),
    )


def campaign_of(jobs: list[Job]) -> Campaign:
    """Return jobs of one study, cluster and trace as one campaign."""
    first = jobs[0]
    study, folder = first.study, f"recipes/{first.study.name}"
    declared = {
        f"{folder}/study.yaml": study.model_dump(mode="json", by_alias=True),
        f"recipes/clusters/{first.cluster.name}.yaml": first.cluster.model_dump(mode="json"),
    }
    files = {name: yaml.safe_dump(content) for name, content in declared.items()}
    for name in study.configurations:  # of all, as they are planned against each other
        for file in (DEPLOY, PERF):
            text = (study.configuration_folder(name) / file).read_text(encoding="utf-8")
            files[f"{folder}/{study.configurations[name].path}/{file}"] = text
    return Campaign(
        study=study.name,
        cluster=first.cluster.name,
        trace=first.trace.name,
        trace_sha256=first.trace.sha256,
        block_tokens=first.trace.block_tokens,
        files=files,
        cells=[cell_of(job) for job in jobs],
    )


def empty_campaign(study: Study) -> Campaign:
    """Return a campaign of a study without cells, to ask a cluster whether it would take one."""
    trace = study.trace
    return Campaign(
        study=study.name, cluster="", trace=trace.name, trace_sha256=trace.sha256,
        block_tokens=trace.block_tokens, files={}, cells=[],
    )  # fmt: skip


def replay_cell(campaign: Campaign, index: int, trace: Path, runs: Path) -> Path:
    """Replay a cell of the campaign and return its run folder; one that is complete is kept.

    Raises
    ------
    InputError
        If the run would depend on something else than was asked for, such as another version of
        the simulator.
    """
    cell = campaign.cells[index]
    with tempfile.TemporaryDirectory(prefix="kvab-") as checkout:
        Path(checkout, "notebooks").mkdir()
        for name, text in campaign.files.items():
            path = Path(checkout, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        os.environ["KVAB_ROOT"] = checkout
        workload = read_trace(
            trace,
            name=campaign.trace,
            block_tokens=campaign.block_tokens,
            sha256=campaign.trace_sha256,
        )
        study = load_study(f"recipes/{campaign.study}/study.yaml")
        job = plan_job(
            study, campaign.cluster, cell.configuration, cell.repeat, cell.rows, workload, runs,
            cell.variant,
        )  # fmt: skip
        _check(cell, job.depends_on())
        replay = Replay(job)
        replay.prepare()
        replay.deploy()
        replay.replay()
        path = replay.collect()
        replay.teardown()
        return path


def _check(cell: Cell, here: dict[str, Any]) -> None:
    asked = cell.depends_on
    for key in {**asked, **here}:
        if asked.get(key) != here.get(key):
            raise InputError(
                f"{cell.place}: expected {key} {asked.get(key)}, got {here.get(key)} in this "
                "image; build campaign_image of the versions that this study is replayed with"
            )


def main() -> None:
    """Replay the cell of this pod's index; an expected failure is one line and its exit code."""
    # A container's first process ignores what it does not handle: let it end, and clean up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sent, trace, runs = map(Path, sys.argv[1:])
    campaign = Campaign.model_validate_json(sent.read_bytes())
    try:
        print(replay_cell(campaign, int(os.environ["JOB_COMPLETION_INDEX"]), trace, runs))
    except KvabError as error:
        print(f"kvab: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
