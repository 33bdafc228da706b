"""The cluster profiles: where configurations are deployed.

Input: ``recipes/clusters/*.yaml``. Output: frozen models that the other modules read.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, RootModel

from kvab.declarations import Declared, read_declaration
from kvab.errors import InputError
from kvab.study.declaration import Count, Positive, Study, root

PRODUCT = "nvidia.com/gpu.product"


class Timed(Declared):
    """What both kinds say whose engines only wait: hardware and backend name measured kernel data.

    ``kv_transfer_gb_per_s`` is what a worker sends of its KV cache to another, over all of its
    GPUs, in GB/s; None is free. ``frontend_ms_per_1k_tokens`` is how long the frontend takes for
    each thousand prompt tokens, one request after the other, before the router has a request; 0 is
    at once, and all requests of a burst reach the router at one instant. On a live cluster it says
    how the run is simulated, and changes nothing of the run.
    """

    name: str
    description: str
    hardware: str
    backend: str
    kv_transfer_gb_per_s: Positive | None = None
    frontend_ms_per_1k_tokens: Annotated[float, Field(ge=0)] = 0.0


class Simulated(Timed):
    """NVIDIA's simulator on this machine.

    ``prefill_time_ratio`` and ``decode_time_ratio`` stretch the simulator's times of a step that
    prefills and of one that only decodes, for hardware whose error is known.
    """

    kind: Literal["simulated"]
    prefill_time_ratio: Positive = 1.0
    decode_time_ratio: Positive = 1.0


class Live(Timed):
    """Dynamo's frontend, router and mocker engines on this machine, under real AIPerf."""

    kind: Literal["live"]


class Limits(Declared):
    """Longest waits on a cluster, in seconds.

    ``retry_s`` bounds the patience with an API server that does not answer, ``grace_s`` how long
    a cause of failure that may pass is watched, ``poll_s`` the time between two looks, and ten
    times the first pause before a failed call is repeated. A client on another machine counts as
    gone when it has shown no sign of life for ``lease_s``.
    """

    prepare_s: Positive = 600
    deploy_s: Positive = 7200
    replay_s: Positive = 10800
    teardown_s: Positive = 900
    retry_s: Positive = 300
    grace_s: Annotated[float, Field(ge=0)] = 60
    lease_s: Positive = 60
    poll_s: Positive = 5


class Kubernetes(Declared):
    """A cluster with GPUs, Dynamo's operator and the manifests applied as they are rendered."""

    kind: Literal["kubernetes"]
    name: str
    description: str
    context: str | None = None
    namespace: str
    storage_class: str
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteMany"
    image: str | None = None
    runtime_version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+")] | None = None
    image_pull_secret: str | None = None
    hf_token_secret: str = "hf-token-secret"
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: list[dict[str, str]] = Field(default_factory=list)
    rdma_resource: str | None = None
    campaign_image: str | None = None
    campaign_parallelism: Count = 16
    limits: Limits = Limits()


Profile = Annotated[Simulated | Live | Kubernetes, Field(discriminator="kind")]


class _File(RootModel[Profile]):
    """The content of a profile's file."""


def load_cluster(name: str) -> Profile:
    """Return the cluster profile ``recipes/clusters/<name>.yaml``.

    Raises
    ------
    InputError
        If there is no such profile, or its name is not its file's.
    """
    folder = root() / "recipes" / "clusters"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        fix = f"choose one of {', '.join(known)}, or copy example-h200.yaml"
        raise InputError(f"no cluster '{name}'", path=folder, fix=fix)
    path = folder / f"{name}.yaml"
    profile = read_declaration(path, _File).root
    if profile.name != name:
        expected, fix = f"{name} as the file is called", "rename one of the two"
        raise InputError(expected=expected, got=profile.name, path=path, key="name", fix=fix)
    return profile


def check_product(study: Study, profile: Profile) -> None:
    """Reject a cluster of other GPUs than the study is about, as far as its profile names them.

    Raises
    ------
    InputError
        Naming both.
    """
    if isinstance(profile, Kubernetes):
        key, product = f"node_selector {PRODUCT}", profile.node_selector.get(PRODUCT)
    else:
        key, product = "hardware", profile.hardware
    wanted = study.gpus.product
    if product is not None and _chip(product) != _chip(wanted):
        raise InputError(
            f"gpus.product is {wanted}, but cluster {profile.name} has {product} ({key})",
            path=study.folder / "study.yaml",
            fix=f"choose a profile of {wanted} with --cluster, or change one of the two",
        )


def _chip(text: str) -> str:
    """Return the name of a GPU without vendor and form: h200 of ``NVIDIA-H200`` and h200_sxm."""
    words = re.split("[^a-z0-9]+", text.lower())
    return next((word for word in words if re.search(r"\d", word)), text.lower())
