"""A method's Config class, read out of its module without importing it, and the values that a run gets."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from relent.errors import ConfigError, nearest
from relent.manifest.fingerprint import module_file
from relent.manifest.yamlfile import explain
from relent.methods.config import MethodConfig

ALLOWED = (
    *("pydantic", "typing", "enum", "relent.methods.config"),
    *("relent.methods.alignment.config", "relent.methods.weather.config", "__future__"),
)


@lru_cache(maxsize=1024)
def config_class(implementation: str, stamp: int = 0) -> type[MethodConfig]:
    """The `Config` class of a method's module.

    Only the class statement `Config`, the simple constants above it, and imports from `ALLOWED` modules (pydantic,
    typing, enum, and configurations that load no torch) are executed, so that planning a workflow never loads it.

    Args:
        implementation: `module:Class` or `path/file.py:Class`.
        stamp: Changes when the file does; part of the cache's key.

    Raises:
        ConfigError: The module does not exist, has no `Config`, lacks the class, or `Config` needs other imports.
    """
    path, class_name = locate(implementation)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if class_name not in classes:
        raise ConfigError(f"has no class {class_name!r}{nearest(class_name, classes)}", file=path)
    if "Config" not in classes:
        raise ConfigError("has no class 'Config'; derive one from relent.methods.config.MethodConfig", file=path)
    body = [node for node in tree.body if _is_light(node)] + [classes["Config"]]
    module = ast.Module(body=body, type_ignores=[])
    namespace: dict[str, Any] = {"__name__": f"config_of_{path.stem}"}
    try:
        exec(compile(module, str(path), "exec"), namespace)
        namespace["Config"].model_rebuild(_types_namespace=namespace)
    except NameError as error:
        line = classes["Config"].lineno
        raise ConfigError(f"Config may only use {', '.join(ALLOWED[:-1])}: {error}", file=path, line=line) from None
    found = namespace["Config"]
    if not (isinstance(found, type) and issubclass(found, MethodConfig)):
        raise ConfigError("Config must derive from relent.methods.config.MethodConfig", file=path)
    return found


def locate(implementation: str) -> tuple[Path, str]:
    """File and class name of an implementation.

    Raises:
        ConfigError: There is no such module or file.
    """
    module, _, class_name = implementation.partition(":")
    path = Path(module) if module.endswith(".py") else module_file(module)
    if path is None or not path.is_file():
        raise ConfigError(f"implementation {module!r} does not exist; give 'package.module:Class' or 'file.py:Class'")
    return path, class_name


def _is_light(node: ast.stmt) -> bool:
    if isinstance(node, ast.ImportFrom):
        return not node.level and node.module in ALLOWED
    if isinstance(node, ast.Import):
        return all(alias.name.split(".")[0] in ("typing", "enum", "math") for alias in node.names)
    if isinstance(node, ast.Assign):
        return isinstance(node.value, ast.Constant | ast.Tuple | ast.List | ast.Dict) and _is_literal(node.value)
    return False


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def resolve(implementation: str, *layers: tuple[str, Mapping[str, Any]]) -> dict[str, Any]:
    """All hyperparameters of a run: the Config's defaults, then each layer over the ones before.

    Args:
        implementation: The method's `module:Class`.
        *layers: Pairs of a name of the place (for errors) and values from that place.

    Raises:
        ConfigError: An unknown hyperparameter or a value out of bounds; names the place.
    """
    path, _ = locate(implementation)
    config = config_class(implementation, path.stat().st_mtime_ns)
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for place, layer in layers:
        for name, value in layer.items():
            if name not in config.model_fields:
                raise ConfigError(f"unknown hyperparameter {name!r}{nearest(name, config.model_fields)}", file=place)
            values[name], origin[name] = value, place
    try:
        return config.model_validate(values).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        # What is missed, or wrong only beside another value, nobody gave: the first layer is where a recipe stands.
        blamed = origin.get(name) or (layers[0][0] if layers else path)
        raise ConfigError(explain(first, config), file=blamed, key=name) from None
