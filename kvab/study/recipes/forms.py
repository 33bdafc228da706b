"""The two forms of a deployment: v1alpha1, in which it is written, and v1beta1.

Each field goes where the operator's conversion webhook takes it (ai-dynamo/dynamo 1.5.0,
deploy/operator/api/v1alpha1/shared_spec_conversion.go). A claim is a volume of the pod there, and
the list of claims is left out.

Input: a manifest in one form. Output: the same deployment in the other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import yaml

from kvab.errors import InputError
from kvab.study.recipes.manifests import at

Object = dict[str, Any]
ALPHA, BETA = "nvidia.com/v1alpha1", "nvidia.com/v1beta1"
BETA_FILE = "deploy.v1beta1.yaml"
HEADER = """\
# deploy.yaml in the form that Dynamo's operator stores from 1.5 on, for kubectl. kvab reads
# deploy.yaml alone: change that, and `kvab check --fix` writes this file anew.
"""
GPU, MAIN = "nvidia.com/gpu", "main"
ROLES = ("prefill", "decode")  # a subtype of workers there, types here
SAME = ("replicas", "runtimeVersionOverride", "multinode", "scalingAdapter", "modelRef")
PROBES = ("livenessProbe", "readinessProbe")


def to_beta(manifest: Object) -> Object:
    """Return a v1alpha1 deployment as v1beta1.

    Raises
    ------
    InputError
        Naming a field that v1beta1 does not have, or that is not what it should be.
    """
    made = copy.deepcopy(manifest)
    spec = made["spec"]
    services = spec.pop("services")
    claims = spec.pop("pvcs", None) or []
    if not isinstance(claims, list) or any(at(claim, "create") for claim in claims):
        raise InputError("spec.pvcs: v1beta1 creates no claims; set create: false")
    if "envs" in spec:
        spec["env"] = spec.pop("envs")
    spec["components"] = [
        {"name": name, **_converted(name, service, _component)}
        for name, service in services.items()
    ]
    return {**made, "apiVersion": BETA}


def to_alpha(manifest: Object) -> Object:
    """Return a v1beta1 deployment as v1alpha1.

    Raises
    ------
    InputError
        Naming a field that v1alpha1 does not have, or that is not what it should be.
    """
    made = copy.deepcopy(manifest)
    spec = made.get("spec")
    if not isinstance(spec, dict) or not isinstance(spec.get("components"), list):
        raise InputError("spec.components: expected a list")
    if "env" in spec:
        spec["envs"] = spec.pop("env")
    services = {}
    for component in spec.pop("components"):
        if not isinstance(component, dict) or not isinstance(component.get("name"), str):
            raise InputError(f"spec.components: expected names, got {component!r:.60}")
        name = component.pop("name")
        services[name] = _converted(name, component, _service)
    spec["pvcs"] = []
    for mount in (mount for each in services.values() for mount in each.get("volumeMounts", [])):
        claim = {"name": mount["name"], "create": False}
        spec["pvcs"] += [claim] if claim not in spec["pvcs"] else []
    return {**made, "apiVersion": ALPHA, "spec": {**spec, "services": services}}


def pod_templates(manifest: Object) -> dict[str, tuple[Object, int]]:
    """Return pod template and replicas of each component of a v1alpha1 deployment, by name.

    Fields that v1beta1 does not have are left out: they are not the pod's.
    """
    services = copy.deepcopy(manifest["spec"]["services"])
    parts = {name: _component(service) for name, service in services.items()}
    return {name: (part["podTemplate"], part.get("replicas", 1)) for name, part in parts.items()}


def beta_text(manifest: Object) -> str:
    """Return the content of `BETA_FILE` for a v1alpha1 deployment."""
    text: str = yaml.safe_dump(to_beta(manifest), sort_keys=False, width=1000)
    return HEADER + text


def _converted(name: str, fields: Any, convert: Callable[[Object], Object]) -> Object:
    """Return a component converted; what is left of its fields has no place in the other form."""
    try:
        made = convert(fields)
    except (AttributeError, KeyError, TypeError, ValueError, StopIteration) as error:
        raise InputError(f"{name}: not a component ({type(error).__name__}: {error})") from None
    if fields:
        raise InputError(f"{name}.{next(iter(fields))}: the other API version has no such field")
    return made


def _component(fields: Object) -> Object:
    kind, pod = fields.pop("componentType"), fields.pop("extraPodSpec", {})
    role = fields.pop("subComponentType", kind)
    made: Object = {"type": role if kind == "worker" and role in ROLES else kind}
    made |= {key: fields.pop(key) for key in SAME if key in fields}
    main = {"name": MAIN, **pod.pop("mainContainer")}
    main |= {key: fields.pop(key) for key in PROBES if key in fields}
    if env := [*fields.pop("envs", []), *main.get("env", [])]:
        main["env"] = list({entry["name"]: entry for entry in env}.values())
    if secret := fields.pop("envFromSecret", None):
        main["envFrom"] = [{"secretRef": {"name": secret}}, *main.get("envFrom", [])]
    if amounts := fields.pop("resources", None):
        main["resources"] = {key: _native(each) for key, each in amounts.items()}
    mounts, volumes = list(main.get("volumeMounts", [])), list(pod.get("volumes", []))
    for mount in fields.pop("volumeMounts", []):
        name, path = mount["name"], mount.get("mountPoint")
        if mount.get("useAsCompilationCache"):
            made["compilationCache"] = {"pvcName": name} | ({"mountPath": path} if path else {})
        else:
            mounts.append({"name": name, "mountPath": path})
            volumes.append({"name": name, "persistentVolumeClaim": {"claimName": name}})
    main |= {"volumeMounts": mounts} if mounts else {}
    pod |= {"volumes": volumes} if volumes else {}
    metadata = fields.pop("extraPodMetadata", None)
    template = {"metadata": metadata} if metadata else {}
    spec = {**pod, "containers": [main, *pod.get("containers", [])]}
    return {**made, "podTemplate": {**template, "spec": spec}}


def _service(fields: Object) -> Object:
    kind, template = fields.pop("type"), fields.pop("podTemplate")
    made: Object = {"componentType": "worker" if kind in ROLES else kind}
    made |= {"subComponentType": kind} if kind in ROLES else {}
    made |= {key: fields.pop(key) for key in SAME if key in fields}
    pod = template["spec"]
    containers, volumes = pod.pop("containers"), pod.pop("volumes", [])
    main = next(each for each in containers if each["name"] == MAIN)
    others = [each for each in containers if each is not main]
    del main["name"]
    made |= {key: main.pop(key) for key in PROBES if key in main}
    sources = main.pop("envFrom", [])
    if sources and "secretRef" in sources[0]:
        made["envFromSecret"] = sources.pop(0)["secretRef"]["name"]
    claims = {each["name"] for each in volumes
              if each.get("persistentVolumeClaim") == {"claimName": each["name"]}}  # fmt: skip
    mounts = main.pop("volumeMounts", [])
    flat = [{"name": mount["name"], "mountPoint": mount["mountPath"]}
            for mount in mounts if mount["name"] in claims]  # fmt: skip
    if cache := fields.pop("compilationCache", None):
        path = {"mountPoint": cache["mountPath"]} if "mountPath" in cache else {}
        flat.append({"name": cache["pvcName"], **path, "useAsCompilationCache": True})
    made |= {"volumeMounts": flat} if flat else {}
    if metadata := template.get("metadata"):
        made["extraPodMetadata"] = metadata
    if amounts := main.pop("resources", None):
        made["resources"] = {key: _flat(each) for key, each in amounts.items()}
    kept = {"containers": others, "volumes": [v for v in volumes if v["name"] not in claims]}
    pod |= {key: value for key, value in kept.items() if value}
    own = {"envFrom": sources, "volumeMounts": [m for m in mounts if m["name"] not in claims]}
    main |= {key: value for key, value in own.items() if value}
    return {**made, "extraPodSpec": {**pod, "mainContainer": main}}


def _native(amounts: Object) -> Object:
    """Return amounts of devices as a container has them."""
    native = {key: value for key, value in amounts.items() if key not in ("gpu", "custom")}
    native |= {GPU: amounts["gpu"]} if "gpu" in amounts else {}
    return native | amounts.get("custom", {})


def _flat(amounts: Object) -> Object:
    flat = {key: value for key, value in amounts.items() if key in ("cpu", "memory")}
    flat |= {"gpu": amounts[GPU]} if GPU in amounts else {}
    custom = {key: value for key, value in amounts.items() if key not in (*flat, GPU)}
    return flat | ({"custom": custom} if custom else {})
