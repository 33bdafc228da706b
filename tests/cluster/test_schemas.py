"""The facts of Dynamo's schemas that the tests hold, beside the definitions they come from."""

import os

import pytest
from schema_facts import DATA, facts, path_of, read
from schemas import OPERATORS


@pytest.mark.parametrize("operator", OPERATORS)
def test_facts_are_those_of_the_definition(operator):
    """Held against themselves, and against the real definition where KVAB_CRDS has it."""
    held = read(path_of(operator))
    real = path_of(operator, os.environ.get("KVAB_CRDS") or DATA)
    assert facts(read(real if real.is_file() else path_of(operator))) == held
    schemas = [version["schema"]["openAPIV3Schema"] for version in held["spec"]["versions"]]
    assert all("spec" in schema["properties"] for schema in schemas)


def test_fields_keep_their_rules_and_lose_their_descriptions():
    text = {"type": "string", "description": "Said.", "pattern": "^a", "default": "a"}
    schema = {
        "type": "object",
        "description": "Said.",
        "required": ["description"],
        "properties": {"description": text, "properties": {"properties": {"description": text}}},
    }
    version = {"name": "v1", "served": True, "schema": {"openAPIV3Schema": schema}}
    made = facts(
        {
            "apiVersion": "v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": "x", "annotations": {"a": "b"}},
            "spec": {"group": "g", "versions": [{**version, "additionalPrinterColumns": []}]},
        }
    )
    kept = {"type": "string", "pattern": "^a", "default": "a"}
    (got,) = made["spec"]["versions"]
    assert made["metadata"] == {"name": "x"}
    assert got == {
        "name": "v1",
        "served": True,
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "required": ["description"],
                "properties": {
                    "description": kept,
                    "properties": {"properties": {"description": kept}},
                },
            }
        },
    }
