"""One client at a time for a run: a Lease on the cluster, renewed while the client lives.

Input: a client and an object marked as the run's. Output: the run is this client's until another
takes it. Whether the holder lives is judged by changes of its Lease that are seen from here, as
client-go's leader election does: clocks of two machines need not agree.
"""

from __future__ import annotations

import os
import re
import threading
import time
import weakref
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from kvab.clusters.kubernetes import objects
from kvab.clusters.kubernetes.api import Existing, Kube, Missing
from kvab.clusters.kubernetes.health import Waiting, wait_until
from kvab.errors import DependencyError, KvabError
from kvab.study.manifests import Object

RENEWALS = 6  # in the time after which a silent holder counts as gone


class Held(DependencyError):
    """The run is another client's."""


class Lease:
    """The right to work on one run, held by at most one client."""

    def __init__(self, kube: Kube, ours: Object, *, takes_over: bool = True) -> None:
        # `kube` is for the lease alone: opening an exec stream changes a client for a moment.
        self.kube, self.run = kube, objects.annotation(ours, objects.RUN)
        self.name = re.sub("[^a-z0-9-]+", ".", f"kvab.{self.run}".lower()).strip(".-")
        self.metadata = {**ours["metadata"], "name": self.name}
        self.takes_over = takes_over  # whether the command has --take-over
        self.held: Object | None = None
        self.lost = ""
        self._lock, self._ended = threading.RLock(), threading.Event()

    def take(self, take_over: bool = False) -> None:
        """Hold the run, and renew the lease from now on.

        That of a client that is gone is taken: at once if its process was on this machine, else
        when it did not change for as long as it says.

        Raises
        ------
        Held
            If another client is alive and is not to be taken over: who, since when, what to do.
        """
        if self.held:
            self.renew()
            return
        first, since_s = "", 0.0

        def probe() -> Waiting | None:
            nonlocal first, since_s
            lease = self.kube.get("Lease", self.name)
            alive = None if lease is None or take_over else _alive(_holder(lease))
            if lease and not take_over and alive is not False:
                version = lease["metadata"]["resourceVersion"]
                if not first:
                    first, since_s = version, time.monotonic()
                if alive or version != first:
                    raise Held(self._refusal(lease))
                if time.monotonic() - since_s < lease["spec"]["leaseDurationSeconds"]:
                    return Waiting(f"waits for a sign of life of {_named(lease)}")
            return None if self._written(lease) else Waiting("waits for its turn")

        wait_until(self.kube, probe, title=f"lease of {self.run}")
        self._ended = threading.Event()
        renewing = (weakref.ref(self), self._ended, self.kube.limits.lease_s / RENEWALS)
        threading.Thread(target=_renew, args=renewing, daemon=True).start()

    def _written(self, present: Object | None) -> bool:
        """Whether the lease could be made this client's, from the version that was read."""
        now = _now()
        spec = {
            "holderIdentity": identity(),
            "leaseDurationSeconds": max(1, round(self.kube.limits.lease_s)),
            "acquireTime": now,
            "renewTime": now,
        }
        wanted = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec}
        try:
            if present is None:
                made = self.kube.create({**wanted, "metadata": self.metadata})
            else:
                # With its uid, a lease deleted meanwhile is not made anew.
                known = {key: present["metadata"][key] for key in ("uid", "resourceVersion")}
                spec["leaseTransitions"] = present["spec"].get("leaseTransitions", 0) + 1
                made = self.kube.replace({**wanted, "metadata": self.metadata | known})
        except (Existing, Missing):
            return False
        self.held = made if _holder(made) == identity() else None
        return self.held is not None

    def renew(self) -> None:
        """Show a sign of life.

        Raises
        ------
        Held
            If another client has taken the run over.
        """
        with self._lock:
            if self.lost:
                raise Held(self.lost)
            if self.held is None:
                return
            spec = {**self.held["spec"], "renewTime": _now()}
            try:
                self.held = self.kube.replace({**self.held, "spec": spec})
            except (Existing, Missing):
                present = self.kube.get("Lease", self.name)
                if present and _holder(present) == identity():
                    self.held = present  # renewed, but the answer was lost
                    return
                by = f"taken over by {_named(present)}" if present else "ended by another client"
                self.lost = f"{self.run}: {by}; this client stops and removes nothing"
                raise Held(self.lost) from None

    def is_lost(self) -> bool:
        """Whether another client has taken the run over, as far as the API server can be asked."""
        with suppress(KvabError):
            self.renew()
        return bool(self.lost)

    def guard(self, changes: bool) -> None:
        """Let a call pass that another client did not forbid; one that changes something renews."""
        if changes or self.lost:
            self.renew()

    def explain(self, error: KvabError) -> KvabError:
        """Return why a wait ended: that another client has taken the run over, if it has."""
        return Held(self.lost) if self.is_lost() else error

    def leave(self) -> None:
        """Let the next client have the run."""
        self._ended.set()
        with self._lock:
            if self.held:
                self.kube.delete("Lease", self.name, self.held["metadata"]["uid"])
                self.held = None

    def _refusal(self, lease: Object) -> str:
        since = lease["spec"].get("acquireTime", "")[:19].replace("T", " ")
        line = f"{self.run}: {_named(lease)} has this run since {since} UTC and is alive; wait for "
        line += "it to end"
        if not self.takes_over:
            return line
        same = self.metadata["annotations"][objects.DIGEST] == objects.annotation(
            lease, objects.DIGEST
        )
        then = "goes on with it" if same else "ends it, as its rows or manifests are not the same"
        return f"{line}, or take it over with --take-over, which {then}"


def _renew(reference: weakref.ref[Lease], ended: threading.Event, pause_s: float) -> None:
    """Renew a lease until it is left or lost, or nobody has it any more."""
    while not ended.wait(pause_s):
        lease = reference()
        if lease is None or lease.is_lost():
            return
        del lease  # nobody may have it any more before the next time


# A holder is a person on a host, the number and start of a process, and the machine that counts it:
# user@host/number.start/machine.


def identity() -> str:
    """Return who this process is, as no other."""
    return f"{'@'.join(objects.owner().values())}/{_process(os.getpid())}/{_machine()}"


def _machine() -> str:
    """Return what tells process numbers of this machine, and boot, from those of others."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"
    return ""


def _process(pid: int | str) -> str:
    """Return number and start of a living process here, in ticks since the boot."""
    with suppress(OSError):
        state, *values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else f"{pid}.{values[18]}"
    return f"{pid}."


def _holder(lease: Object) -> str:
    return str(lease["spec"].get("holderIdentity") or "")


def _alive(holder: str) -> bool | None:
    """Whether somebody else holds a lease and lives, None where that cannot be seen from here."""
    process, _, machine = holder.partition("/")[2].partition("/")
    if holder in ("", identity()):
        return False
    here = machine and machine == _machine()
    return process == _process(process.partition(".")[0]) if here else None


def _named(lease: Object) -> str:
    """Return person and process of a lease's holder."""
    person, _, process = _holder(lease).partition("/")
    return f"{person} (process {process.partition('.')[0]})"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
