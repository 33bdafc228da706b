"""The live cluster: Dynamo's frontend, router and mock engines on this machine, under real AIPerf.

Input: a topology read from ``deploy.yaml``, the AIPerf command of ``perf.yaml`` and a trace.
Output: the requests table and AIPerf's artifacts. Requests, tokens, routing and the load are real;
the engines wait as long as measured kernels would and compute nothing.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.metadata
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from kvab.cache import cache_folder
from kvab.clusters.live import stack
from kvab.clusters.live.model_files import model_config, write_model
from kvab.clusters.live.processes import Program, Programs, free_port
from kvab.console import Display
from kvab.errors import DependencyError, InputError, KvabError
from kvab.requests import aiperf
from kvab.requests.matching import from_aiperf
from kvab.requests.table import without_cached
from kvab.study import Live, recipes
from kvab.study.recipes import Topology
from kvab.trace import Trace, write_rows

PACKAGES = ("ai-dynamo", "aiperf", "aisimulate")
READY_S = 180.0
AFTER_TRACE_S = 1800.0  # for the last answers, as on the cluster
POLL_S = 0.5
KEPT = ("profile_export_aiperf.json", "profile_export_aiperf.csv", stack.METRICS,
        "logs/aiperf.log", aiperf.READY)  # fmt: skip


class LiveStack:
    """A live cluster; its five steps are those of every kind of cluster."""

    def __init__(self, profile: Live, configuration: recipes.Configuration | None = None) -> None:
        self.profile, self.configuration, self.replayed = profile, configuration, False
        self._programs: Programs | None = None
        self.provenance: dict[str, object] = {}
        self._lock = FileLock(cache_folder() / "live.lock", blocking=False)
        self._holder = cache_folder() / "live.holder"

    @property
    def programs(self) -> Programs:
        """What runs; there from `deploy` to `teardown`."""
        assert self._programs is not None
        return self._programs

    def identity(self) -> dict[str, str]:
        """Return what a result depends on beside the manifests and the trace.

        Raises
        ------
        DependencyError
            If a package is not installed.
        """
        try:
            versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        except importlib.metadata.PackageNotFoundError as error:
            raise DependencyError(
                f"the package {error.name} is not installed; run `make env`, or install kvab "
                "with its extra `live`"
            ) from None
        return {"hardware": self.profile.hardware, "backend": self.profile.backend, **versions}

    def prepare(self) -> dict[str, str]:
        """Take this machine for one run and return the versions in use.

        Raises
        ------
        DependencyError
            If another live run is going on, naming it: two would compete for the cores.
        """
        identity = self.identity()
        cache_folder().mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise DependencyError(
                f"another live run is going on here ({self._who()}); its timing and this one's "
                "would spoil each other: wait for it to end"
            ) from None
        what = self.configuration.name if self.configuration else "a look"
        since = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
        self._holder.write_text(f"process {os.getpid()}, {what}, since {since}", encoding="utf-8")
        return {name: identity[name] for name in PACKAGES}

    def _who(self) -> str:
        with contextlib.suppress(OSError):
            return self._holder.read_text(encoding="utf-8")
        return self._lock.lock_file

    def findings(self, model: str) -> list[tuple[bool, str]]:
        """Return what this machine has and lacks for a live run; starts nothing."""
        found = []
        try:
            versions = self.prepare()
            found.append((True, ", ".join(f"{name} {versions[name]}" for name in versions)))
            model_config(model, 1)
            found.append((True, f"{model}: sizes known; its tokenizer is made, nothing downloaded"))
        except KvabError as error:
            found.append((False, str(error)))
        finally:
            self.teardown()
        return [*found, *stack.machine()]

    def deploy(self, topology: Topology) -> None:
        """Start frontend and workers and wait until each of them serves.

        Raises
        ------
        DependencyError
            If one ends, or they do not serve in time; the last lines of the log are in the text.
        """
        self._programs, self.port, self.topology = Programs(), free_port(), topology
        folder = self.programs.folder
        first = next(iter(topology.groups.values()))
        write_model(folder / "hub", first.model, first.context_length)
        self.environment = stack.environment(folder)
        for name, command in stack.commands(topology, self.profile, self.port).items():
            self._start(name, command)
        self._wait_until_ready(topology)

    def _start(self, name: str, command: list[str]) -> Program:
        return self.programs.start(name, command, self.environment)

    def _wait_until_ready(self, topology: Topology) -> None:
        deadline, why = time.monotonic() + READY_S, "nothing answers"
        with httpx.Client(base_url=f"http://{stack.LOOPBACK}:{self.port}", timeout=30) as client:
            while time.monotonic() < deadline:
                self.programs.check()
                try:
                    why = stack.missing(client, topology)
                except (httpx.HTTPError, ValueError, LookupError) as error:
                    why = f"{type(error).__name__}: {error}"
                if not why:
                    return
                time.sleep(POLL_S)
        tails = " | ".join(f"{each.name}: {each.tail(2)}" for each in self.programs.started)
        raise DependencyError(f"not ready within {READY_S:.0f} s ({why}); {tails}")

    def replay(
        self, trace: Trace, order: np.ndarray, progress: Callable[[int], None] | None = None
    ) -> None:
        """Send the rows of ``order`` with AIPerf; ``progress`` gets the requests done so far.

        Raises
        ------
        DependencyError
            If AIPerf fails, a worker ends, or the replay takes far longer than its trace.
        """
        folder = self.programs.folder
        self.trace, self.order = trace, order
        self.artifacts, self.replayed = folder / "artifacts", True
        replayed = folder / "trace.jsonl"
        write_rows(trace, order, replayed)
        program = self._start("aiperf", self._aiperf(replayed))
        span_s = float(trace.arrival_ms[order].max()) / 1000
        deadline = time.monotonic() + span_s + AFTER_TRACE_S
        with Display(f"replay of {len(order):,} requests over {span_s:.0f} s") as display:
            for done in self._progress(program, deadline):
                (progress or (lambda _: None))(done)
                display.show(f"{done:,} of {len(order):,} requests done")
        if program.process.returncode:
            raise DependencyError(f"AIPerf ended with {program.process.returncode}: "
                                  f"{program.tail()}")  # fmt: skip
        self.programs.check(but=program)

    def _aiperf(self, replayed: Path) -> list[str]:
        assert self.configuration is not None  # only `doctor` looks without one
        command = recipes.aiperf_command(self.configuration)
        changed = {
            "--url": f"http://{stack.LOOPBACK}:{self.port}",
            "--input-file": str(replayed),
            "--artifact-dir": str(self.artifacts),
        }
        for option, value in changed.items():
            command[command.index(option) + 1] = value
        return [str(Path(sys.executable).with_name("aiperf")), *command[1:]]

    def _progress(self, program: Program, deadline: float) -> Iterator[int]:
        records, done, at = self.artifacts / aiperf.RECORDS, 0, 0
        while program.process.poll() is None:
            if time.monotonic() > deadline:
                raise DependencyError(f"the replay did not end in time: {program.tail()}")
            self.programs.check(but=program)
            if records.is_file():
                with records.open("rb") as file:
                    file.seek(at)
                    content = file.read()
                at, done = at + len(content), done + content.count(b"\n")
                yield done
            time.sleep(POLL_S)

    def collect(self) -> tuple[pd.DataFrame, dict[str, bytes]]:
        """Return the requests table and the artifacts by file name, the records compressed."""
        read = aiperf.read_artifacts(self.artifacts)
        if not read.whole or read.records is None:
            raise DependencyError("AIPerf's export is not complete; replay it again")
        self.provenance = {
            "workers_served": stack.workers_served(self.artifacts, list(self.topology.groups)),
            "router": aiperf.router_counters(self.artifacts),
        }
        return self._requests(read), self._kept()

    def _requests(self, read: aiperf.Artifacts) -> pd.DataFrame:
        requests = from_aiperf(read, self.trace, self.order)
        split = self.topology.mode == "disaggregated"
        return without_cached(requests) if split else requests

    def answered(self) -> pd.DataFrame | None:
        """Return the requests table of a replay that was cut off, None if nothing was answered."""
        with contextlib.suppress(InputError):
            if self.replayed:
                return self._requests(aiperf.read_artifacts(self.artifacts))
        return None

    def _kept(self) -> dict[str, bytes]:
        paths = {name: self.artifacts / name for name in KEPT}
        kept = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
        records = self.artifacts / aiperf.RECORDS
        if records.is_file():
            kept[f"{aiperf.RECORDS}.gz"] = gzip.compress(records.read_bytes(), 6, mtime=0)
        return kept

    def diagnostics(self) -> dict[str, bytes]:
        """Return the logs, and what AIPerf has written so far, after a failure."""
        if self._programs is None or not self.programs.started:
            return {}
        written = self._kept() if self.replayed else {}
        return self.programs.logs() | {f"artifacts/{name}": each for name, each in written.items()}

    def teardown(self) -> None:
        """Stop every process and remove the state folder; safe to call again."""
        if self._programs is not None:
            self._programs.close()
            self._programs = None
        if self._lock.is_locked:
            self._holder.unlink(missing_ok=True)
            self._lock.release()
