"""Reading declarations: YAML without surprises, checked models, digests of their content.

Every YAML file of the project, our declarations and the manifests, is read here.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import yaml
from pydantic import AliasPath, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from kvab.errors import InputError

# What a type of error of pydantic expects, in words for who writes YAML.
EXPECTED = {
    "missing": "a value",
    "string_type": "a text (quote it)",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}
Json = dict[str, Any]  # a JSON object of unknown content
Content = TypeVar("Content")
Model = TypeVar("Model", bound=BaseModel)
MOST_PARTS, DEEPEST = 200_000, 100  # of a YAML file as JSON; the study's own have some hundred


class Declared(BaseModel):
    """A declaration that cannot be changed and rejects keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(BaseModel):
    """The checked part of a manifest: keys that it does not know are Kubernetes' own.

    A key without a value counts as absent.
    """

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: object) -> object:
        return _present(value)


def _present(value: object) -> object:
    if not isinstance(value, dict):
        return value
    return {key: _present(inner) for key, inner in value.items() if inner is not None}


def below(path: str) -> FieldInfo:
    """Return the field of a `Part` that stands at a dotted path of nested mappings."""
    field: FieldInfo = Field(validation_alias=AliasPath(*path.split(".")))
    return field


def inside(files: dict[str, Content]) -> dict[str, Content]:
    """Return files by name, all of which lie inside a folder.

    Raises
    ------
    ValueError
        Naming the first that does not.
    """
    for name in files:
        path = PurePosixPath(name)
        if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
            raise ValueError(f"expected names of files inside the folder, got {name!r:.80}")
    return files


def digest(content: object) -> str:
    """Return the SHA-256 of a JSON-able value in canonical form."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader; a key written twice is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str) or key in seen:
                wrong = "stands twice" if isinstance(key, str) else "is no text: quote it"
                raise yaml.MarkedYAMLError(
                    problem=f"the key '{key!s:.60}' {wrong}", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


@functools.lru_cache(maxsize=64)  # two hundred runs of a study hold four different manifests
def _documents(text: str) -> list[object]:
    documents = list(yaml.load_all(text, Loader=_UniqueKeys))
    _check_plain(documents)
    return documents


def read_yaml(path: Path) -> list[Any]:
    """Return the documents of a YAML file.

    Raises
    ------
    InputError
        If the file is missing, unreadable, not YAML (with the line), repeats a key, or holds what
        JSON cannot: a date, a value inside itself, aliases that unfold to more than `MOST_PARTS`.
    """
    line = None
    try:
        return copy.deepcopy(_documents(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(
            expected="a file", got=error.strerror, path=path, fix="check the name"
        ) from None
    except RecursionError:
        got = "values nested too deeply"
    except yaml.MarkedYAMLError as error:
        got, line = str(error.problem), error.problem_mark.line + 1 if error.problem_mark else 1
    except (yaml.YAMLError, TypeError, ValueError) as error:  # a date or wrong Unicode too
        got = str(error).splitlines()[0]
    raise InputError(expected="YAML in UTF-8", got=got, path=path, line=line, fix="fix it")


def _check_plain(documents: list[object]) -> None:
    """Reject what JSON cannot hold; an alias counts each time that it stands."""
    depth = 0  # in parts, so that what unfolds to gigabytes is never made
    for count, part in enumerate(json.JSONEncoder(ensure_ascii=False).iterencode(documents)):
        part.encode()
        depth += part.startswith(("[", "{")) - part.endswith(("]", "}"))
        if count > MOST_PARTS or depth > DEEPEST:
            raise ValueError(f"over {MOST_PARTS:,} values or {DEEPEST} deep, aliases unfolded")


def read_declaration(path: Path, declaration: type[Model], **extra: object) -> Model:
    """Return the checked declaration in a YAML file of one document.

    Raises
    ------
    InputError
        If a key is unknown, missing or wrong: one line that names the file and the key.
    """
    documents = read_yaml(path)
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise InputError(
            expected="one YAML mapping", got="something else", path=path, fix="see recipes/"
        )
    return checked({**documents[0], **extra}, declaration, path)


def checked(value: object, model: type[Model], path: Path, fix: str = "") -> Model:
    """Return a value as what a model declares.

    Raises
    ------
    InputError
        Of the first key that is unknown, missing or wrong.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first, count = error.errors()[0], error.error_count()
        key = ".".join(str(part) for part in first["loc"])
        more = f" (and {count - 1} more)" if count > 1 else ""
        if first["type"] == "extra_forbidden":
            fix = "remove it or correct its name"
            raise InputError(f"unknown key{more}", path=path, key=key, fix=fix) from None
        expected = EXPECTED.get(first["type"]) or first["msg"].removeprefix("Input should be ")
        expected = expected.removeprefix("Value error, ").removeprefix("expected ")
        got = "nothing" if first["type"] == "missing" else f"{first['input']!r}"
        got = (got if len(got) <= 60 else "something else") + more
        raise InputError(expected=expected, got=got, path=path, key=key, fix=fix) from None
