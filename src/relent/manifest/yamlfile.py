"""Safe YAML with line numbers, so that an error can name the file, the line and the key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from relent.errors import ConfigError, masked, nearest

Model = TypeVar("Model", bound=BaseModel)
Key = tuple[str | int, ...]
MOST_VALUES, DEEPEST = 100_000, 50
"""Bounds of a file: aliases can name a value of astronomical size, or one that holds itself, in a few lines."""


@dataclass
class Document:
    """A YAML mapping and the line of each of its keys, by path."""

    path: Path
    data: dict[str, Any]
    lines: dict[Key, int] = field(default_factory=dict)

    def line(self, key: Key) -> int | None:
        """Line of `key`, or of its nearest ancestor that stands in the file."""
        while key:
            if key in self.lines:
                return self.lines[key]
            key = key[:-1]
        return None

    def error(self, message: str, *key: str | int) -> ConfigError:
        """Build the error for a key of this file."""
        return ConfigError(message, file=self.path, key=".".join(map(str, key)), line=self.line(key))


class _SafeLoader(yaml.SafeLoader):
    """PyYAML's safe loader, for which `1e-3` is a number and `2020-01-01` a text, as in YAML 1.2 and in JSON."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Name the line of a value that is not what its tag says, where PyYAML lets Python's own error through."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError):
            what = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(None, None, f"is no {what}", node.start_mark) from None


_SafeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: Path | str) -> Document:
    """Read a YAML file whose top level is a mapping.

    Raises:
        ConfigError: The file is missing, is not YAML, repeats a key, or its top level is no mapping.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read ({error}); give the path of a YAML file", file=path) from None
    loader = _SafeLoader(text)
    try:
        node = loader.get_single_node()
        lines: dict[Key, int] = {}
        if node is not None:
            _index(node, (), lines, path)
        data = loader.construct_document(node) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise ConfigError(f"is not valid YAML: {error.problem}", file=path, line=line) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"is not valid YAML: {str(error).splitlines()[0]}", file=path) from None
    except RecursionError:
        raise ConfigError(f"is nested more than {DEEPEST} deep", file=path) from None
    finally:
        loader.dispose()
    if not isinstance(data, Mapping):
        raise ConfigError(f"must hold keys and values, not a {type(data).__name__}", file=path, line=1)
    return Document(path, dict(data), lines)


def _index(node: yaml.Node, key: Key, lines: dict[Key, int], path: Path) -> None:
    line = node.start_mark.line + 1
    if len(key) > DEEPEST:
        raise ConfigError(f"is nested more than {DEEPEST} deep, or an alias holds itself", file=path, line=line)
    if len(lines) > MOST_VALUES:
        raise ConfigError(f"holds more than {MOST_VALUES:,} values, aliases counted", file=path, line=line)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key_node, value_node in node.value:
            name = str(key_node.value)
            line = key_node.start_mark.line + 1
            if name in seen:
                dotted = ".".join(map(str, (*key, name)))
                raise ConfigError("stands twice; keep one of them", file=path, key=dotted, line=line)
            seen.add(name)
            lines[(*key, name)] = line
            _index(value_node, (*key, name), lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            lines[(*key, position)] = item.start_mark.line + 1
            _index(item, (*key, position), lines, path)


def parse(model: type[Model], document: Document, data: Mapping[str, Any] | None = None, at: Key = ()) -> Model:
    """Validate `data` (default: the whole document) as `model`; errors name file, line and key.

    Args:
        model: The pydantic model.
        document: The document that the data came from.
        data: The part of it to validate.
        at: Where in the document that part stands.

    Raises:
        ConfigError: The first thing that is wrong.
    """
    try:
        return model.model_validate(document.data if data is None else data)
    except ValidationError as error:
        # A misspelt key also leaves its right spelling missing: the former is what a user must be told.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        key: Key = (*at, *_plain(first["loc"]))
        raise document.error(explain(first, model), *key) from None


def _plain(location: tuple[str | int, ...]) -> Key:
    """Drop the names that pydantic adds for unions and validators."""
    return tuple(part for part in location if not (isinstance(part, str) and ("[" in part or "-" in part)))


def explain(error: Any, model: type[BaseModel]) -> str:
    """Say in the user's words what a pydantic error means."""
    kind, given = error["type"], error.get("input")
    name = str(error["loc"][-1]) if error["loc"] else ""
    if kind == "extra_forbidden":
        return f"unknown key{nearest(name, _fields_at(model, error['loc'][:-1]))}"
    if kind == "missing":
        return "is missing and has no default"
    if kind in ("value_error", "assertion_error"):
        return str(error["ctx"]["error"])
    return f"{error['msg'][0].lower()}{error['msg'][1:]}, got {masked(repr(given))}"


def _fields_at(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    """Field names of the (possibly nested) model at `location`; those of `model` where that can't be told."""
    current: Any = model
    for part in location:
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            return []
        if isinstance(part, str) and part in current.model_fields:
            current = _model_in(current.model_fields[part].annotation)
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first model that an annotation holds, through unions, lists and `Annotated`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(part) for part in getattr(annotation, "__args__", ()))
    return next((model for model in found if model is not None), None)
