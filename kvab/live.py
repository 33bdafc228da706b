"""The live cluster: Dynamo's frontend, router and mock engines on this machine, under real AIPerf.

Input: a topology read from ``deploy.yaml``, the AIPerf command of ``perf.yaml`` and a trace.
Output: the requests table and AIPerf's artifacts. Requests, tokens, routing and the load are real;
the engines wait as long as measured kernels would and compute nothing.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from kvab import aiperf, recipes, tidy
from kvab.errors import DependencyError
from kvab.model_files import write_model
from kvab.processes import Program, Programs, free_port
from kvab.recipes import Topology, WorkerGroup
from kvab.study import Live
from kvab.trace import Trace, cache_folder, write_rows
from kvab.watching import Display

PACKAGES = ("ai-dynamo", "aiperf", "aisimulate")
PLANES = "--discovery-backend file --request-plane tcp --event-plane zmq".split()
COMPONENTS = {"aggregated": "backend", "prefill": "prefill", "decode": "backend"}
ROUTERS = {"round_robin": "round-robin", "kv": "kv"}
ENDPOINT = "generate"
READY_S = 180.0
AFTER_TRACE_S = 1800.0  # for the last answers, as on the cluster
POLL_S = 0.5
KEPT = ("profile_export_aiperf.json", "profile_export_aiperf.csv", "server_metrics_export.json",
        "logs/aiperf.log", aiperf.READY)  # fmt: skip


class LiveStack:
    """A live cluster; its five steps are those of every kind of cluster."""

    def __init__(self, profile: Live, configuration: recipes.Configuration | None = None) -> None:
        self.profile, self.configuration = profile, configuration
        self.programs: Programs | None = None
        self.provenance: dict[str, object] = {}
        self._lock = FileLock(cache_folder() / "live.lock", blocking=False)

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
            If another live run is going on: two would compete for the cores.
        """
        identity = self.identity()
        cache_folder().mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise DependencyError(
                f"another live run is going on here ({self._lock.lock_file} is held); its timing "
                "and this one's would spoil each other: wait for it to end"
            ) from None
        return {name: identity[name] for name in PACKAGES}

    def deploy(self, topology: Topology) -> None:
        """Start frontend and workers and wait until each of them serves.

        Raises
        ------
        DependencyError
            If one ends, or they do not serve in time; the last lines of the log are in the text.
        """
        self.programs, self.port, self.topology = Programs(), free_port(), topology
        folder = self.programs.folder
        first = next(iter(topology.groups.values()))
        self.model = first.model
        write_model(folder / "hub", first.model, first.context_length)
        self.environment = {
            "HOME": str(folder),  # Dynamo keeps model cards there, AIPerf its prompts
            "HF_HOME": str(folder / "hub"),
            "HF_HUB_OFFLINE": "1",
            "DYN_FILE_KV": str(folder / "discovery"),
            "DYN_LOG": "error",
            "AIPERF_DATASET_MMAP_CACHE_DIR": str(folder / "prompts"),
        }
        python = [sys.executable, "-m"]
        frontend = ["dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(self.port)]
        router = ["--router-mode", ROUTERS[topology.router]]
        self._start("frontend", [*python, *frontend, *router, *PLANES])
        for role, group in topology.groups.items():
            self._start(role, [*python, *self._mocker(role, group)])
        self._wait_until_ready(topology)

    def _start(self, name: str, command: list[str]) -> Program:
        return self.programs.start(name, command, self.environment)

    def _mocker(self, role: str, group: WorkerGroup) -> list[str]:
        options = {
            "--model-path": group.model,
            "--model-name": group.model,
            "--num-workers": group.replicas,
            "--disaggregation-mode": "agg" if role == "aggregated" else role,
            "--block-size": group.block_size,
            "--max-model-len": group.context_length,
            "--max-num-seqs": group.max_sequences,
            "--max-num-batched-tokens": group.max_batched_tokens,
            "--gpu-memory-utilization": group.gpu_memory_fraction,
            "--ais-system": self.profile.hardware,
            "--ais-backend": self.profile.backend,
            "--ais-tp-size": group.tensor_parallel,
        }
        caching = [] if group.prefix_caching else ["--no-enable-prefix-caching"]
        given = [str(part) for option in options.items() for part in option]
        return ["dynamo.mocker", "--ais-perf-model", *given, *caching, *PLANES]

    def _wait_until_ready(self, topology: Topology) -> None:
        wanted = Counter[str]()
        for role, group in topology.groups.items():
            wanted[COMPONENTS[role]] += group.replicas
        deadline, why = time.monotonic() + READY_S, "nothing answers"
        url = f"http://127.0.0.1:{self.port}"
        with httpx.Client(base_url=url, timeout=30) as client:
            while time.monotonic() < deadline:
                self.programs.check()
                try:
                    why = self._missing(client, wanted)
                except (httpx.HTTPError, ValueError, LookupError) as error:
                    why = f"{type(error).__name__}: {error}"
                if not why:
                    self.provenance = {"workers": dict(wanted)}
                    return
                time.sleep(POLL_S)
        tails = " | ".join(f"{each.name}: {each.tail(2)}" for each in self.programs.started)
        raise DependencyError(f"not ready within {READY_S:.0f} s ({why}); {tails}")

    def _missing(self, client: httpx.Client, wanted: Counter[str]) -> str:
        """Return what is still missing before every worker serves, empty if nothing is."""
        models = [each["id"] for each in client.get("/v1/models").raise_for_status().json()["data"]]
        if self.model not in models:
            return f"models served: {', '.join(models) or 'none'}"
        instances = client.get("/health").json()["instances"]
        found = Counter(i["component"] for i in instances if i["endpoint"] == ENDPOINT)
        if found != wanted:
            return f"workers registered: {dict(found)}, expected {dict(wanted)}"
        for _ in range(2 * wanted.total()):  # a model is listed before every worker can serve it
            _complete(client, self.model)
        return ""

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
        self.artifacts = folder / "artifacts"
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
        command = recipes.aiperf_command(self.configuration)
        changed = {
            "--url": f"http://127.0.0.1:{self.port}",
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
        if not read.whole:
            raise DependencyError(
                f"AIPerf's export is not complete ({len(read.records)} records); replay it again"
            )
        requests = tidy.from_aiperf(read, self.trace, self.order)
        if self.topology.mode == "disaggregated":  # the frontend reports the decode worker's only
            requests["cached_tokens"] = pd.Series(pd.NA, requests.index, dtype="Int32")
        self.provenance |= {"router": aiperf.router_counters(self.artifacts)}
        return requests, self._kept()

    def _kept(self) -> dict[str, bytes]:
        paths = {name: self.artifacts / name for name in KEPT}
        kept = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
        records = self.artifacts / aiperf.RECORDS
        if records.is_file():
            kept[f"{aiperf.RECORDS}.gz"] = gzip.compress(records.read_bytes(), 6, mtime=0)
        return kept

    def diagnostics(self) -> dict[str, bytes]:
        """Return the logs, and what AIPerf has written so far, after a failure."""
        if self.programs is None or not self.programs.started:
            return {}
        written = self._kept() if hasattr(self, "artifacts") else {}
        return self.programs.logs() | {f"artifacts/{name}": each for name, each in written.items()}

    def teardown(self) -> None:
        """Stop every process and remove the state folder; safe to call again."""
        if self.programs is not None:
            self.programs.close()
            self.programs = None
        self._lock.release()


def _complete(client: httpx.Client, model: str) -> None:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 2,
        "stream": True,
    }
    answer = client.post("/v1/chat/completions", json=body).raise_for_status().text
    if "[DONE]" not in answer or '"content"' not in answer:
        raise ValueError("an answer without tokens or without an end")
