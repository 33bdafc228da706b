"""All runs of a study: which are missing, and those replayed side by side.

Input: jobs. Output: run folders; a run that serves as it is, is never replayed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rich.progress import TimeRemainingColumn

from kvab.clusters.base import Job, Progress
from kvab.console import counted, progress_bar
from kvab.errors import DependencyError, KvabError
from kvab.runs import folder as runs
from kvab.runs.replay import Replay, plan_job
from kvab.study import Study, load_cluster
from kvab.trace.reading import Trace

Result = TypeVar("Result")
Work = Any  # what is replayed, of ``rows`` requests
OVERHEAD_S = 60.0  # from the last arrival to the last answer, and for the programs to start
_updates: Queue[tuple[int, int]]  # of `side_by_side`: which job has replayed how many requests


class Planned(NamedTuple):
    """A job, whether its run's folder can serve as it is, and why not."""

    job: Job
    state: runs.State
    why: str


def workload(
    study: Study, cluster: str, rows: int | None, repeats: int | None, trace: Path | None,
    on: str | None,
) -> Trace:  # fmt: skip
    """Return the trace that is replayed, found once all else that was asked for is checked."""
    if on:
        load_cluster(on)
    return plan_job(study, cluster, study.baseline, repeats or 1, rows, trace).trace


def plan(jobs: Iterable[Job]) -> list[Planned]:
    """Return which of the runs can serve as they are; a run set aside that serves comes back."""
    return [Planned(job, *runs.find_state(job.path, job.depends_on())) for job in jobs]


def replay_study(
    study: Study, cluster: str, rows: int | None, repeats: int | None, trace: Path | None,
    folder: Path, on: str | None = None, take_over: bool = False,
) -> Path:  # fmt: skip
    """Replay every run of the study that does not serve as it is; return where the trace is."""
    replayed = workload(study, cluster, rows, repeats, trace, on)
    runs.save_workload(replayed, folder / study.name)
    planned = plan(
        plan_job(study, cluster, name, repeat, rows, replayed, folder)
        for name in study.configurations
        for repeat in range(1, (repeats or study.repeats) + 1)
    )
    for job, state, why in planned:
        print(f"{job.configuration} r{job.repeat}: {state} ({why})", file=sys.stderr)
    missing = [job for job, state, _ in planned if state != "complete"]
    replay_all(missing, on=on, take_over=take_over)
    return replayed.path


def replay_all(jobs: list[Job], *, on: str | None = None, take_over: bool = False) -> None:
    """Replay jobs side by side, one a core, under one progress bar in requests.

    Only the simulator runs side by side: for other kinds see `replay_in_turn`. ``on`` names a
    Kubernetes profile that does it instead of this machine; ``take_over`` takes runs on Kubernetes
    from clients that are alive.

    Raises
    ------
    DependencyError
        If a replay's process died; the runs that ended before are kept.
    """
    if not jobs:
        return
    if on:
        from kvab.runs.remote import replay_on

        replay_on(jobs, on)
        return
    if jobs[0].cluster.kind != "simulated":
        replay_in_turn(jobs, take_over)
        return
    side_by_side(jobs, _replay_run)


def side_by_side(jobs: Sequence[Work], replay: Callable[[Work, Progress], Result]) -> list[Result]:
    """Return what the replays of jobs, which have ``rows``, return: one a core, under one bar.

    Raises
    ------
    DependencyError
        If a process died.
    """
    global _updates
    # Forked, so that no replay waits for imports; before the progress bar starts its thread.
    context = multiprocessing.get_context("fork")
    _updates = context.Queue()
    pool = ProcessPoolExecutor(min(len(jobs), len(os.sched_getaffinity(0))), context)
    try:
        pending = [pool.submit(_carry_out, replay, n, job) for n, job in enumerate(jobs)]
        return _follow(jobs, pending)
    except BrokenProcessPool:
        raise DependencyError(
            "a replay's process died (out of memory?); run the same command again: "
            "complete runs are kept"
        ) from None
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _follow(jobs: Sequence[Work], pending: list[Future[Result]]) -> list[Result]:
    """Show how many requests are done until every replay has ended; return what each returned."""
    with progress_bar("requests, left", TimeRemainingColumn()) as bar:
        total = bar.add_task(counted(len(jobs), "replay"), total=sum(job.rows for job in jobs))
        done = dict.fromkeys(range(len(jobs)), 0)
        while not all(future.done() for future in pending):
            with contextlib.suppress(queue.Empty):
                n, count = _updates.get(timeout=0.2)
                done[n] = max(done[n], count)
                bar.update(total, completed=sum(done.values()))
        results = [future.result() for future in pending]
        bar.update(total, completed=sum(job.rows for job in jobs))
        return results


def replay_in_turn(jobs: list[Job], take_over: bool = False) -> None:
    """Replay jobs one after the other, a repeat of every configuration before the next repeat.

    Each is deployed anew, so that its caches are cold; neighbours in time share what drifts on
    the cluster. One that fails does not keep the others from running.

    Raises
    ------
    KvabError
        At the end, if any failed: how many, and why the first did; of the first one's kind.
    """
    failed: list[KvabError] = []
    minutes = sum(job.span_s + OVERHEAD_S for job in jobs) / 60
    print(
        f"{counted(len(jobs), 'replay')} one after the other, in the trace's own time: about "
        f"{minutes:.0f} minutes, and what the cluster takes to deploy; complete runs are kept when "
        "stopped",
        file=sys.stderr,
    )
    for job in sorted(jobs, key=lambda job: job.repeat):
        name = f"{job.configuration} r{job.repeat}"
        print(f"{name}:", file=sys.stderr)
        try:
            Replay(job, take_over=take_over).run()
        except KvabError as error:
            failed.append(type(error)(f"{name}: {error}"))
            print(failed[-1], file=sys.stderr)
    if failed:
        first = failed[0]
        raise type(first)(f"{len(failed)} of {counted(len(jobs), 'replay')} failed; first: {first}")


def _carry_out(replay: Callable[[Work, Progress], Result], n: int, job: Work) -> Result:
    result = replay(job, lambda done: _updates.put((n, done)))
    _updates.put((n, job.rows))
    return result


def _replay_run(job: Job, on_progress: Progress) -> None:
    Replay(job).run(on_progress)
