"""One cell of a campaign: what a pod reads of it, and its replay there.

Input: a small checkout with a file for each index, and the trace. Output: a run folder on the
volume, as a replay on this machine leaves it. A pod of the Job runs
``python -m kvab.runs.cell CHECKOUT TRACE RUNS``.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import yaml

from kvab.clusters.base import Job
from kvab.declarations import Declared
from kvab.errors import InputError, KvabError
from kvab.runs.replay import Replay, plan_job
from kvab.study import load_study
from kvab.study.manifests import DEPLOY, PERF, Object
from kvab.study.variants import Variant
from kvab.trace.reading import read_trace


class Cell(Declared):
    """One replay as a pod reads it, and what its run has to depend on."""

    cluster: str
    configuration: str
    repeat: int
    variant: Variant
    workload: str
    trace: str
    depends_on: Object


def cell_text(job: Job) -> str:
    """Return a job as the pod of its index reads it; two of one text are the same replay."""
    return Cell(
        cluster=job.cluster.name,
        configuration=job.configuration,
        repeat=job.repeat,
        variant=job.variant,
        workload=job.study.workload,
        trace=job.trace.name,
        depends_on=job.depends_on(),
    ).model_dump_json()


def checkout_of(job: Job) -> dict[str, str]:
    """Return what a pod reads of a checkout, by path: the study, its manifests, the profile."""
    study = job.study.on()
    folder = f"recipes/{study.name}"
    declared = {
        f"{folder}/study.yaml": study.model_dump(mode="json", by_alias=True),
        f"recipes/clusters/{job.cluster.name}.yaml": job.cluster.model_dump(mode="json"),
    }
    files = {path: yaml.safe_dump(content) for path, content in declared.items()}
    for name in study.configurations:  # of all, as they are planned against each other
        for file in (DEPLOY, PERF):
            text = (study.configuration_folder(name) / file).read_text(encoding="utf-8")
            files[f"{folder}/{study.configurations[name].path}/{file}"] = text
    return files | {"notebooks/none": "A pod replays without notebooks.\n"}


def replay_cell(cell: Cell, trace: Path, runs: Path) -> Path:
    """Replay a cell and return its run folder; one that is complete is kept.

    Raises
    ------
    InputError
        If the run would depend on something else than was asked for, such as another version of
        the simulator.
    """
    study, asked = load_study().on(cell.workload), cell.depends_on
    workload = read_trace(
        trace, name=cell.trace, block_tokens=study.trace.block_tokens, sha256=asked["trace"]
    )
    job = plan_job(study, cell.cluster, cell.configuration, cell.repeat, asked["rows"],
                   workload, runs, cell.variant)  # fmt: skip
    here = job.depends_on()
    if differing := [key for key in {**asked, **here} if asked.get(key) != here.get(key)]:
        key = differing[0]
        raise InputError(
            f"{job.path}: expected {key} {asked.get(key)}, got {here.get(key)} in this image; "
            "build campaign_image of the versions that this study is replayed with"
        )
    return Replay(job).run()


def main() -> None:
    """Replay the cell of this pod's index; an expected failure is one line and its exit code."""
    # A container's first process ignores what it does not handle: let it end, and clean up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    checkout, trace, runs = map(Path, sys.argv[1:])
    os.environ["KVAB_ROOT"] = str(checkout)
    text = (checkout / "cells" / os.environ["JOB_COMPLETION_INDEX"]).read_bytes()
    try:
        print(replay_cell(Cell.model_validate_json(text), trace, runs))
    except KvabError as error:
        print(f"kvab: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
