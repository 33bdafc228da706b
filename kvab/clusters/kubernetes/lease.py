"""One client at a time for a run: a Lease on the cluster, renewed while the client lives.

Input: a client and a marked manifest. Output: the run is this client's until another takes it.
Whether the holder lives is judged by changes of its Lease that are seen from here, as client-go's
leader election does: clocks of two machines need not agree.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from kvab.clusters.kubernetes import objects
from kvab.clusters.kubernetes.api import Existing, Kube, Missing, Object, Waiting
from kvab.errors import DependencyError, KvabError

RENEWALS = 6  # in the time after which a silent holder counts as gone


class Held(DependencyError):
    """The run is another client's."""


class Lease:
    """The right to work on one run, held by at most one client."""

    def __init__(self, kube: Kube, manifest: Object, *, takes_over: bool = True) -> None:
        # `kube` is for the lease alone: opening an exec stream changes a client for a moment.
        self.kube, self.manifest = kube, manifest
        self.name = manifest["metadata"]["name"]
        self.run = objects.annotation(manifest, objects.RUN)
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
            if lease and not take_over and not _gone(lease):
                version = lease["metadata"]["resourceVersion"]
                if not first:
                    first, since_s = version, time.monotonic()
                if Holder.of(lease).is_here() or version != first:
                    raise Held(self._refusal(lease))
                if time.monotonic() - since_s < lease["spec"]["leaseDurationSeconds"]:
                    return Waiting(f"waits for a sign of life of {Holder.of(lease)}")
            return None if self._written(lease) else Waiting("waits for its turn")

        self.kube.wait_until(probe, title=f"lease of {self.run}")
        self._ended = threading.Event()
        pause_s = self.kube.limits.lease_s / RENEWALS
        renewing = (weakref.ref(self), self._ended, pause_s)
        threading.Thread(target=_renew, args=renewing, daemon=True).start()

    def _written(self, present: Object | None) -> bool:
        """Whether the lease could be made this client's, from the version that was read."""
        now, seconds = _now(), max(1, round(self.kube.limits.lease_s))
        spec = {"holderIdentity": identity(), "leaseDurationSeconds": seconds}
        spec |= {"acquireTime": now, "renewTime": now}
        wanted = {**self.manifest, "spec": spec}
        try:
            if present is None:
                made = self.kube.create(wanted)
            else:
                # With its uid, a lease deleted meanwhile is not made anew.
                known = {key: present["metadata"][key] for key in ("uid", "resourceVersion")}
                wanted["metadata"] = {**self.manifest["metadata"], **known}
                spec["leaseTransitions"] = present["spec"].get("leaseTransitions", 0) + 1
                made = self.kube.replace(wanted)
        except (Existing, Missing):
            return False
        self.held = made if made["spec"]["holderIdentity"] == identity() else None
        return self.held is not None

    def renew(self) -> None:
        """Show a sign of life.

        Raises
        ------
        Held
            If another client has taken the run over.
        """
        with self._lock:
            self.check()
            if self.held is None:
                return
            spec = {**self.held["spec"], "renewTime": _now()}
            try:
                self.held = self.kube.replace({**self.held, "spec": spec})
            except (Existing, Missing):
                present = self.kube.get("Lease", self.name)
                if present is None or present["spec"].get("holderIdentity") != identity():
                    self.lost = f"{self.run}: ended by another client"
                    if present:
                        self.lost = f"{self.run}: taken over by {Holder.of(present)}"
                    self.lost += "; this client stops and removes nothing"
                    self.check()
                self.held = present  # renewed, but the answer was lost

    def is_lost(self) -> bool:
        """Whether another client has taken the run over, as far as the API server can be asked."""
        with suppress(KvabError):
            self.renew()
        return bool(self.lost)

    def check(self) -> None:
        """Raise Held if another client is known to have taken the run over."""
        if self.lost:
            raise Held(self.lost)

    def guard(self, changes: bool) -> None:
        """Let a call pass that another client did not forbid; one that changes something renews."""
        if changes:
            self.renew()
        self.check()

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
        line = f"{self.run}: {Holder.of(lease)} has this run since {since} UTC and is alive"
        line += "; wait for it to end"
        if not self.takes_over:
            return line
        digests = [objects.annotation(thing, objects.DIGEST) for thing in (lease, self.manifest)]
        then = (
            "goes on with it"
            if len({*digests}) == 1
            else "ends it, as its rows or manifests are not the same"
        )
        return f"{line}, or take it over with --take-over, which {then}"


def _renew(reference: weakref.ref[Lease], ended: threading.Event, pause_s: float) -> None:
    """Renew a lease until it is left or lost, or nobody has it any more."""
    while not ended.wait(pause_s):
        lease = reference()
        if lease is None or lease.is_lost():
            return
        del lease  # nobody may have it any more before the next time


def identity() -> str:
    """Return who this process is, as no other: person, process and machine."""
    owner, pid = objects.owner(), str(os.getpid())
    return f"{owner[objects.USER]}@{owner[objects.HOST]}/{pid}.{_start(pid)}/{_machine()}"


def _machine() -> str:
    """Return what tells process numbers of this machine, and boot, from those of others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _start(pid: str) -> str:
    """Return when a process of this machine began, in ticks since the boot; empty if it ended."""
    try:
        state, *values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else values[18]


class Holder(NamedTuple):
    """Who holds a lease: a person, by a process that began at some time, on a machine."""

    person: str
    pid: str
    start: str
    machine: str

    @classmethod
    def of(cls, lease: Object) -> Holder:
        """Return the holder of a lease, of empty texts where there is none."""
        parts = [*lease["spec"].get("holderIdentity", "").split("/"), "", ""]
        pid, _, start = parts[1].partition(".")
        return cls(parts[0], pid, start, parts[2])

    def __str__(self) -> str:
        """Name person and process."""
        return f"{self.person} (process {self.pid})"

    def is_here(self) -> bool:
        """Whether it is a process of this machine, so that it can be seen to live."""
        return bool(self.machine) and self.machine == _machine()


def _gone(lease: Object) -> bool:
    """Whether nobody holds the lease, this process does, or one that is known to have ended."""
    holder = Holder.of(lease)
    ended = holder.is_here() and _start(holder.pid) != holder.start
    return not holder.person or ended or lease["spec"]["holderIdentity"] == identity()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
