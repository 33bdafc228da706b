"""Stands in for Dynamo's operator on any cluster: pods that need no GPU, for the deployments of one
namespace.

It runs beside the tests and reaches the cluster by a kubeconfig alone. The Deployments and the
Service that it makes belong to the deployment, so that the cluster's own garbage collection takes
them away.
"""

import copy
import json
import threading
from pathlib import Path

from controllers import BETA, OWNER, condition, parts
from kubernetes import config
from kubernetes.client.rest import ApiException
from schemas import definition

PYTHON = "python:3.12.12-slim-bookworm"  # as the benchmark's: one image to pull
RUNTIME = "nvcr.io/nvidia/ai-dynamo/"
MADE_BY = {"app.kubernetes.io/managed-by": "kvab-tests"}
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
APP = (Path(__file__).parent / "standin_frontend.py").read_text()


class Api:
    """Calls by path, with plain objects."""

    def __init__(self, kubeconfig):
        self.client = config.new_client_from_config(str(kubeconfig))

    def call(self, method, path, body=None, kind="application/json"):
        (answer, _, _) = self.client.call_api(
            path, method, body=body, auth_settings=["BearerToken"], _preload_content=False,
            header_params={"Accept": "application/json", "Content-Type": kind},
        )  # fmt: skip
        return json.loads(answer.data)

    def get(self, path):
        """Return an object, None if there is none."""
        try:
            return self.call("GET", path)
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def put_there(self, path, manifest):
        """Return an object, created if it was not there."""
        found = self.get(f"{path}/{manifest['metadata']['name']}")
        return found or self.call("POST", path, manifest)


def definitions():
    """Return what the stand-in serves: operator 1.5's definition, and any component deployment."""
    made = copy.deepcopy(definition("1.5"))
    made["metadata"]["labels"] = MADE_BY
    made["spec"]["conversion"] = {"strategy": "None"}
    names = {"kind": "DynamoComponentDeployment", "plural": "dynamocomponentdeployments",
             "singular": "dynamocomponentdeployment"}  # fmt: skip
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1beta1", "served": True, "storage": True,
               "schema": {"openAPIV3Schema": anything}}  # fmt: skip
    parts = {"group": "nvidia.com", "scope": "Namespaced", "names": names, "versions": [version]}
    name = {"name": "dynamocomponentdeployments.nvidia.com", "labels": MADE_BY}
    other = {**made, "metadata": name, "spec": parts}
    return [made, other]


class StandIn:
    """The operator in a thread, until it is stopped."""

    def __init__(self, api, namespace, model, poll_s=0.3):
        self.api, self.model, self.poll_s = api, model, poll_s
        self.space = f"namespaces/{namespace}"
        self.deployments = f"/apis/{BETA}/{self.space}/dynamographdeployments"
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def stop(self):
        self.over.set()
        self.thread.join(30)

    def _work(self):
        while not self.over.wait(self.poll_s):
            for held in (self.api.get(self.deployments) or {"items": []})["items"]:
                if not held["metadata"].get("deletionTimestamp"):
                    self._reconcile(held)

    def _reconcile(self, held):
        """Make what a deployment lacks, and report how far it is."""
        components, waiting = {}, []
        for part in parts(held):
            made = self.api.put_there(f"/apis/apps/v1/{self.space}/deployments",
                                      self._deployment(held, part))  # fmt: skip
            up = (made.get("status") or {}).get("readyReplicas", 0)
            components[part.name] = {
                "componentKind": "Deployment", "componentNames": [made["metadata"]["name"]],
                "replicas": part.replicas, "updatedReplicas": part.replicas, "readyReplicas": up,
            }  # fmt: skip
            if up < part.replicas:
                waiting.append(f"{part.name.lower()}: {up} of {part.replicas} ready")
            if part.kind == "frontend":
                self.api.put_there(f"/api/v1/{self.space}/services", self._service(held, part))
        ready = condition("True", "all_resources_are_ready", "All resources are ready")
        if waiting:
            text = f"Resources not ready: {'; '.join(waiting)}"
            ready = condition("False", "some_resources_are_not_ready", text)
        ready["lastTransitionTime"] = held["metadata"]["creationTimestamp"]
        status = {
            "state": "pending" if waiting else "successful",
            "conditions": [ready],
            "components": components,
            "observedGeneration": held["metadata"]["generation"],
        }
        if held.get("status") != status:
            try:
                path = f"{self.deployments}/{held['metadata']['name']}/status"
                self.api.call("PUT", path, {**held, "status": status})
            except ApiException as error:
                if error.status not in (404, 409):  # deleted or changed since: the next turn sees
                    raise

    def _metadata(self, held, part):
        of = held["metadata"]
        owner = {"apiVersion": held["apiVersion"], "kind": held["kind"], "name": of["name"],
                 "uid": of["uid"], "controller": True}  # fmt: skip
        return {
            "name": f"{of['name']}-{part.name.lower()}",
            "labels": {OWNER: of["name"], "nvidia.com/dynamo-component": part.name},
            "ownerReferences": [owner],
        }

    def _deployment(self, held, part):
        metadata = self._metadata(held, part)
        image = PYTHON if part.image.startswith(RUNTIME) else part.image
        main = {"name": "main", "image": image, "command": ["sleep", "infinity"]}
        if part.secret:
            main["envFrom"] = [{"secretRef": {"name": part.secret}}]
        if part.kind == "frontend":
            workers = [each for each in parts(held) if each.kind != "frontend"]
            instances = [
                {"component": "prefill" if each.kind == "prefill" else "backend",
                 "endpoint": "generate", "instance_id": f"{each.name}-{number}"}
                for each in workers for number in range(each.replicas)
            ]  # fmt: skip
            told = {"MODEL": self.model, "INSTANCES": json.dumps(instances),
                    "KV": str(int("kv" in part.args))}  # fmt: skip
            main |= {
                "command": ["python", "-c", APP],
                "env": [{"name": name, "value": value} for name, value in told.items()],
                "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}},
            }
        pod = {"containers": [main], "terminationGracePeriodSeconds": 0}
        template = {"metadata": {"labels": metadata["labels"]}, "spec": pod}
        selector = {"matchLabels": metadata["labels"]}
        spec = {"replicas": part.replicas, "selector": selector, "template": template}
        return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}

    def _service(self, held, part):
        metadata = self._metadata(held, part)
        port = {"name": "http", "port": 8000}
        spec = {"selector": metadata["labels"], "ports": [port]}
        return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def node_devices(api, devices, labels):
    """Give a node devices that it does not have, unless there is one with these labels."""
    nodes = api.call("GET", "/api/v1/nodes")["items"]
    if any(labels.items() <= node["metadata"].get("labels", {}).items() for node in nodes):
        return
    path = f"/api/v1/nodes/{nodes[0]['metadata']['name']}"
    merge = "application/merge-patch+json"
    api.call("PATCH", path, {"metadata": {"labels": labels}}, merge)
    status = {"capacity": devices, "allocatable": devices}
    api.call("PATCH", f"{path}/status", {"status": status}, merge)
