"""A Kubernetes API server of the tests, on a real socket: what the real client sends, it answers.

Resource versions, watches that drop and expire, conflicts, server-side dry run under strict
validation, exec over WebSocket, logs, service proxy, finalizers, deletion, access rules.
"""

import asyncio
import json
import re
import threading
from dataclasses import dataclass

from aiohttp import web
from policies import rejected
from schemas import definition, problems
from store import Conflict, Store, now

PATH = re.compile(
    r"^/(?:api/v1|apis/(?P<group>[^/]+)/(?P<version>[^/]+))"
    r"(?:/namespaces/(?P<namespace>[^/]+)(?=/))?/(?P<plural>[a-z]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+)(?:/(?P<rest>.*))?)?$"
)
TOKEN = "secret-token-of-the-test"
WATCH_S = 0.15  # a server may end a watch at any time; here it does so soon
CLUSTER_WIDE = ("namespaces", "nodes", "storageclasses", "customresourcedefinitions")
RESOURCES = {
    "v1": {"pods": "Pod", "configmaps": "ConfigMap", "secrets": "Secret", "events": "Event",
           "persistentvolumeclaims": "PersistentVolumeClaim", "namespaces": "Namespace",
           "nodes": "Node", "services": "Service"},
    "apps/v1": {"deployments": "Deployment", "replicasets": "ReplicaSet"},
    "batch/v1": {"jobs": "Job"},
    "coordination.k8s.io/v1": {"leases": "Lease"},
    "storage.k8s.io/v1": {"storageclasses": "StorageClass"},
}  # fmt: skip
for dynamo in ("nvidia.com/v1beta1", "nvidia.com/v1alpha1"):
    RESOURCES[dynamo] = {"dynamographdeployments": "DynamoGraphDeployment",
                         "dynamocomponentdeployments": "DynamoComponentDeployment"}  # fmt: skip
KINDS = {plural: kind for held in RESOURCES.values() for plural, kind in held.items()}
EVERYTHING = ("pods", "jobs", "dynamographdeployments", "dynamocomponentdeployments")


@dataclass
class Fault:
    """An answer instead of the true one, some times; ``cut`` ends an exec after so many bytes."""

    method: str
    path: str
    status: int = 0
    message: str = ""
    times: int = 1
    cut: int | None = None

    def hits(self, method, path):
        if self.times and method == self.method and re.search(self.path, path):
            self.times -= 1
            return True
        return False


def failure(status, message, reason="", headers=None):
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": status,
    }
    return web.json_response(body, status=status, headers=headers)


def discovered(path):
    """Return what a client that does not know the API reads of it; nothing on other paths."""
    groups = [version.split("/") for version in RESOURCES if "/" in version]
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        told = {}
        for group, version in groups:
            served = {"groupVersion": f"{group}/{version}", "version": version}
            told.setdefault(group, []).append(served)
        listed = [{"name": group, "versions": versions, "preferredVersion": versions[0]}
                  for group, versions in told.items()]  # fmt: skip
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    version = path.removeprefix("/apis/").removeprefix("/api/")
    if version not in RESOURCES:
        return None
    made = [
        {
            "name": plural,
            "singularName": kind.lower(),
            "kind": kind,
            "namespaced": plural not in CLUSTER_WIDE,
            "verbs": ["get", "list", "watch", "create", "delete"],
            "categories": ["all"] if plural in EVERYTHING else [],
        }
        for plural, kind in RESOURCES[version].items()
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version,
            "resources": made}  # fmt: skip


class ApiServer:
    """The server in a thread of its own; ``node`` runs pods, ``rules`` say who may do what."""

    def __init__(self, operator="1.5"):
        self.store, self.operator, self.node = Store(), operator, None
        self.faults, self.rules, self.used, self.seen = [], None, set(), []
        self.admission = []
        self.open = False  # to who brings no token
        self.ready = threading.Event()

    def start(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self.ready.wait(10)

    def _run(self):
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._serve())
        self.loop.run_forever()

    async def _serve(self):
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self.handle)
        self.runner = web.AppRunner(app, shutdown_timeout=0.01, access_log=None)
        await self.runner.setup()
        self.site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await self.site.start()
        self.port = self.runner.addresses[0][1]
        self.ready.set()

    def do(self, function, *given):
        """Run a function in the server's thread and return its result."""

        async def call():
            result = function(*given)
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(30)

    def stop(self):
        async def end():
            await self.runner.cleanup()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0)

        self.do(end)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5)

    async def handle(self, request):
        method, path = request.method, request.path
        self.seen.append((method, request.path_qs))
        if path.startswith("/frontends/"):  # what pods reach by the Service's name
            _, _, service, rest = path.split("/", 3)
            return await self.node.serve(request, service, rest)
        if not self.open and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return failure(401, "Unauthorized", "Unauthorized")
        for fault in self.faults:
            if fault.cut is None and fault.hits(method, path):
                if not fault.status:
                    request.transport.close()
                    return web.Response()
                headers = {"Retry-After": "1"} if fault.status == 429 else None
                return failure(fault.status, fault.message or "fault", headers=headers)
        if path == "/version":
            return web.json_response({"gitVersion": "v1.33.4", "major": "1", "minor": "33"})
        if found := discovered(path):
            return web.json_response(found)
        if path.endswith("/selfsubjectaccessreviews"):
            return await self.review(request)
        match = PATH.match(path)
        if not match:
            return failure(404, f"no such path {path}")
        asked = match.groupdict()
        answer = await self.resource(request, **asked)
        if asked["group"] == "nvidia.com" and (text := self.deprecated(asked["version"])):
            answer.headers["Warning"] = f'299 - "{text}"'
        return answer

    def deprecated(self, version):
        """Return what the definition says of a version that is deprecated."""
        return self.served()[version].get("deprecationWarning")

    def served(self):
        return {each["name"]: each for each in definition(self.operator)["spec"]["versions"]}

    async def review(self, request):
        body = await request.json()
        asked = body["spec"]["resourceAttributes"]
        resource = asked["resource"] + (
            "/" + asked["subresource"] if "subresource" in asked else ""
        )
        verdict = self.allowed(asked.get("group", ""), resource, asked["verb"], asked.get("name"))
        return web.json_response({**body, "status": {"allowed": verdict}})

    def allowed(self, group, resource, verb, name):
        if self.rules is None:
            return True
        return any(
            group in rule["apiGroups"]
            and resource in rule["resources"]
            and verb in rule["verbs"]
            and (not rule.get("resourceNames") or name in rule["resourceNames"])
            for rule in self.rules
        )

    async def resource(self, request, group, version, namespace, plural, name, sub, rest):
        if plural == "namespaces" and not name and namespace:
            plural, name, namespace = "namespaces", namespace, None
        verb = {"GET": "get", "POST": "create", "PUT": "update", "DELETE": "delete"}[request.method]
        if verb == "get" and not name:
            verb = "watch" if request.query.get("watch") in ("true", "True", "1") else "list"
        resource = f"{plural}/{sub}" if sub and sub != "status" else plural
        if not self.allowed(group or "", resource, verb, name):
            who = f'User "tester" cannot {verb} resource "{resource}" in API group "{group or ""}"'
            return failure(403, f"{resource} is forbidden: {who}", "Forbidden")
        self.used.add((group or "", resource, verb))
        if sub == "exec":  # since 1.35 the upgrade of a GET is asked for as the creation it is
            if not self.allowed(group or "", resource, "create", name):
                who = f'User "tester" cannot create resource "{resource}" in API group ""'
                return failure(403, f'pods "{name}" is forbidden: {who}', "Forbidden")
            self.used.add((group or "", resource, "create"))
        if plural == "customresourcedefinitions":
            return web.json_response(self.defined())
        if group == "nvidia.com" and version not in self.served():
            return failure(404, "the server could not find the requested resource", "NotFound")
        space = None if plural in CLUSTER_WIDE else namespace
        if verb == "watch":
            return await self.watch(request, plural, space)
        if verb == "list":
            return self.list(request, f"{group}/{version}" if group else "v1", plural, space)
        if verb == "create" and not name:
            return await self.create(request, plural, space)
        name = name.partition(":")[0] if plural == "services" else name
        if sub == "proxy":
            return await self.node.serve(request, name, rest)
        held = self.store.get(plural, space or "", name)
        if held is None and verb == "update" and plural == "leases":
            body = await request.json()  # a PUT may create one, unless it names another's uid
            if "uid" not in body["metadata"]:
                return web.json_response(self.store.create(plural, space, body), status=201)
            return failure(409, "Precondition failed: UID in precondition", "Conflict")
        if held is None:
            return failure(404, f'{plural} "{name}" not found', "NotFound")
        if sub == "log":
            return self.log(request, held)
        if sub == "exec":
            return await self.exec(request, held)
        if verb == "delete":
            return await self.delete(request, plural, held)
        if verb == "update":
            try:
                return web.json_response(self.store.update(plural, await request.json()))
            except Conflict as error:
                return failure(409, str(error), "Conflict")
        return web.json_response(held)

    def defined(self):
        whole = definition(self.operator)
        versions = [
            {key: each[key] for key in ("name", "served", "storage")}
            for each in whole["spec"]["versions"]
        ]
        labels = {"app.kubernetes.io/managed-by": "kvab-tests"}
        metadata = {**whole["metadata"], "labels": labels}
        return {**whole, "metadata": metadata, "spec": {**whole["spec"], "versions": versions}}

    def chosen(self, request, plural, space):
        wanted = dict(
            part.split("=", 1) for part in request.query.get("labelSelector", "").split(",") if part
        )
        return [
            held
            for held in self.store.find(plural, space)
            if wanted.items() <= (held["metadata"].get("labels") or {}).items()
        ]

    def list(self, request, of, plural, space):
        found = self.chosen(request, plural, space)
        version = str(next(self.store.version))
        body = {"kind": f"{KINDS[plural]}List", "apiVersion": of}
        items = [{"apiVersion": of, "kind": KINDS[plural], **held} for held in found]
        return web.json_response({**body, "metadata": {"resourceVersion": version}, "items": items})

    async def watch(self, request, plural, space):
        since = int(request.query.get("resourceVersion") or 0)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if since < self.store.oldest:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
            await response.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return response
        assert int(request.query["timeoutSeconds"]) >= 1
        end = self.loop.time() + WATCH_S
        while self.loop.time() < end:
            matching = {held["metadata"]["uid"] for held in self.chosen(request, plural, space)}
            for number, kind, key, held in list(self.store.history):
                if number <= since or key[0] != plural:
                    continue
                since = number
                if held["metadata"]["uid"] in matching or kind == "DELETED":
                    line = json.dumps({"type": kind, "object": held}).encode()
                    if request.transport is None or request.transport.is_closing():
                        return response
                    await response.write(line + b"\n")
            await asyncio.sleep(0.02)
        return response

    async def create(self, request, plural, space):
        manifest = await request.json()
        if space and not self.store.get("namespaces", "", space):
            return failure(404, f'namespaces "{space}" not found', "NotFound")
        if request.query.get("fieldValidation") == "Strict" and (
            wrong := problems(self.operator, manifest)
        ):
            text = f"{manifest['kind']} in version: strict decoding error: {'; '.join(wrong)}"
            return failure(400, text, "BadRequest")
        if denied := self.admitted(plural, manifest, space):
            return failure(*denied)
        try:
            dry = request.query.get("dryRun") == "All"
            made = self.store.create(plural, space or "", manifest, dry_run=dry)
        except Conflict as error:
            return failure(409, str(error), "AlreadyExists")
        return web.json_response(made, status=201)

    def admitted(self, plural, manifest, space):
        """Return why an object is not admitted: webhooks first, then what the server checks."""
        for hook in self.admission:
            if denied := hook(plural, manifest):
                return denied
        return rejected(self.store, plural, manifest, space) if space else None

    async def delete(self, request, plural, held):
        body = await request.json() if request.can_read_body else {}
        asked = (body.get("preconditions") or {}).get("uid")
        metadata = held["metadata"]
        if asked and asked != metadata["uid"]:
            return failure(409, f"the UID in the precondition ({asked}) does not match", "Conflict")
        assert body.get("propagationPolicy") == "Background", "only deletion in the background"
        self.store.delete(plural, metadata.get("namespace", ""), metadata["name"])
        return web.json_response({"kind": "Status", "status": "Success"})

    def log(self, request, pod):
        previous = request.query.get("previous") == "true"
        text = self.node.log(pod, previous=previous)
        if text is None:
            return failure(400, "previous terminated container not found", "BadRequest")
        lines = int(request.query.get("tailLines", 10_000))
        return web.Response(text="\n".join(text.splitlines()[-lines:]) + "\n")

    async def exec(self, request, pod):
        assert "v4.channel.k8s.io" in request.headers["Sec-WebSocket-Protocol"]
        socket = web.WebSocketResponse(protocols=["v4.channel.k8s.io"])
        await socket.prepare(request)
        command = " ".join(request.query.getall("command"))
        hit = [f.cut for f in self.faults if f.cut is not None and f.hits("EXEC", command)]
        await self.node.exec(pod, request.query.getall("command"), socket, *hit[:1])
        await socket.close()
        return socket

    def event(self, name, reason, message, namespace, kind="Pod"):
        manifest = {
            "kind": "Event",
            "metadata": {"name": f"{name}.{next(self.store.version)}"},
            "involvedObject": {"kind": kind, "name": name},
            "reason": reason,
            "message": message,
            "lastTimestamp": now(),
        }
        self.store.create("events", namespace, manifest)
