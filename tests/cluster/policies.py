"""What a real control plane rejects when it is asked to create an object, in its own words.

Wording and order are those of kube-apiserver's admission plugins; quotas, limit ranges and the
namespace's labels are read from the store, as the plugins read theirs.
"""

from kubernetes.utils.quantity import parse_quantity

# What pod security asks of each container at its strictest level.
RESTRICTED = (
    ("allowPrivilegeEscalation != false", "{} must set securityContext.allowPrivilegeEscalation="
     "false", lambda c, pod: c.get("allowPrivilegeEscalation") is False),
    ("unrestricted capabilities", '{} must set securityContext.capabilities.drop=["ALL"]',
     lambda c, pod: "ALL" in c.get("capabilities", {}).get("drop", [])),
    ("runAsNonRoot != true", "pod or {} must set securityContext.runAsNonRoot=true",
     lambda c, pod: c.get("runAsNonRoot", pod.get("runAsNonRoot")) is True),
    ("seccompProfile", 'pod or {} must set securityContext.seccompProfile.type to "RuntimeDefault" '
     'or "Localhost"',
     lambda c, pod: (c.get("seccompProfile") or pod.get("seccompProfile") or {}).get("type")
     in ("RuntimeDefault", "Localhost")),
)  # fmt: skip


def rejected(store, plural, manifest, space):
    """Return status and message of the plugin that rejects an object, None if none does."""
    for plugin in (limit_range, pod_security, quota):
        if said := plugin(store, plural, manifest, space):
            return 403, f'{plural} "{manifest["metadata"]["name"]}" is forbidden: {said}'
    return None


def limit_range(store, plural, manifest, space):
    told = []
    for held in store.find("limitranges", space):
        for limit in held["spec"]["limits"]:
            for container in manifest["spec"]["containers"] if plural == "pods" else []:
                told += _over(limit, container.get("resources") or {})
    return f"[{', '.join(told)}]" if len(told) > 1 else "".join(told)


def _over(limit, resources):
    for name, most in (limit.get("max") or {}).items():
        start, got = f"maximum {name} usage per {limit['type']} is {most}", _asked(resources, name)
        if name not in (resources.get("limits") or {}):
            yield f"{start}.  No limit is specified"
        elif got > parse_quantity(most):
            yield f"{start}, but limit is {resources['limits'][name]}"


def _asked(resources, name, kind="limits"):
    either = (resources.get(kind) or {}).get(name) or (resources.get("limits") or {}).get(name)
    return parse_quantity(either or 0)


def pod_security(store, plural, manifest, space):
    labels = store.get("namespaces", "", space)["metadata"].get("labels") or {}
    if plural != "pods" or labels.get("pod-security.kubernetes.io/enforce") != "restricted":
        return ""
    spec = manifest["spec"]
    told = []
    for what, fix, satisfied in RESTRICTED:
        bad = [f'"{each["name"]}"' for each in spec["containers"]
               if not satisfied(each.get("securityContext") or {},
                                spec.get("securityContext") or {})]  # fmt: skip
        if bad:
            who = f"container{'s' if len(bad) > 1 else ''} {', '.join(bad)}"
            told.append(f"{what} ({fix.format(who)})")
    return f'violates PodSecurity "restricted:latest": {", ".join(told)}' if told else ""


def quota(store, plural, manifest, space):
    for held in store.find("resourcequotas", space) if plural == "pods" else []:
        hard = held["spec"]["hard"]
        unset = [name for name in hard if name.startswith("limits.") and not all(
            name.removeprefix("limits.") in (each.get("resources") or {}).get("limits", {})
            for each in manifest["spec"]["containers"])]  # fmt: skip
        if unset:
            who = ",".join(each["name"] for each in manifest["spec"]["containers"])
            asked = f"must specify {','.join(unset)} for: {who}"
            return f"failed quota: {held['metadata']['name']}: {asked}"
        ended = ("Succeeded", "Failed")
        pods = [pod for pod in store.find("pods", space)
                if (pod.get("status") or {}).get("phase") not in ended]  # fmt: skip
        wants = {name: _usage([manifest], name) for name in hard}
        uses = {name: _usage(pods, name) for name in hard}
        over = sorted(n for n in hard if wants[n] and uses[n] + wants[n] > parse_quantity(hard[n]))
        if over:
            told = [",".join(f"{n}={amounts[n]}" for n in over) for amounts in (wants, uses, hard)]
            return (
                f"exceeded quota: {held['metadata']['name']}, requested: {told[0]}, "
                f"used: {told[1]}, limited: {told[2]}"
            )
    return ""


def _usage(pods, name):
    if name == "pods":
        return len(pods)
    kind, _, resource = name.partition(".")
    containers = [each for pod in pods for each in pod["spec"]["containers"]]
    return sum(_asked(each.get("resources") or {}, resource, kind) for each in containers)
