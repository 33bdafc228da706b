"""Any cluster that a kubeconfig names, with a stand-in for Dynamo's operator.

Meant for one that may be thrown away, such as kind's: a node is given devices that it does not
have, and definitions are installed. Everything else lies in a namespace of its own, which goes.
"""

import secrets
from pathlib import Path

import pytest
import yaml
from emulated import PROFILE, Emulated
from standin import DEFINITIONS, MADE_BY, Api, StandIn, definitions, node_devices

LIMITS = {"prepare_s": 300, "deploy_s": 300, "teardown_s": 120, "retry_s": 30, "grace_s": 5}
DEVICES = {"nvidia.com/gpu": "16", "rdma/ib": "16"}
DEFAULT = "storageclass.kubernetes.io/is-default-class"
# The benchmark as it is, but for its program: one that needs no tokenizer.
INSTALL = "retry python -m pip install --quiet --no-cache-dir $REQUIREMENTS\n"
STAND_IN = """\
bin=$(mktemp -d)
printf '#!/bin/sh\\nexec python %s/fake_aiperf.py "$@"\\n' "$here" >"$bin/aiperf"
chmod +x "$bin/aiperf"
export PATH=$bin:$PATH
"""


class Real(Emulated):
    """What a test may do to a cluster, whatever it is."""

    def __init__(self, folder, checkout, kubeconfig):
        self.folder, self.checkout, self.runs = folder, checkout, folder / "runs"
        self.api, self.namespace = Api(kubeconfig), f"kvab-test-{secrets.token_hex(3)}"
        self.context = yaml.safe_load(kubeconfig.read_text())["current-context"]
        for each in definitions():
            held = self.api.put_there(DEFINITIONS, each)
            if not MADE_BY.items() <= (held["metadata"].get("labels") or {}).items():
                pytest.exit(f"{kubeconfig}: {each['metadata']['name']} is another's; these tests "
                            "are for a cluster without Dynamo's operator", 2)  # fmt: skip
        node_devices(self.api, DEVICES, {"nvidia.com/gpu.product": "NVIDIA-H200"})
        self.create("namespaces", {"name": self.namespace})
        self.create(f"namespaces/{self.namespace}/secrets", {"name": "hf-token-secret"})
        self.operator = StandIn(self.api, self.namespace, "Qwen/Qwen3-32B")
        self._cut_down()
        self.profile()

    def create(self, path, metadata, **fields):
        """Create an object of the core API."""
        self.api.call("POST", f"/api/v1/{path}", {"metadata": metadata, **fields})

    def quota(self, **hard):
        path = f"namespaces/{self.namespace}/resourcequotas"
        self.create(path, {"name": "all"}, spec={"hard": hard})

    def _cut_down(self):
        """Change the checkout's recipes: no download, no tokenizer, a small load generator."""
        study = self.checkout / "recipes" / "qwen3-32b"
        path = study / "model-cache" / "model-download.yaml"
        (job,) = yaml.safe_load_all(path.read_text())
        job["spec"]["template"]["spec"]["containers"][0]["args"] = ["echo no model is needed"]
        path.write_text(yaml.safe_dump(job))
        for path in study.glob("vllm/*/perf.yaml"):
            text = path.read_text()
            path.write_text(text.replace('cpu: "8"', "cpu: 100m").replace("32Gi", "128Mi"))
        folder = study / "benchmark"
        script = (folder / "run.sh").read_text()
        assert INSTALL in script
        (folder / "run.sh").write_text(script.replace(INSTALL, STAND_IN))
        fake = (Path(__file__).parent / "fake_aiperf.py").read_text()
        (folder / "fake_aiperf.py").write_text(fake)
        path = folder / "kustomization.yaml"
        path.write_text(path.read_text().replace("steps.py]", "steps.py, fake_aiperf.py]"))

    def profile(self, limits=None, **changes):
        classes = self.api.call("GET", "/apis/storage.k8s.io/v1/storageclasses")["items"]
        default = [each for each in classes if DEFAULT in str(each["metadata"])]
        storage = (default or classes)[0]["metadata"]["name"]
        made = {**PROFILE, "context": self.context, "namespace": self.namespace,
                "storage_class": storage, "access_mode": "ReadWriteOnce", **changes,
                "limits": {**LIMITS, **(limits or {})}}  # fmt: skip
        path = self.checkout / "recipes" / "clusters" / "emulated.yaml"
        path.write_text(yaml.safe_dump(made))

    def left(self):
        inside = f"namespaces/{self.namespace}"
        found = []
        for path in (f"{self.operator.deployments}", f"/apis/apps/v1/{inside}/deployments",
                     f"/api/v1/{inside}/pods", f"/apis/batch/v1/{inside}/jobs"):  # fmt: skip
            held = self.api.call("GET", path)["items"]
            found += [f"{path.rsplit('/', 1)[1]}/{each['metadata']['name']}" for each in held]
        return [name for name in found if "model-download" not in name]

    def stop(self):
        self.operator.stop()
        body = {"propagationPolicy": "Background"}
        self.api.call("DELETE", f"/api/v1/namespaces/{self.namespace}", body)
