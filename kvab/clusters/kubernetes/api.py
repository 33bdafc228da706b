"""The way to a cluster: the official client for a context of the user's kubeconfig.

Input: a cluster profile. Output: calls that are repeated while their failure may pass, and commands
in pods; what fails is one line with its cause and what to do.
"""

from __future__ import annotations

import copy
import json
import os
import re
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from typing import NamedTuple, TypeVar

import tenacity
import websocket
from kubernetes import client, config
from kubernetes.client.rest import ApiException
from kubernetes.stream import stream
from kubernetes.stream.ws_client import WSClient
from urllib3.exceptions import HTTPError, SSLError

from kvab.console import mask
from kvab.errors import DependencyError, InputError, KvabError
from kvab.study import Kubernetes, manifests
from kvab.study.manifests import Object

Objects = list[Object]
T = TypeVar("T")
DEFINITION = "dynamographdeployments.nvidia.com"
DEPLOYMENT, COMPONENT = manifests.KIND, "DynamoComponentDeployment"
FAILURES = (ApiException, HTTPError, ConnectionError)  # of a call
PASSING = (429, 500, 502, 503, 504)
CALL_S = 60.0
PLACEHOLDERS = "my-context my-rwx-class your-storage-class-name replace-with-your-rwx-class".split()
WARNING = re.compile(r'299 \S+ "((?:[^"\\]|\\.)*)"')  # RFC 9111, 5.5, as Kubernetes uses it


class Missing(DependencyError):
    """There is no such object."""


class Existing(DependencyError):
    """There is one already, or it is another one than expected."""


class WebhookDown(DependencyError):
    """A webhook that has to be asked cannot be: whatever needs it fails alike."""


class OverQuota(DependencyError):
    """A quota has no room for an object."""


class Rule(NamedTuple):
    """The words of an API server that does not do what it is asked to, and how to fix it."""

    words: str
    fix: str
    error: type[KvabError] = DependencyError


# In the words of kube-apiserver's admission plugins. A webhook may quote any of the others.
REJECTIONS = (
    Rule("failed calling webhook|conversion webhook for .* failed",
         "check the webhook's pods; those of nvidia.com and kb.io are Dynamo's operator",
         WebhookDown),
    Rule("denied the request", "change the recipe as it says, or ask whoever runs the webhook for "
         "an exception", InputError),
    Rule("ValidatingAdmissionPolicy '", "change the recipe as it says, or ask the cluster's "
         "administrators for an exception", InputError),
    Rule("(exceeded|insufficient) quota|status unknown for quota",
         "free what it counts, or ask for a larger quota: `kubectl describe quota`", OverQuota),
    Rule("failed quota: .* must specify",
         "give these resources in the recipe, or have a LimitRange set defaults"),
    Rule("(maximum|minimum) .+ usage per |max limit to request ratio per ",
         "change the resources in the recipe, or have the LimitRange changed"),
    Rule("violates PodSecurity", "have the namespace labelled pod-security.kubernetes.io/enforce="
         "baseline, or give the recipe the securityContext that it asks for"),
    Rule("security context constraint", "have one granted to the namespace's service account"),
    Rule("because it is being terminated", "wait until it is gone, then create it anew"),
    Rule('User ".*" cannot ', "have recipes/rbac.yaml applied"),
)  # fmt: skip
# By the status of the answer: why it failed, and how to fix it.
STATUSES: dict[int | None, tuple[str, str, type[KvabError]]] = {
    400: ("rejected", "fix the recipe", InputError),
    401: ("not allowed", "log in again", DependencyError),
    403: ("not allowed", "no permission is missing: ask the cluster's administrators for the rule",
          DependencyError),
    404: ("not found", "see `kvab doctor`", Missing),
    409: ("another one is there already", "delete it, or wait for it", Existing),
    422: ("rejected", "fix the recipe", InputError),
    500: ("the API server failed with status 500", "is the cluster up?", DependencyError),
}  # fmt: skip


def passes(error: BaseException) -> bool:
    """Whether a failed call may succeed later: a restart, a lost connection, too many requests.

    The conversion webhook of Dynamo's operator answers every read through the API server, so a
    restart of the operator looks like an error 500 of ours.
    """
    if status := getattr(error, "status", None):
        return status in PASSING and "denied the request" not in str(getattr(error, "body", ""))
    untrusted = isinstance(getattr(error, "reason", None) or error, SSLError)
    return isinstance(error, HTTPError | ConnectionError) and not untrusted


def message(error: BaseException) -> str:
    """Return what the API server said, in one line."""
    try:
        text = json.loads(getattr(error, "body", ""))["message"]
    except (TypeError, ValueError, KeyError):
        text = str(getattr(error, "reason", None) or error)
    return " ".join(text.split())


@contextmanager
def explaining(what: str) -> Iterator[None]:
    """Turn the client's exceptions into errors that a user can act on."""
    try:
        yield
    except FAILURES as error:
        text, status = message(error), getattr(error, "status", None)
        kind: type[KvabError] = DependencyError
        rule = next((rule for rule in REJECTIONS if re.search(rule.words, text)), None)
        if rule and status not in (None, 404, 409):
            why, fix, kind = "rejected", rule.fix, rule.error
        elif status in STATUSES:
            why, fix, kind = STATUSES[status]
        elif passes(error):
            why, fix = "the API server did not answer in time", "is the cluster up?"
        elif status:
            why, fix = f"rejected with status {status}", "is the cluster of a supported version?"
        else:
            why, fix = "the API server's certificate is not trusted", "check your kubeconfig"
        raise kind(f"{what}: {why}: {text}; {fix}") from None


# Where kinds are served that are neither core's nor Dynamo's.
GROUPS = {
    "CustomResourceDefinition": "apiextensions.k8s.io/v1",
    "Job": "batch/v1",
    "Lease": "coordination.k8s.io/v1",
    "StorageClass": "storage.k8s.io/v1",
}
CLUSTER_WIDE = ("CustomResourceDefinition", "Namespace", "Node", "StorageClass")


@cache
def _warn(text: str) -> None:
    """Say what the API server warns of; the same text is said once."""
    text = re.sub(r"\\(.)", r"\1", text)
    print(f"the API server warns: {mask(text)}", file=sys.stderr)


class Kube:
    """Calls in one namespace; each is repeated for ``limits.retry_s`` seconds.

    Raises
    ------
    InputError
        If the profile still has an example's values, or the kubeconfig no such context.
    """

    def __init__(self, profile: Kubernetes) -> None:
        path = f"recipes/clusters/{profile.name}.yaml"
        for key in ("storage_class", "context"):
            if (value := getattr(profile, key)) in PLACEHOLDERS:
                got, expected = f"the placeholder {value}", "a name of your cluster"
                raise InputError(expected=expected, got=got, path=path, key=key, fix="fill it in")
        self.namespace, self.limits = profile.namespace, profile.limits
        settings = client.Configuration()
        settings.retries = False  # ours wait longer, and know what passes
        try:
            self.api = config.new_client_from_config(
                os.environ.get("KUBECONFIG"), profile.context, client_configuration=settings
            )
        except (config.ConfigException, OSError) as error:
            got, fix = f"{profile.context or 'none'} ({error})", "see `kubectl config get-contexts`"
            expected = "a context of your kubeconfig"
            raise InputError(
                expected=expected, got=got, path=path, key="context", fix=fix
            ) from None
        # Called before each call, with whether it changes something; raises to forbid it.
        self.guard: Callable[[bool], None] = lambda changes: None
        # Called with what ended a wait; returns what there is to raise.
        self.explain: Callable[[KvabError], KvabError] = lambda error: error
        weakref.finalize(self, self.api.rest_client.pool_manager.clear)

    def with_short_limits(self) -> Kube:
        """Return the same client with short limits, for what may be left out."""
        other = copy.copy(self)
        other.limits = self.limits.model_copy(update={"retry_s": min(5, self.limits.retry_s)})
        return other

    def call(self, method: str, path: str, what: str, body: object = None, **query: str) -> Object:
        """Return the answer of one call, parsed.

        Raises
        ------
        InputError
            If the API server finds the manifest wrong.
        DependencyError
            If it rejects the call, does not answer in time or has no such object.
        """
        self.guard(method != "GET")
        with explaining(what):
            text = self.retried(lambda: self._send(method, path, query, body))
        try:
            answer: Object = json.loads(text)
        except ValueError:
            raise DependencyError(
                f"{what}: expected JSON of the API server, got {' '.join(text[:80].split())!r}; is "
                "there a proxy on the way?"
            ) from None
        return answer

    def retried(self, once: Callable[[], T]) -> T:
        """Return what a call returns, repeated while its failure may pass."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(passes),
            stop=tenacity.stop_after_delay(self.limits.retry_s),
            wait=tenacity.wait_exponential(multiplier=self.limits.poll_s / 10, max=10),
            reraise=True,
        )
        return retrying(once)

    def _send(self, method: str, path: str, query: Object, body: object = None) -> str:
        (answer, _, headers) = self.api.call_api(
            path,
            method,
            query_params=list(query.items()),
            header_params={"Accept": "*/*", "Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _request_timeout=CALL_S,
        )
        for text in WARNING.findall(headers.get("Warning", "")):
            _warn(text)
        return str(answer.data, "utf-8", "replace")

    def path(self, kind: str, name: str = "", version: str = "") -> str:
        """Return the path of a kind, or of one object of it, in the version that is stored."""
        if kind in (DEPLOYMENT, COMPONENT):
            version = version or f"nvidia.com/{self.version}"
        version = version or GROUPS.get(kind, "v1")
        root = f"/api/{version}" if version == "v1" else f"/apis/{version}"
        inside = "" if kind in CLUSTER_WIDE else f"/namespaces/{self.namespace}"
        plural = kind.lower() + ("es" if kind.endswith("s") else "s")
        return f"{root}{inside}/{plural}" + (f"/{name}" if name else "")

    @cached_property
    def versions(self) -> Objects:
        """The versions of Dynamo's kind that are defined, none if there is no operator."""
        definition = self.get("CustomResourceDefinition", DEFINITION)
        return manifests.at(definition, "spec.versions") or []

    @cached_property
    def version(self) -> str:
        """The version of Dynamo's kinds that the cluster stores; the other is deprecated there."""
        try:
            stored = [version["name"] for version in self.versions if version.get("storage")]
        except DependencyError:
            stored = []  # not allowed to read it: every operator serves the first version
        return "v1beta1" if "v1beta1" in stored else "v1alpha1"

    def form(self, manifest: Object) -> Object:
        """Return a manifest in the version that the cluster stores, as it is where it has none."""
        if manifest["kind"] != DEPLOYMENT or self.version == "v1alpha1":
            return manifest
        try:
            return manifests.to_beta(manifest)
        except InputError:
            return manifest  # which is served as well

    def get(self, kind: str, name: str) -> Object | None:
        """Return an object, None if there is none."""
        try:
            return self.call("GET", self.path(kind, name), f"{kind} {name}")
        except Missing:
            return None

    def list(self, kind: str, selector: str = "") -> Objects:
        """Return the objects of a kind that a label selector chooses."""
        query = {"labelSelector": selector} if selector else {}
        return self.call("GET", self.path(kind), f"list of {kind}", **query)["items"]

    def create(self, manifest: Object, *, dry_run: bool = False) -> Object:
        """Create an object under strict validation and return it.

        An object that is there already and carries the same run's labels is the one that an
        earlier try of this call made, whose answer was lost.
        """
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        query = {"fieldValidation": "Strict", "fieldManager": "kvab"}
        query |= {"dryRun": "All"} if dry_run else {}
        manifest = self.form(manifest)
        path = self.path(kind, version=manifest["apiVersion"])
        try:
            return self.call("POST", path, f"{kind} {name}", manifest, **query)
        except Existing:
            present = self.get(kind, name)
            ours = manifest["metadata"].get("annotations") or {}
            theirs = manifests.at(present, "metadata.annotations") or {}
            if dry_run or (ours and ours.items() <= theirs.items()):
                return present or manifest
            raise

    def replace(self, manifest: Object) -> Object:
        """Replace exactly the version that the manifest was made of, and return the new one.

        Raises
        ------
        Existing
            If there is a newer one.
        """
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        path = self.path(kind, name)
        return self.call("PUT", path, f"{kind} {name}", manifest, fieldManager="kvab")

    def delete(self, kind: str, name: str, uid: str) -> None:
        """Ask for the deletion of exactly this object; its children follow in the background.

        Another object of the same name, or none, is no error.
        """
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        with suppress(Missing, Existing):
            self.call("DELETE", self.path(kind, name), f"{kind} {name}", body)

    def log(self, pod: str, container: str, *, previous: bool = False, lines: int = 2000) -> str:
        """Return the end of a container's log without its secrets, empty if there is none."""
        query = {"container": container, "tailLines": lines, "previous": str(previous).lower()}
        try:
            return mask(self._send("GET", self.path("Pod", pod) + "/log", query))
        except FAILURES:
            return ""

    def proxy(self, service: str, path: str, body: object = None) -> tuple[int, str]:
        """Return status and text that a Service's port 8000 answers, 0 if it cannot be reached."""
        where = f"/api/v1/namespaces/{self.namespace}/services/{service}:8000/proxy/{path}"
        try:
            return 200, self._send("GET" if body is None else "POST", where, {}, body)
        except FAILURES as error:
            return getattr(error, "status", 0) or 0, message(error)


FRAME_BYTES = 64 * 2**10
HANDSHAKE_S = 20.0
# The last three are those of `returncode` where no status was sent.
STREAM_ERRORS = (websocket.WebSocketException, OSError, TypeError, LookupError, ValueError)


class Failed(DependencyError):
    """The command ran and failed."""


def main_container(pod: Object) -> str:
    """Return the name of the container that does the work: the operator calls it main."""
    names: list[str] = [container["name"] for container in pod["spec"]["containers"]]
    return "main" if "main" in names else names[0]


class Pod:
    """Commands in the main container of a pod."""

    def __init__(self, kube: Kube, pod: Object) -> None:
        self.kube, self.name, self.container = kube, pod["metadata"]["name"], main_container(pod)

    def run(self, *command: str, stdin: bytes = b"", timeout_s: float = 300) -> bytes:
        """Return what a command writes to its standard output; it is repeated if a stream breaks.

        Raises
        ------
        Failed
            If the command failed.
        DependencyError
            If no connection could be opened, or every one was lost.
        """
        with explaining(f"exec in pod {self.name}"):
            return self.kube.retried(lambda: self._once(command, stdin, timeout_s))

    def _once(self, command: tuple[str, ...], stdin: bytes, timeout_s: float) -> bytes:
        opened, out, deadline = self._open(command), bytearray(), time.monotonic() + timeout_s
        try:
            for start in range(0, len(stdin), FRAME_BYTES):
                opened.write_stdin(stdin[start : start + FRAME_BYTES])
            while opened.is_open():
                opened.update(timeout=1)
                out += opened.read_channel(1) or b""
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{command[0]} took over {timeout_s:g} s")
            out += opened.read_channel(1) or b""
            error_text = (opened.read_channel(2) or b"").decode("utf-8", "replace").strip()
            code = opened.returncode
        except STREAM_ERRORS as error:
            raise ConnectionError(f"the connection was lost ({error})") from None
        finally:
            with suppress(websocket.WebSocketException, OSError):
                opened.close()
                opened.sock.shutdown()  # what `close` leaves out where the other side was first
        if code:
            arguments = command[4:] if command[1:2] == ("-c",) else command[1:]  # no script's text
            raise Failed(
                f"pod {self.name}: {command[0]} {' '.join(arguments)}: exit code {code}: "
                f"{mask(error_text) or 'it said nothing'}; is the volume full, or changed "
                "meanwhile?"
            )
        return bytes(out)

    def _open(self, command: tuple[str, ...]) -> WSClient:
        websocket.setdefaulttimeout(HANDSHAKE_S)
        try:
            opened = stream(
                client.CoreV1Api(self.kube.api).connect_get_namespaced_pod_exec,
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
            raise _unopened(error.__context__) from None
        opened.sock.settimeout(None)
        return opened


def _unopened(cause: BaseException | None) -> BaseException:
    """Return a failed handshake as a failed call: its status and words, not its headers."""
    if not isinstance(cause, Exception):  # the client takes Ctrl-C for a failed handshake
        return cause or ConnectionError("no connection")
    if not (status := getattr(cause, "status_code", 0)):
        return ConnectionError(str(cause))
    body = (getattr(cause, "resp_body", None) or b"").decode("utf-8", "replace")
    plain = ApiException(status=status, reason=body or getattr(cause, "status_message", ""))
    plain.body = body
    return plain
