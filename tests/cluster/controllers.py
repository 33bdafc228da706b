"""The controllers of the emulated cluster: scheduler, kubelet, Jobs, ReplicaSets, the operator.

The operator plays the status sequences that were read from its sources; what goes wrong goes wrong
because something of the cluster is changed (a secret deleted, a GPU taken), or a `Script` says so.
"""

import asyncio
import contextlib
import copy
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from store import Conflict, now

FINALIZER = "nvidia.com/finalizer"
OWNER = "nvidia.com/dynamo-graph-deployment-name"
INDEX = "batch.kubernetes.io/job-completion-index"
NAMESPACE = "dynamo-study"
BETA = "nvidia.com/v1beta1"


@dataclass
class Script:
    """What departs from the usual course."""

    start_s: float = 0.05
    tick_s: float = 0.02
    operator_up: bool = True
    on_deploy: Any = None
    pods: dict = field(default_factory=dict)
    status: Any = None
    images: tuple = ("1.3.1", "slim-bookworm", "1.4.0")
    started: dict = field(default_factory=dict)


class Controllers:
    """All controllers in one loop over the store."""

    def __init__(self, server, node):
        self.server, self.store, self.node, self.script = server, server.store, node, Script()
        self.running, self.codes = {}, {}
        self.admitted, self.tasks, self.failing = [], [], {}

    def start(self):
        self.server.admission.append(self.admit)
        self.task = asyncio.ensure_future(self.loop())

    def stop(self):
        self.task.cancel()

    async def loop(self):
        while True:
            before = len(self.store.history)
            with contextlib.suppress(Conflict):
                self.step()
            quiet = len(self.store.history) == before
            await asyncio.sleep((3 if quiet else 1) * self.script.tick_s)

    def step(self):
        self.store.collect_garbage()
        for job in self.store.find("jobs"):
            self.job(job)
        if self.script.operator_up:
            for deployment in self.store.find("dynamographdeployments"):
                self.deployment(deployment)
        for deployment in self.store.find("deployments"):
            self.rollout(deployment)
        for pod in self.store.find("pods"):
            self.pod(pod)
        alive = {pod["metadata"]["name"] for pod in self.store.find("pods")}
        for name in set(self.running) - alive:
            self.running.pop(name)
            self.node.kill(name)

    def admit(self, plural, manifest):
        """The operator's webhooks: a version stamped, a tag that is no version refused."""
        if plural != "dynamographdeployments" or not self.script.operator_up:
            return None
        for denied in self.admitted:
            return denied
        annotations = manifest["metadata"].setdefault("annotations", {})
        annotations["nvidia.com/dynamo-operator-origin-version"] = f"{self.server.operator}.0"
        manifest["metadata"]["finalizers"] = [FINALIZER]
        for part in parts(manifest):
            tag = part.image.rpartition(":")[2]
            if not re.match(r"\d+\.\d+\.\d+", tag) and not part.runtime:
                text = f"{part.name}: runtimeVersionOverride is required"
                webhook = 'admission webhook "vdynamographdeployment.kb.io" denied the request: '
                return 403, webhook + text
        return None

    # --- Jobs -------------------------------------------------------------------------------

    def job(self, job):
        metadata, name = job["metadata"], job["metadata"]["name"]
        if job.get("status", {}).get("conditions"):
            return
        own = [pod for pod in self.store.find("pods")
               if pod["metadata"]["labels"].get("job-name") == name]  # fmt: skip
        if job["spec"].get("completionMode") == "Indexed":
            # Pods of a deleted Job of this name stay until they are collected.
            if all(pod["metadata"]["ownerReferences"][0]["uid"] == metadata["uid"] for pod in own):
                self.indexed(job, own)
            return
        if not own and metadata["uid"] in self.script.started and not job["spec"]["backoffLimit"]:
            text = "Job has reached the specified backoff limit"  # its pod was removed
            self.finish(job, "Failed", "BackoffLimitExceeded", text)
            return
        if not own:
            if self.spawn(job, f"{name}-{metadata['uid'][:5]}"):
                self.script.started[metadata["uid"]] = asyncio.get_event_loop().time()
            return
        passed = asyncio.get_event_loop().time() - self.script.started.get(metadata["uid"], 1e12)
        phase = own[0].get("status", {}).get("phase")
        if passed > job["spec"]["activeDeadlineSeconds"]:
            self.finish(job, "Failed", "DeadlineExceeded", "Job was active longer than deadline")
            self.store.delete("pods", NAMESPACE, own[0]["metadata"]["name"])
        elif phase == "Succeeded":
            self.finish(job, "Complete", "Completed", "")
        elif phase == "Failed":
            text = "Job has reached the specified backoff limit"
            self.finish(job, "Failed", "BackoffLimitExceeded", text)

    def spawn(self, job, name, index=None):
        """Create a pod of a Job; one of an Indexed Job learns its index."""
        template, of = copy.deepcopy(job["spec"]["template"]), job["metadata"]
        template["metadata"] |= {
            "name": name,
            "ownerReferences": [{"uid": of["uid"], "kind": "Job", "name": of["name"]}],
        }
        template["metadata"]["labels"]["job-name"] = of["name"]
        if index is not None:
            template["metadata"]["annotations"] = {INDEX: str(index)}
            variable = {"name": "JOB_COMPLETION_INDEX", "value": str(index)}
            template["spec"]["containers"][0].setdefault("env", []).append(variable)
        return self.create_pod("Job", job, {"kind": "Pod", **template})

    def create_pod(self, kind, owner, pod):
        """Create a pod for its owner, whose event tells when it was not admitted or is at last."""
        name, space, uid = (owner["metadata"][key] for key in ("name", "namespace", "uid"))
        denied = self.server.admitted("pods", pod, space)
        said = f"Error creating: {denied[1]}" if denied else ""
        if said != self.failing.get(uid, ""):
            text = said or f"Created pod: {pod['metadata']['name']}"
            reason = "FailedCreate" if said else "SuccessfulCreate"
            self.server.event(name, reason, text, space, kind)
            self.failing[uid] = said
        return None if denied else self.store.create("pods", space, pod)

    def rollout(self, held):
        """Make the pods of a Deployment that was created with a template, and count the ready."""
        if "spec" not in held:
            return
        metadata, spec = held["metadata"], held["spec"]
        owner = self.child("ReplicaSet", f"{metadata['name']}-5c9d", held)
        ready = 0
        for number in range(spec["replicas"]):
            name, template = f"{metadata['name']}-{number}", copy.deepcopy(spec["template"])
            template["metadata"] |= {
                "name": name, "namespace": metadata["namespace"],
                "ownerReferences": [{"uid": owner["metadata"]["uid"]}],
            }  # fmt: skip
            pod = self.store.get("pods", metadata["namespace"], name) or self.create_pod(
                "ReplicaSet", owner, {"kind": "Pod", **template}
            )
            ready += (pod or {}).get("status", {}).get("phase") == "Running"
        if (held.get("status") or {}).get("readyReplicas") != ready:
            self.store.change("deployments", held, status={"readyReplicas": ready})

    def indexed(self, job, own):
        """Take an Indexed Job one step further: a pod an index, each with tries of its own."""
        spec, name = job["spec"], job["metadata"]["name"]
        phases = {index: [] for index in range(spec["completions"])}
        for pod in own:
            index = int(pod["metadata"]["annotations"][INDEX])
            phases[index].append(pod.get("status", {}).get("phase"))
        done = [index for index, seen in phases.items() if "Succeeded" in seen]
        failed = [index for index, seen in phases.items()
                  if seen.count("Failed") > spec["backoffLimitPerIndex"]]  # fmt: skip
        active = sum(phase in (None, "Pending", "Running") for seen in phases.values()
                     for phase in seen)  # fmt: skip
        for index, seen in phases.items():
            waits = index not in done + failed and set(seen) <= {"Failed"}
            if waits and active < spec["parallelism"]:
                self.spawn(job, f"{name}-{index}-{len(seen)}", index)
                active += 1
        status = {"completedIndexes": ranges(done), "failedIndexes": ranges(failed)}
        if status != job.get("status"):
            job = self.store.change("jobs", job, status=status)
        if len(done + failed) == spec["completions"]:
            text = "Job has failed indexes"
            end = ("Failed", "FailedIndexes", text) if failed else ("Complete", "Completed", "")
            self.finish(job, *end)

    def finish(self, job, kind, reason, message):
        condition = {"type": kind, "status": "True", "reason": reason, "message": message}
        status = {**job.get("status", {}), "conditions": [condition]}
        self.store.change("jobs", job, status=status)

    # --- pods -------------------------------------------------------------------------------

    def pod(self, pod):
        """Take a pod one step further."""
        name, status = pod["metadata"]["name"], pod.get("status") or {}
        if status.get("phase") in ("Succeeded", "Failed"):
            return
        for pattern, scripted in self.script.pods.items():
            if re.search(pattern, name):
                wanted = scripted(pod) if callable(scripted) else scripted
                if wanted is not None and status != wanted:
                    self.store.change("pods", pod, status=wanted)
                if wanted is not None:
                    return
        node, why = self.place(pod)
        if why:
            self.become(pod, pending(False, "Unschedulable", why))
        elif problem := self.problem(pod):
            self.become(pod, pending(True, container=self.container(pod, waiting=problem)), node)
        elif pod["metadata"]["uid"] in self.codes:
            self.ended(pod, self.codes[pod["metadata"]["uid"]])
        elif name not in self.running:
            self.running[name] = asyncio.get_event_loop().time()
            self.become(pod, pending(True), node)
            if "job-name" in pod["metadata"]["labels"]:
                self.tasks.append(asyncio.ensure_future(self.execute(pod)))
        elif asyncio.get_event_loop().time() - self.running[name] > self.script.start_s:
            if not status.get("phase") == "Running":
                self.become(pod, running(self.container(pod)))

    def become(self, pod, status, node=None):
        spec = pod["spec"] if node is None else {**pod["spec"], "nodeName": node}
        if pod.get("status") != status or pod["spec"] != spec:
            self.store.change("pods", pod, status=status, spec=spec)

    async def execute(self, pod):
        await asyncio.sleep(self.script.start_s)
        if pod["metadata"]["name"] not in self.running:
            return  # deleted before it started
        self.codes[pod["metadata"]["uid"]] = await self.node.start(pod)

    def ended(self, pod, code):
        state = {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed"}}
        self.become(pod, {
            "phase": "Failed" if code else "Succeeded",
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [{**self.container(pod), "state": state}],
        })  # fmt: skip

    def container(self, pod, waiting=None):
        first = pod["spec"]["containers"][0]
        made = {"name": first["name"], "image": first["image"], "restartCount": 0}
        if waiting:
            return made | {"state": {"waiting": waiting}, "ready": False}
        made["imageID"] = f"{first['image'].partition(':')[0]}@sha256:{'ab' * 32}"
        return made | {"state": {"running": {}}, "ready": True}

    def place(self, pod):
        """Return a node that fits, or why none does."""
        space = pod["metadata"]["namespace"]
        for volume in pod["spec"].get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and not self.store.get("persistentvolumeclaims", space, claim):
                return None, f'0/2 nodes are available: persistentvolumeclaim "{claim}" not found.'
        if pod["spec"].get("nodeName"):
            return pod["spec"]["nodeName"], ""
        asked = pod["spec"]["containers"][0].get("resources", {}).get("limits", {})
        missing = ""
        for node in self.store.find("nodes"):
            free = dict(node["status"]["allocatable"])
            for other in self.store.find("pods"):
                if other["spec"].get("nodeName") == node["metadata"]["name"]:
                    held = other["spec"]["containers"][0].get("resources", {}).get("limits", {})
                    for resource, count in held.items():
                        free[resource] = int(free.get(resource, 0)) - int(count)
            short = [r for r, n in asked.items() if int(free.get(r, 0)) < int(n)]
            if not short:
                return node["metadata"]["name"], ""
            missing = f"0/2 nodes are available: 2 Insufficient {short[0]}."
        return None, missing

    def problem(self, pod):
        """Return what keeps the kubelet from starting a pod's container."""
        container, space = pod["spec"]["containers"][0], pod["metadata"]["namespace"]
        for source in container.get("envFrom", []):
            name = source["secretRef"]["name"]
            if not self.store.get("secrets", space, name):
                text = f'secret "{name}" not found'
                return {"reason": "CreateContainerConfigError", "message": text}
        if not container["image"].endswith(self.script.images):
            text = f'Back-off pulling image "{container["image"]}": not found'
            return {"reason": "ImagePullBackOff", "message": text}
        return None

    # --- Dynamo's operator ------------------------------------------------------------------

    def deployment(self, held):
        metadata = held["metadata"]
        if metadata.get("deletionTimestamp"):
            freed = copy.deepcopy(held)
            freed["metadata"]["finalizers"] = []
            self.store.update("dynamographdeployments", freed)
            for part in self.store.find("dynamocomponentdeployments"):
                freed = copy.deepcopy(part)
                freed["metadata"]["finalizers"] = []
                self.store.update("dynamocomponentdeployments", freed)
            return
        if "status" not in held:
            if self.script.on_deploy:
                self.script.on_deploy(self)
            self.store.change("dynamographdeployments", held, status={"state": "initializing"})
            return
        space = metadata["namespace"]
        claims = [claim for part in parts(held) for claim in part.claims]
        missing = [c for c in claims if not self.store.get("persistentvolumeclaims", space, c)]
        if missing:
            text = f'legacy top-level PVC "{missing[0]}" does not exist and create is not enabled'
            ready = condition("False", "failed_to_reconcile_the_resources", text)
            self.report(held, {"state": "failed", "conditions": [ready]})
            return
        pods = self.components(held)
        self.report(held, self.status(held, pods))

    def report(self, held, status):
        if self.server.operator != "1.1":
            status["observedGeneration"] = held["metadata"]["generation"]
        if self.script.status:
            status = self.script.status(held, status)
        if held["status"] != status:
            self.store.change("dynamographdeployments", held, status=status)

    def components(self, held):
        name, space = held["metadata"]["name"], held["metadata"]["namespace"]
        made = []
        for part in parts(held):
            own = f"{name}-{part.name.lower()}"
            owner = self.store.get("dynamocomponentdeployments", space, own)
            if owner is None:
                owner = self.store.create("dynamocomponentdeployments", space, {
                    "kind": "DynamoComponentDeployment",
                    "metadata": {"name": own, "labels": {OWNER: name}, "finalizers": [FINALIZER],
                                 "ownerReferences": [{"uid": held["metadata"]["uid"]}]},
                })  # fmt: skip
            owner = self.child("Deployment", own, owner)
            owner = self.child("ReplicaSet", f"{own}-7d4b9c", owner)
            for number in range(part.replicas):
                pod = f"{own}-{number}"
                found = self.store.get("pods", space, pod) or self.create_pod(
                    "ReplicaSet", owner, self.rendered(held, part, pod, owner)
                )
                made += [found] if found else []
        return made

    def child(self, kind, name, owner):
        """Return an object that an owner makes for its pods."""
        space, plural = owner["metadata"]["namespace"], f"{kind.lower()}s"
        metadata = {"name": name, "ownerReferences": [{"uid": owner["metadata"]["uid"]}]}
        return self.store.get(plural, space, name) or self.store.create(
            plural, space, {"kind": kind, "metadata": metadata}
        )

    def rendered(self, held, part, name, owner):
        container = {"name": "main", "image": part.image, "resources": {"limits": part.limits}}
        if part.secret:
            container["envFrom"] = [{"secretRef": {"name": part.secret}}]
        volumes = [{"name": c, "persistentVolumeClaim": {"claimName": c}} for c in part.claims]
        labels = {
            OWNER: held["metadata"]["name"],
            "nvidia.com/dynamo-component": part.name,
            "nvidia.com/dynamo-component-type": part.kind,
        }
        return {
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels,
                         "ownerReferences": [{"uid": owner["metadata"]["uid"]}]},
            "spec": {"containers": [container], "volumes": volumes},
        }  # fmt: skip

    def status(self, held, pods):
        services, waiting = {}, []
        name = "components" if held["apiVersion"] == BETA else "services"
        for part in parts(held):
            key, wanted = part.name, part.replicas
            own = [p for p in pods if p["metadata"]["labels"]["nvidia.com/dynamo-component"] == key]
            up = sum(p.get("status", {}).get("phase") == "Running" for p in own)
            services[key] = {"componentKind": "Deployment", "replicas": wanted,
                             "updatedReplicas": wanted, "readyReplicas": up}  # fmt: skip
            if up < wanted:
                waiting.append(f"{key.lower()}: {up} of {wanted} ready")
        if waiting:
            text = "Resources not ready: " + "; ".join(waiting)
            ready = condition("False", "some_resources_are_not_ready", text)
            return {"state": "pending", "conditions": [ready], name: services}
        ready = condition("True", "all_resources_are_ready", "All resources are ready")
        return {"state": "successful", "conditions": [ready], name: services}


class Part(NamedTuple):
    """What the operator renders of a component, whichever form it was written in."""

    name: str
    kind: str
    replicas: int
    image: str
    args: list
    limits: dict
    secret: str
    claims: list
    runtime: str


def parts(deployment):
    """Return the components of a deployment: read here on its own, as the operator would."""
    spec = deployment["spec"]
    if deployment["apiVersion"] == BETA:
        return [native(component) for component in spec["components"]]
    return [flat(name, service) for name, service in spec["services"].items()]


def flat(name, service):
    main, limits = service["extraPodSpec"]["mainContainer"], service["resources"]["limits"]
    gpus = {"nvidia.com/gpu": limits["gpu"]} if "gpu" in limits else {}
    return Part(
        name,
        service.get("subComponentType") or service["componentType"],
        service.get("replicas", 1),
        main["image"],
        main["args"],
        gpus | limits.get("custom", {}),
        service.get("envFromSecret", ""),
        [mount["name"] for mount in service.get("volumeMounts", [])],
        service.get("runtimeVersionOverride", ""),
    )


def native(component):
    pod = component["podTemplate"]["spec"]
    (main,) = (each for each in pod["containers"] if each["name"] == "main")
    limits = {key: n for key, n in main["resources"]["limits"].items() if "/" in key}
    claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod.get("volumes", [])}
    cache = [component["compilationCache"]["pvcName"]] if "compilationCache" in component else []
    return Part(
        component["name"],
        component["type"],
        component.get("replicas", 1),
        main["image"],
        main["args"],
        limits,
        main["envFrom"][0]["secretRef"]["name"] if "envFrom" in main else "",
        [claims[mount["name"]] for mount in main.get("volumeMounts", [])] + cache,
        component.get("runtimeVersionOverride", ""),
    )


def ranges(indexes):
    """Return indexes as a Job's status lists them, such as ``0,3-5``."""
    ends = []
    for index in sorted(indexes):
        if ends and index == ends[-1][1] + 1:
            ends[-1][1] = index
        else:
            ends.append([index, index])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in ends)


def condition(status, reason, message):
    return {"type": "Ready", "status": status, "reason": reason, "message": message}


def pending(scheduled, reason="", message="", container=None):
    placed = {"type": "PodScheduled", "status": "True" if scheduled else "False"}
    if not scheduled:
        placed |= {"reason": reason, "message": message}
    made = {"phase": "Pending", "conditions": [placed]}
    return made | ({"containerStatuses": [container]} if container else {})


def running(container, ready=True):
    conditions = [{"type": "PodScheduled", "status": "True"},
                  {"type": "Ready", "status": "True" if ready else "False"}]  # fmt: skip
    return {"phase": "Running", "conditions": conditions, "containerStatuses": [container],
            "startTime": now()}  # fmt: skip
