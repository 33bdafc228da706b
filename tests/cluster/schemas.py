"""What the API server checks under strict validation: real schemas, unknown fields refused."""

from functools import cache

import jsonschema
from kubernetes import client
from schema_facts import path_of, read

OPERATORS = ("1.1", "1.2", "1.5")


@cache
def definition(operator):
    return read(path_of(operator))


@cache
def deployment_validator(operator, version):
    versions = {each["name"]: each for each in definition(operator)["spec"]["versions"]}
    schema = strict(versions[version]["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    return jsonschema.Draft202012Validator(schema)


def strict(schema):
    """Return an OpenAPI v3 schema as a JSON schema that refuses fields it does not name."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: {name: strict(below) for name, below in value.items()}
        if key == "properties"
        else strict(value)
        for key, value in schema.items()
    }
    if "properties" in made and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    return made


def problems(operator, manifest):
    """Return what strict validation finds wrong in a manifest."""
    if manifest["kind"] == "DynamoGraphDeployment":
        version = manifest["apiVersion"].rpartition("/")[2]
        found = deployment_validator(operator, version).iter_errors(manifest)
        return [f"{error.json_path}: {error.message[:200]}" for error in found]
    return list(_unknown(manifest, f"V1{manifest['kind']}", ""))


def _unknown(value, kind, path):
    """Yield fields of a built-in object that the client's generated models do not have."""
    if kind.startswith("list["):
        for number, item in enumerate(value):
            yield from _unknown(item, kind[5:-1], f"{path}[{number}]")
    elif model := getattr(client, kind, None):
        names = {key: attribute for attribute, key in model.attribute_map.items()}
        for key, below in value.items():
            if key not in names:
                yield f'unknown field "{path}.{key}"'.replace('".', '"')
            elif below is not None:
                yield from _unknown(below, model.openapi_types[names[key]], f"{path}.{key}")
