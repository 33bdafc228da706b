"""The Kubernetes API with patience: one client, retried calls, errors that a user can act on.

Input: a cluster profile. Output: objects as plain dictionaries.
"""

from __future__ import annotations

import copy
import json
import re
import sys
import time
import weakref
from collections.abc import Callable
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

from tenacity import Retrying, retry_if_exception, stop_after_delay

from kvab.clusters.kubernetes.apierrors import (
    Existing,
    Missing,
    Unreadable,
    failures,
    message,
    passes,
    pause_s,
    told,
)
from kvab.clusters.kubernetes.connecting import api_client
from kvab.console import mask
from kvab.errors import DependencyError, InputError
from kvab.study import Kubernetes
from kvab.study.recipes import forms

Object = dict[str, Any]
NVIDIA = "/apis/nvidia.com/{version}"
DEFINITION = "dynamographdeployments.nvidia.com"
CALL_S = 60.0
WARNING = re.compile(r'299 \S+ "((?:[^"\\]|\\.)*)"')  # RFC 9111, 5.5, as Kubernetes uses it


class Kind(NamedTuple):
    """Where the objects of a kind are served."""

    prefix: str
    plural: str
    namespaced: bool = True


KINDS = {
    "DynamoGraphDeployment": Kind(NVIDIA, "dynamographdeployments"),
    "DynamoComponentDeployment": Kind(NVIDIA, "dynamocomponentdeployments"),
    "Lease": Kind("/apis/coordination.k8s.io/v1", "leases"),
    "Job": Kind("/apis/batch/v1", "jobs"),
    "Pod": Kind("/api/v1", "pods"),
    "Event": Kind("/api/v1", "events"),
    "ConfigMap": Kind("/api/v1", "configmaps"),
    "Secret": Kind("/api/v1", "secrets"),
    "PersistentVolumeClaim": Kind("/api/v1", "persistentvolumeclaims"),
    "Namespace": Kind("/api/v1", "namespaces", False),
    "Node": Kind("/api/v1", "nodes", False),
    "StorageClass": Kind("/apis/storage.k8s.io/v1", "storageclasses", False),
    "CustomResourceDefinition": Kind(
        "/apis/apiextensions.k8s.io/v1", "customresourcedefinitions", False
    ),
}


@cache
def _warn(text: str) -> None:
    """Say what the API server warns of; the same text is said once."""
    print(f"the API server warns: {mask(text)}", file=sys.stderr)


def _warnings(header: str) -> None:
    for text in WARNING.findall(header):
        _warn(re.sub(r"\\(.)", r"\1", text))


class Kube:
    """Calls in one namespace; each is retried for ``limits.retry_s`` seconds."""

    def __init__(self, profile: Kubernetes) -> None:
        self.namespace, self.limits = profile.namespace, profile.limits
        self.api = api_client(profile)
        # Asked before each call, and told whether it changes something; raises to forbid it.
        self.guard: Callable[[bool], None] = lambda changes: None
        weakref.finalize(self, self.api.rest_client.pool_manager.clear)

    def hasty(self) -> Kube:
        """Return the same client with little patience, for what may be left out."""
        other = copy.copy(self)
        other.limits = self.limits.model_copy(update={"retry_s": min(5, self.limits.retry_s)})
        return other

    def call(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        body: Any = None,
        *,
        what: str = "",
    ) -> Any:
        """Return the answer of one call, parsed.

        Raises
        ------
        InputError
            If the API server finds the manifest wrong.
        DependencyError
            If it refuses, does not answer in time or has no such object.
        """

        def once() -> Any:
            return self._send(method, path, query, body)

        self.guard(method != "GET")
        with told(what or f"{method} {path}"):
            return self.patiently(once)

    def patiently(self, once: Callable[[], Any]) -> Any:
        """Return what a call returns, repeated while its failure may pass."""
        retrying = Retrying(
            retry=retry_if_exception(passes),
            stop=stop_after_delay(self.limits.retry_s),
            wait=partial(pause_s, first_s=self.limits.poll_s / 10),
            reraise=True,
        )
        return retrying(once)

    def _send(self, method: str, path: str, query: Any, body: Any, *, text: bool = False) -> Any:
        (answer, _, headers) = self.api.call_api(
            path,
            method,
            query_params=list((query or {}).items()),
            header_params={"Accept": "*/*", "Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _request_timeout=CALL_S,
        )
        _warnings(headers.get("Warning", ""))
        if text:
            return answer.data.decode("utf-8", "replace")
        try:
            return json.loads(answer.data)
        except ValueError:
            got = " ".join(answer.data[:80].decode("utf-8", "replace").split())
            raise Unreadable(f"expected JSON of the API server, got {got!r}") from None

    def path(self, kind: str, name: str = "", version: str = "") -> str:
        """Return the path of a kind, or of one object of it, in the version that is stored."""
        prefix, plural, namespaced = KINDS[kind]
        prefix = prefix.format(version=version or self.version) if prefix == NVIDIA else prefix
        inside = f"/namespaces/{self.namespace}" if namespaced else ""
        return f"{prefix}{inside}/{plural}" + (f"/{name}" if name else "")

    @cached_property
    def version(self) -> str:
        """The version of Dynamo's kinds that the cluster stores; the other is deprecated there."""
        try:
            definition = self.get("CustomResourceDefinition", DEFINITION)
        except DependencyError:
            definition = None  # not allowed to read it: every operator serves the first version
        versions = definition["spec"]["versions"] if definition else []
        stored = (each["name"] for each in versions if each.get("storage"))
        return "v1beta1" if "v1beta1" in stored else "v1alpha1"

    def form(self, manifest: Object) -> Object:
        """Return a manifest in the version that the cluster stores, as it is where it has none."""
        if manifest["kind"] != "DynamoGraphDeployment" or self.version == "v1alpha1":
            return manifest
        try:
            return forms.to_beta(manifest)
        except InputError:
            return manifest  # which is served as well

    def get(self, kind: str, name: str) -> Object | None:
        """Return an object, None if there is none."""
        try:
            return self.call("GET", self.path(kind, name), what=f"{kind} {name}")
        except Missing:
            return None

    def list(self, kind: str, selector: str = "", fields: str = "") -> list[Object]:
        """Return the objects of a kind that a label or field selector chooses."""
        query = {"labelSelector": selector, "fieldSelector": fields}
        chosen = {key: value for key, value in query.items() if value}
        return self.call("GET", self.path(kind), chosen, what=f"list of {kind}")["items"]

    def create(self, manifest: Object, *, dry_run: bool = False) -> Object:
        """Create an object under strict validation and return it.

        An object that is there already and carries the same run's marks is the one that an
        earlier try of this call made, whose answer was lost.
        """
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        query = {"fieldValidation": "Strict", "fieldManager": "kvab"}
        if dry_run:
            query["dryRun"] = "All"
        manifest = self.form(manifest)
        path = self.path(kind, version=manifest["apiVersion"].rpartition("/")[2])
        try:
            return self.call("POST", path, query, manifest, what=f"{kind} {name}")
        except Existing:
            found = self.get(kind, name)
            ours = manifest["metadata"].get("annotations") or {}
            theirs = (found or {}).get("metadata", {}).get("annotations") or {}
            if dry_run or (ours and ours.items() <= theirs.items()):
                return found or manifest
            raise

    def replace(self, manifest: Object) -> Object:
        """Replace exactly the version that the manifest was made of, and return the new one.

        Raises
        ------
        Existing
            If there is a newer one.
        """
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        path, query = self.path(kind, name), {"fieldManager": "kvab"}
        return self.call("PUT", path, query, manifest, what=f"{kind} {name}")

    def delete(self, kind: str, name: str, uid: str) -> None:
        """Ask for the deletion of exactly this object; its children follow in the background.

        Another object of the same name, or none, is no error.
        """
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            self.call("DELETE", self.path(kind, name), None, body, what=f"{kind} {name}")
        except (Missing, Existing):
            return

    def log(self, pod: str, container: str, *, previous: bool = False, lines: int = 2000) -> str:
        """Return the end of a container's log without its secrets, empty if there is none."""
        query = {"container": container, "tailLines": lines, "previous": str(previous).lower()}
        try:
            path = self.path("Pod", pod) + "/log"
            return mask(self._send("GET", path, query, None, text=True))
        except Exception as error:
            if isinstance(error, failures()):
                return ""
            raise

    def changed(self, selector: str, timeout_s: float) -> None:
        """Return as soon as a pod changes, at the latest after a time.

        The watch only wakes: what holds is read anew afterwards, so that a dropped or expired
        (410 Gone) watch loses nothing.
        """
        from kubernetes import client, watch

        start = time.monotonic()
        watching = watch.Watch("object")
        try:
            query = {"labelSelector": selector, "limit": 1}
            listed = self._send("GET", self.path("Pod"), query, None)
            for _ in watching.stream(
                client.CoreV1Api(self.api).list_namespaced_pod,
                self.namespace,
                label_selector=selector,
                resource_version=listed["metadata"]["resourceVersion"],
                timeout_seconds=max(1, round(timeout_s)),
                _request_timeout=timeout_s + 5,
            ):
                watching.stop()
                break
        except failures():
            left_s = timeout_s - (time.monotonic() - start)
            time.sleep(max(0.0, min(left_s, timeout_s / 5)))

    def proxy(self, service: str, path: str, body: Any = None) -> tuple[int, str]:
        """Return status and text that a Service's port 8000 answers, 0 if it cannot be reached."""
        where = f"/api/v1/namespaces/{self.namespace}/services/{service}:8000/proxy/{path}"
        try:
            method = "GET" if body is None else "POST"
            return 200, self._send(method, where, None, body, text=True)
        except Exception as error:
            if not isinstance(error, failures()):
                raise
            return getattr(error, "status", 0) or 0, message(error)
