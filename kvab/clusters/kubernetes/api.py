"""The way to a cluster: the official client for a context of the user's kubeconfig.

Input: a cluster profile. Output: the client.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

from rich.table import Table
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    stop_before_delay,
    wait_exponential,
)

from kvab.console import Display, mask
from kvab.errors import DependencyError, InputError, KvabError
from kvab.study import Kubernetes, manifests


def api_client(profile: Kubernetes) -> Any:
    """Return the client for the profile's context.

    Raises
    ------
    InputError
        If there is no kubeconfig, or it has no such context.
    """
    from kubernetes import client, config

    settings = client.Configuration()
    settings.retries = False  # ours wait longer, and know what passes
    try:
        return config.new_client_from_config(
            os.environ.get("KUBECONFIG"), profile.context, client_configuration=settings
        )
    except (config.ConfigException, OSError) as error:
        raise InputError(
            f"recipes/clusters/{profile.name}.yaml: context: expected a context of your "
            f"kubeconfig, got {profile.context or 'none'} ({error}); see "
            "`kubectl config get-contexts`"
        ) from None


PASSING = (429, 500, 502, 503, 504)


class Missing(DependencyError):
    """There is no such object."""


class Existing(DependencyError):
    """There is one already, or it is another one than expected."""


class Unreadable(Exception):
    """An answer that is not the API's, such as the page of a proxy on the way."""


class WebhookDown(DependencyError):
    """A webhook that has to be asked cannot be: whatever needs it fails alike."""


class OverQuota(DependencyError):
    """A quota has no room for an object."""


class Rejection(NamedTuple):
    """What a rule of the cluster says when it rejects an object, why, and how to fix it."""

    words: str
    why: str
    fix: str
    error: type[KvabError] = DependencyError


# In the words of kube-apiserver's admission plugins. A webhook may quote any of the others.
REJECTIONS = (
    Rejection("failed calling webhook|conversion webhook for .* failed",
              "the API server could not call a webhook", "check the pods behind it; those of "
              "nvidia.com and kb.io are Dynamo's operator", WebhookDown),
    Rejection("denied the request", "admission denied", "change the recipe as it says, or ask "
              "whoever runs the webhook for an exception", InputError),
    Rejection("ValidatingAdmissionPolicy '", "a policy of the cluster denies it",
              "change the recipe as it says, or ask the cluster's administrators for an exception",
              InputError),
    Rejection("(exceeded|insufficient) quota|status unknown for quota",
              "over a quota of the namespace", "free what it counts, or ask for a larger quota: "
              "`kubectl describe quota`", OverQuota),
    Rejection("failed quota: .* must specify", "a quota of the namespace wants more told",
              "give these resources in the recipe, or have a LimitRange set defaults"),
    Rejection("(maximum|minimum) .+ usage per |max limit to request ratio per ",
              "outside a LimitRange of the namespace", "change the resources in the recipe, or "
              "have the range changed: `kubectl describe limitrange`"),
    Rejection("violates PodSecurity", "the namespace's pod security level forbids it", "have the "
              "namespace labelled pod-security.kubernetes.io/enforce=baseline, or give the recipe "
              "the securityContext that it asks for"),
    Rejection("security context constraint", "no security context constraint allows it",
              "have one granted to the namespace's service account"),
    Rejection("because it is being terminated", "the namespace is being deleted",
              "wait until it is gone, then create it anew"),
)  # fmt: skip


def rejection(said: str) -> Rejection | None:
    """Return the rule of the cluster that speaks, None if it is none of them."""
    return next((rule for rule in REJECTIONS if re.search(rule.words, said)), None)


def failures() -> tuple[type[Exception], ...]:
    """Return the exceptions of a failed call."""
    from kubernetes.client.rest import ApiException
    from urllib3.exceptions import HTTPError

    return (ApiException, HTTPError, ConnectionError, Unreadable)


def passes(error: BaseException) -> bool:
    """Whether a failed call may succeed later: a restart, a lost connection, too many requests.

    The conversion webhook of Dynamo's operator answers every read through the API server, so a
    restart of the operator looks like an error 500 of ours.
    """
    from kubernetes.client.rest import ApiException
    from urllib3.exceptions import HTTPError

    if isinstance(error, ApiException):
        return error.status in PASSING and "denied the request" not in str(error.body)
    return isinstance(error, HTTPError | ConnectionError) and not _certificate(error)


def _certificate(error: BaseException) -> bool:
    """Whether the other side could not be trusted, which no repetition changes."""
    from urllib3.exceptions import SSLError

    return isinstance(getattr(error, "reason", None) or error, SSLError)


def pause_s(state: RetryCallState, first_s: float) -> float:
    """Return how long to wait before the next try: what the server asks for, else ever longer."""
    error = state.outcome.exception() if state.outcome else None
    headers = getattr(error, "headers", None) or {}
    asked = headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else min(10.0, first_s * 2 ** (state.attempt_number - 1))


def message(error: Any) -> str:
    """Return what the API server said, in one line."""
    try:
        said = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError, AttributeError):
        said = str(getattr(error, "reason", None) or error)
    return " ".join(said.split())


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn the client's exceptions into errors that a user can act on."""
    try:
        yield
    except KvabError:
        raise
    except failures() as error:
        raise _explained(what, error) from None


def _explained(what: str, error: Any) -> KvabError:
    """Return the error that a user can act on."""
    status, said = getattr(error, "status", None), message(error)
    if status == 404:
        return Missing(f"{what}: not found ({said}); see `kvab doctor`")
    if status == 409:
        return Existing(f"{what}: another one is there already ({said}); delete it, or wait for it")
    if status and (rule := rejection(said)):
        return rule.error(f"{what}: {rule.why}: {said}; {rule.fix}")
    if status in (400, 422):
        return InputError(f"{what}: the API server rejects it: {said}; fix the recipe")
    if status == 401:
        return DependencyError(f"{what}: not allowed ({said}); log in again")
    if status == 403:
        fix = "this is no missing permission: ask the cluster's administrators for the rule"
        if re.search('User ".*" cannot ', said):
            fix = "have recipes/rbac.yaml applied"
        return DependencyError(f"{what}: not allowed ({said}); {fix}")
    if _certificate(error):
        return DependencyError(
            f"{what}: the API server's certificate is not trusted ({said}); check the server "
            "and certificate-authority of your kubeconfig"
        )
    if isinstance(error, Unreadable):
        return DependencyError(f"{what}: {said}; is there a proxy on the way?")
    if status and not passes(error):
        return DependencyError(
            f"{what}: the API server rejects it with status {status} ({said}); is this cluster "
            "of a version that the README names?"
        )
    failed = "failed with status 500" if status == 500 else "did not answer in time"
    return DependencyError(f"{what}: the API server {failed} ({said}); is the cluster up?")


Object = dict[str, Any]
NVIDIA = "/apis/nvidia.com/{version}"
DEFINITION = "dynamographdeployments.nvidia.com"
DEPLOYMENT, COMPONENT = "DynamoGraphDeployment", "DynamoComponentDeployment"
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


class Waiting(NamedTuple):
    """What is still waited for, in one line and as a table."""

    note: str
    table: Table | None = None


class Kube:
    """Calls in one namespace; each is retried for ``limits.retry_s`` seconds."""

    def __init__(self, profile: Kubernetes) -> None:
        self.namespace, self.limits = profile.namespace, profile.limits
        self.api = api_client(profile)
        # Asked before each call, and told whether it changes something; raises to forbid it.
        self.guard: Callable[[bool], None] = lambda changes: None
        weakref.finalize(self, self.api.rest_client.pool_manager.clear)

    def with_short_limits(self) -> Kube:
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
            return self.retried(once)

    def retried(self, once: Callable[[], Any]) -> Any:
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
            return manifests.to_beta(manifest)
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

    def wait_until(
        self,
        probe: Callable[[], Waiting | None],
        limit_s: float = math.inf,
        describe: Callable[[Waiting], str] = lambda waiting: waiting.note,
        *,
        title: str = "",
        selector: str = "",
    ) -> None:
        """Return when a probe has nothing left to wait for; what never comes, the probe raises.

        Parameters
        ----------
        probe : callable
            Returns what is still waited for, None when it is there.
        limit_s : float
            Seconds until waiting is given up.
        describe : callable
            Gets what was still waited for then, and returns the message.
        title : str
            What is shown before each thing waited for; without one nothing is shown.
        selector : str
            Label selector of the pods of which any change is a reason to look again.

        Raises
        ------
        DependencyError
            If the time is over.
        """
        deadline = time.monotonic() + limit_s
        with Display(title) if title else nullcontext() as display:
            while (waiting := probe()) is not None:
                if time.monotonic() > deadline:
                    raise DependencyError(describe(waiting))
                if display:
                    display.show(waiting.note, waiting.table)
                if selector:
                    self.changed(selector, self.limits.poll_s)
                else:
                    time.sleep(min(1.0, self.limits.poll_s))

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


FRAME_BYTES = 64 * 2**10
TRIES = 8
# A stream that cannot be opened is tried for a minute, the last handshake included.
OPEN_S, HANDSHAKE_S = 60.0, 20.0
FINAL = (401, 403, 404)


class Broken(DependencyError):
    """A stream ended before its command did."""


class Unopened(Broken):
    """A stream could not be opened, so far."""


class Refused(Broken):
    """The API server does not open streams for this account, or there is no such pod."""


class Failed(DependencyError):
    """The command ran and failed."""


class Pod:
    """Commands in one container of a pod."""

    def __init__(self, kube: Kube, name: str, container: str) -> None:
        self.kube, self.name, self.container = kube, name, container

    def run(self, *command: str, stdin: bytes = b"", timeout_s: float = 300) -> bytes:
        """Return what a command writes to its standard output.

        Raises
        ------
        Broken
            If the connection was lost; the command may be repeated.
        Failed
            If the command failed.
        """
        import websocket

        out = bytearray()
        stream = self._open(command)
        try:
            try:
                for place in range(0, len(stdin), FRAME_BYTES):
                    stream.write_stdin(stdin[place : place + FRAME_BYTES])
                deadline = time.monotonic() + timeout_s
                while stream.is_open():
                    stream.update(timeout=1)
                    out += stream.read_channel(1) or b""
                    if time.monotonic() > deadline:
                        raise Broken(f"pod {self.name}: {command[0]} took over {timeout_s:g} s")
                out += stream.read_channel(1) or b""
                said = (stream.read_channel(2) or b"").decode("utf-8", "replace").strip()
                code = _exit_code(stream)
            finally:
                stream.close()
                stream.sock.shutdown()  # what `close` leaves out where the other side was first
        except (websocket.WebSocketException, OSError) as error:
            raise Broken(f"exec in pod {self.name}: {error}") from None
        if code is None:
            raise Broken(f"exec in pod {self.name}: the connection was lost")
        if code:
            raise Failed(
                f"pod {self.name}: {command[0]} {' '.join(_arguments(command))}: exit code {code}: "
                f"{mask(said) or 'it said nothing'}; is the volume full, or changed meanwhile?"
            )
        return bytes(out)

    def _open(self, command: tuple[str, ...]) -> Any:
        import websocket
        from kubernetes import client
        from kubernetes.client.rest import ApiException
        from kubernetes.stream import stream

        core = client.CoreV1Api(self.kube.api)
        websocket.setdefaulttimeout(HANDSHAKE_S)
        try:
            opened = stream(
                core.connect_get_namespaced_pod_exec,
                self.name,
                self.kube.namespace,
                container=self.container,
                command=list(command),
                stdin=True,
                stdout=True,
                stderr=True,
                tty=False,
                binary=True,  # text would be decoded, and broken archives come of it
                _preload_content=False,
            )
        except ApiException as error:
            raise _unopened(f"exec in pod {self.name}", error.__context__) from None
        opened.sock.settimeout(None)
        return opened

    def retried(self, *command: str, stdin: bytes = b"") -> bytes:
        """Return a command's output; a lost connection is tried again."""
        again = _retrying(Broken, stop_after_attempt(TRIES))
        opened = _retrying(Unopened, stop_before_delay(OPEN_S - HANDSHAKE_S))
        return again(opened, self.run, *command, stdin=stdin)


def _unopened(what: str, cause: BaseException | None) -> BaseException:
    """Return what to raise for a failed handshake: its status and words, not its headers."""
    from kubernetes.client.rest import ApiException

    if not isinstance(cause, Exception):  # the client takes Ctrl-C for a failed handshake
        return cause or Unopened(what)
    status = getattr(cause, "status_code", 0)
    answer = (getattr(cause, "resp_body", None) or b"").decode("utf-8", "replace")
    plain = ApiException(status=status, reason=answer or getattr(cause, "status_message", cause))
    plain.body = answer
    if status not in FINAL:
        after = f"HTTP {status}: " if status else ""
        return Unopened(f"{what}: {after}{message(plain)}; is the cluster up?")
    try:
        with told(what):
            raise plain
    except KvabError as error:
        return Refused(str(error))


def _arguments(command: tuple[str, ...]) -> tuple[str, ...]:
    """Return what a command works on, without the text of a script."""
    return command[4:] if command[1:2] == ("-c",) else command[1:]


def _retrying(kind: type[Broken], stop: Any) -> Retrying:
    return Retrying(
        retry=retry_if_exception(lambda error: type(error) is kind),
        stop=stop,
        wait=wait_exponential(multiplier=0.2, max=10),
        reraise=True,
    )


def _exit_code(stream: Any) -> int | None:
    try:
        return stream.returncode
    except (TypeError, KeyError, ValueError, LookupError):
        return None  # no status was sent: the stream was cut
