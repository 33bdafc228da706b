"""Derive what the tests know of Dynamo's schemas from its own CustomResourceDefinitions.

    python tests/cluster/schema_facts.py /folder/of/dynamographdeployments-1.5.yaml ...

Each file becomes one of the same name in tests/cluster/data: field names, types, required fields,
enums, patterns, defaults, limits and rules, without descriptions. Such a file comes from operator
1.5 by ``kubectl get crd dynamographdeployments.nvidia.com -o yaml``, or from its Helm chart.
"""

import sys
from pathlib import Path

import yaml

DATA = Path(__file__).parent / "data"
HEAD = """\
# Made by tests/cluster/schema_facts.py from the CustomResourceDefinition of the operator of
# ai-dynamo/dynamo (Apache-2.0): names, types and rules of the fields, without descriptions.
"""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def path_of(operator, folder=DATA):
    return Path(folder) / f"dynamographdeployments-{operator}.yaml"


def read(path):
    return yaml.load(path.read_text(), Loader=LOADER)


def facts(definition):
    """Return a definition without what describes it: texts, columns, annotations."""
    versions = [
        {name: undescribed(value) for name, value in version.items()
         if name != "additionalPrinterColumns"}
        for version in definition["spec"]["versions"]
    ]  # fmt: skip
    return {
        "apiVersion": definition["apiVersion"],
        "kind": definition["kind"],
        "metadata": {"name": definition["metadata"]["name"]},
        "spec": definition["spec"] | {"versions": versions},
    }


def undescribed(value, named=False):
    """Return a schema without descriptions; ``named``: its keys are names of fields."""
    if isinstance(value, list):
        return [undescribed(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: undescribed(below, named=key == "properties" and not named)
        for key, below in value.items()
        if named or key != "description"
    }


def main(paths):
    for path in map(Path, paths):
        body = yaml.safe_dump(facts(read(path)), default_flow_style=True, width=100)
        (DATA / path.name).write_text(HEAD + body)
        print(f"{DATA / path.name}: {(DATA / path.name).stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
