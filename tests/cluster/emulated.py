"""An emulated cluster on a real socket, and the profile of a checkout that names it."""

import yaml
from apiserver import TOKEN, ApiServer
from controllers import NAMESPACE, Controllers
from node import Node

from kvab.runs.replay import start
from kvab.study.manifests import read_scripts

PROFILE = {
    "kind": "kubernetes",
    "name": "emulated",
    "description": "emulated nodes",
    "context": "test",
    "namespace": NAMESPACE,
    "storage_class": "shared",
    "node_selector": {"nvidia.com/gpu.product": "NVIDIA-H200"},
    "rdma_resource": "rdma/ib",
    "limits": {
        "prepare_s": 10,
        "deploy_s": 20,
        "teardown_s": 5,
        "retry_s": 5,
        "grace_s": 0.3,
        "lease_s": 3,
        "poll_s": 0.1,
    },
}


class Emulated:
    """The cluster, and what a test may do to it."""

    def __init__(self, folder, checkout, operator="1.5", node=Node):
        self.folder, self.checkout, self.runs = folder, checkout, folder / "runs"
        self.server = ApiServer(operator)
        self.node = node(self.server, folder)
        self.server.node = self.node
        self.server.start()
        self.store = self.server.store
        self.controllers = Controllers(self.server, self.node)
        self.script = self.controllers.script
        self.server.do(self._seed)
        self.server.do(self.controllers.start)
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(self._kubeconfig()))
        self.profile()

    def _seed(self):
        put = self.store.create
        put("namespaces", "", {"metadata": {"name": NAMESPACE}})
        put("storageclasses", "", {"metadata": {"name": "shared"}})
        put("secrets", NAMESPACE, {"metadata": {"name": "hf-token-secret"}})
        for number in (1, 2):
            labels = {"nvidia.com/gpu.product": "NVIDIA-H200"}
            devices = {"nvidia.com/gpu": "8", "rdma/ib": "8", "cpu": "192"}
            metadata = {"name": f"gpu-{number}", "labels": labels}
            put("nodes", "", {"metadata": metadata, "status": {"allocatable": devices}})

    def _kubeconfig(self):
        url = f"http://127.0.0.1:{self.server.port}"
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "u", "user": {"token": TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"}}],
        }

    def profile(self, limits=None, **changes):
        """Write the profile, changed."""
        made = {**PROFILE, **changes, "limits": {**PROFILE["limits"], **(limits or {})}}
        made = {key: value for key, value in made.items() if value is not None}
        path = self.checkout / "recipes" / "clusters" / "emulated.yaml"
        path.write_text(yaml.safe_dump(made))

    def scripts(self, study="qwen3-32b", **data):
        """Apply the benchmark's folder as kubectl does, with files or the study's name changed."""
        made = read_scripts(self.checkout / "recipes" / "qwen3-32b")
        made["data"] |= data
        made["metadata"]["labels"]["kvab-study"] = study
        self.server.do(self.store.create, "configmaps", NAMESPACE, made)

    def quota(self, **hard):
        """Limit what the namespace may hold."""
        made = {"metadata": {"name": "all"}, "spec": {"hard": hard}}
        self.server.do(self.store.create, "resourcequotas", NAMESPACE, made)

    def delete(self, plural, name):
        self.server.do(self.store.delete, plural, NAMESPACE, name)

    def replay(self, trace, configuration="disagg-kv-router", repeat=1, **given):
        """Return a replay ready for its five steps."""
        return start(
            "recipes/qwen3-32b/study.yaml",
            "emulated",
            configuration,
            repeat,
            trace=str(trace),
            runs=self.runs,
            **given,
        )

    def deployed(self, trace, configuration="disagg-kv-router", **given):
        """Return a replay that is deployed."""
        replay = self.replay(trace, configuration, **given)
        replay.prepare()
        replay.deploy()
        return replay

    def finished(self, trace):
        """Return a replay that is ready to be collected."""
        replay = self.deployed(trace)
        replay.replay()
        return replay

    def run(self, trace, configuration="disagg-kv-router", **given):
        """Make a whole run and return its folder."""
        return self.replay(trace, configuration, **given).run()

    def left(self):
        """Return what a run must not leave behind."""
        kinds = (
            "dynamographdeployments",
            "dynamocomponentdeployments",
            "pods",
            "configmaps",
            "leases",
        )
        found = [f"{kind}/{held['metadata']['name']}" for kind in kinds
                 for held in self.store.find(kind)]  # fmt: skip
        found += [f"jobs/{held['metadata']['name']}" for held in self.store.find("jobs")]
        return [name for name in found
                if "model-download" not in name and name != "configmaps/benchmark"]  # fmt: skip

    def stop(self):
        self.node.close()
        self.server.do(self.controllers.stop)
        self.server.stop()
