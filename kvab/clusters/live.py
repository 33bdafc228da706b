"""The live cluster: Dynamo's frontend, router and mock engines on this machine, under real AIPerf.

Input: a job and a profile. Output: the requests table and AIPerf's artifacts. Requests, tokens,
routing and the load are real; the engines wait as long as measured kernels would and compute
nothing.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from kvab.cache import Lock, cache_folder
from kvab.clusters import simulated, stack
from kvab.clusters.base import (
    Cluster,
    ClusterRun,
    Collected,
    Finding,
    Job,
    Progress,
    installed,
)
from kvab.clusters.stack import Program, Stack, model_config
from kvab.console import Display
from kvab.errors import DependencyError, InputError, KvabError
from kvab.requests import aiperf
from kvab.study import Live, Study
from kvab.trace.reading import write_rows

PACKAGES = ("ai-dynamo", "aiperf", "aisimulate")
AFTER_TRACE_S = 1800.0  # for the last answers, as on the cluster
POLL_S, MEMORY_S = 0.5, 60.0  # between looks at what was answered, and at the memory in use
KEPT = ("profile_export_aiperf.json", "profile_export_aiperf.csv", aiperf.SERVER_METRICS,
        "logs/aiperf.log", aiperf.READY)  # fmt: skip


class LiveCluster(Cluster):
    """The machine at hand, as far as a live run needs it."""

    def __init__(self, profile: Live) -> None:
        self.profile = profile

    def identity(self) -> dict[str, object]:
        """Return hardware and backend, and the versions of the packages that serve and measure."""
        timing = {"hardware", "backend", "kv_transfer_gb_per_s"}
        return {**self.profile.model_dump(include=timing), **installed("live", *PACKAGES)}

    def check(self, study: Study) -> list[Finding]:
        """Return what this machine has and lacks for a live run; starts nothing."""
        found = [*self._software(study.model.name), *stack.machine()]
        if all(finding.ok for finding in found):
            found += simulated.check_times(study, self.profile)  # engines wait for these times
        return found

    def _software(self, model: str) -> Iterator[Finding]:
        lock = machine("a look")
        try:
            identity = self.identity()
            lock.take()
            yield Finding(True, ", ".join(f"{name} {identity[name]}" for name in PACKAGES))
            model_config(model, 1)
            yield Finding(True, f"{model}: sizes known; its tokenizer is made, nothing downloaded")
        except KvabError as error:
            yield Finding(False, str(error))
        finally:
            lock.leave()

    def start(self, job: Job, *, take_over: bool = False) -> LiveRun:
        """Return the run of a job; what an earlier process started is gone with it."""
        return LiveRun(self, job)


def machine(what: str) -> Lock:
    """Return the right to this machine, which one live run has: two would compete for the cores."""
    busy = "another live run is going on here, whose timing and this one's would spoil each other"
    return Lock(cache_folder() / "live.lock", busy, what)


class LiveRun(ClusterRun):
    """One run on this machine, in processes that end with this one."""

    stack: Stack  # from `deploy` on, with the folder that AIPerf writes into
    artifacts: Path

    def __init__(self, cluster: LiveCluster, job: Job) -> None:
        self.cluster, self.job, self.machine = cluster, job, machine(job.configuration)
        self.deployed, self.replayed = False, False
        self.memory_gb: list[float] = []

    def prepare(self) -> dict[str, str]:
        """Take this machine and return the versions in use."""
        versions = installed("live", *PACKAGES)
        self.machine.take()
        return versions

    def deploy(self) -> None:
        """Start frontend and workers and wait until each of them serves."""
        self.stack, self.deployed = Stack(), True
        self.artifacts = self.stack.folder / "artifacts"
        self.stack.serve(self.job.topology, self.cluster.profile)

    def replay(self, on_progress: Progress | None = None) -> None:
        """Send the rows of the job with AIPerf.

        Raises
        ------
        DependencyError
            If AIPerf fails, a worker ends, or the replay takes far longer than its trace.
        """
        job, stack, self.replayed = self.job, self.stack, True
        rows = write_rows(job.trace, job.order(), stack.folder / "trace.jsonl")
        program = stack.start("aiperf", self._aiperf(rows), stack.environment)
        deadline = time.monotonic() + job.span_s + AFTER_TRACE_S
        with Display(f"replay of {job.rows:,} requests over {job.span_s:.0f} s") as display:
            for done in self._progress(program, deadline):
                if on_progress:
                    on_progress(done)
                display.show(f"{done:,} of {job.rows:,} requests done")
        if program.process.returncode:
            raise DependencyError(f"AIPerf ended with {program.process.returncode}: "
                                  f"{program.tail()}")  # fmt: skip
        stack.check(but=program)

    def _aiperf(self, rows: Path) -> list[str]:
        command = self.job.recipe.benchmark.command
        changed = {
            "--url": self.stack.url,
            "--input-file": str(rows),
            "--artifact-dir": str(self.artifacts),
        }
        for option, value in changed.items():
            command[command.index(option) + 1] = value
        return [str(Path(sys.executable).with_name("aiperf")), *command[1:]]

    def _progress(self, program: Program, deadline: float) -> Iterator[int]:
        records, done, at = self.artifacts / aiperf.RECORDS, 0, 0
        measured_at = -math.inf
        while program.process.poll() is None:
            if time.monotonic() > measured_at + MEMORY_S:
                measured_at = time.monotonic()
                self.memory_gb.append(self.stack.memory_gb())
            if time.monotonic() > deadline:
                raise DependencyError(f"the replay did not end in time: {program.tail()}")
            self.stack.check(but=program)
            if records.is_file():
                with records.open("rb") as file:
                    file.seek(at)
                    content = file.read()
                at, done = at + len(content), done + content.count(b"\n")
                yield done
            time.sleep(POLL_S)

    def collect(self) -> Collected:
        """Return the requests table and AIPerf's artifacts, the records compressed."""
        read = aiperf.read_artifacts(self.artifacts)
        if read.partial or read.records is None:
            raise DependencyError("AIPerf's export is not complete; replay it again")
        host: dict[str, object] = {
            "workers_served": stack.workers_served(self.artifacts, list(self.job.topology.groups)),
            "router": aiperf.router_counters(self.artifacts),
            "frontend_ms_per_1k_tokens": stack.frontend_ms_per_1k_tokens(self.artifacts),
            "memory_gb": self.memory_gb,
        }
        return Collected(requests=self.job.requests(read), files=self._kept(), host=host)

    def _kept(self) -> dict[str, bytes]:
        paths = {name: self.artifacts / name for name in KEPT}
        kept = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
        records = self.artifacts / aiperf.RECORDS
        if records.is_file():
            kept[f"{aiperf.RECORDS}.gz"] = gzip.compress(records.read_bytes(), 6, mtime=0)
        return kept

    def diagnostics(self) -> Collected:
        """Return the logs, and what AIPerf has written so far."""
        if not self.deployed:
            return Collected(requests=None)
        files, answered = self.stack.logs(), None
        if self.replayed:
            files |= {f"artifacts/{name}": content for name, content in self._kept().items()}
            with contextlib.suppress(InputError):  # nothing was answered
                answered = self.job.requests(aiperf.read_artifacts(self.artifacts))
        return Collected(requests=answered, files=files)

    def teardown(self, *, keep_answers: bool) -> str:
        """Stop every process and remove their folder; a later start begins anew."""
        if self.deployed:
            self.stack.close()
        self.machine.leave()
        return ""
