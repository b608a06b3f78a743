"""Fingerprint of the code that a stage runs: its modules and the project modules that they reach by import.

Taken over the syntax tree without comments, docstrings and positions, so that a typo mended in a docstring reruns
nothing, while a changed statement anywhere in the import graph reruns what depends on it. Nothing is imported.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from relent.errors import ConfigError

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "relent"


def canonical(value: Any) -> str:
    """JSON text that is equal for equal values: settings are compared, hashed and kept by Snakemake as text."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def module_file(name: str) -> Path | None:
    """File of a project module (`relent.…`), or None where there is none by that name."""
    base = PACKAGE_ROOT.joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def fingerprint(roots: Iterable[str]) -> str:
    """SHA-256 (first 16 hexadecimal digits) of everything that `roots` reach by import.

    Args:
        roots: Module names (`relent.…`) or paths of Python files outside the package (plug-ins).

    Raises:
        ConfigError: A root does not exist, or a file is no valid Python.
    """
    digest = hashlib.sha256()
    for name, path in sorted(reached(roots).items()):
        digest.update(f"{name}\0{_tree_digest(path, path.stat().st_mtime_ns)}\n".encode())
    return digest.hexdigest()[:16]


def code_of(names: Iterable[str]) -> str:
    """The same of some modules alone, without what they reach: for work too long to do again for a change elsewhere.

    Raises:
        ConfigError: A module does not exist.
    """
    digest = hashlib.sha256()
    for name in sorted(names):
        path = module_file(name)
        if path is None:
            raise ConfigError(f"module {name!r} is not in the package")
        digest.update(f"{name}\0{_tree_digest(path, path.stat().st_mtime_ns)}\n".encode())
    return digest.hexdigest()[:16]


def reached(roots: Iterable[str]) -> dict[str, Path]:
    """Modules that `roots` reach by import, themselves and enclosing packages included: name → file."""
    found: dict[str, Path] = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name.endswith(".py"):
            path, key = Path(name), Path(name).name
            if not path.is_file():
                raise ConfigError("does not exist; give the path of a Python file", file=path)
        else:
            located = module_file(name)
            if located is None:
                raise ConfigError(f"module {name!r} is not in the package")
            path, key = located, name
            waiting += _parents(name)
        if key in found:
            continue
        found[key] = path
        waiting += [imported for imported in _imports(path, path.stat().st_mtime_ns) if imported not in found]
    return found


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


@lru_cache(maxsize=4096)
def _parsed(path: Path, stamp: int) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise ConfigError(f"is no valid Python: {error.msg}", file=path, line=error.lineno) from None


@lru_cache(maxsize=4096)
def _tree_digest(path: Path, stamp: int) -> str:
    tree = _parsed(path, stamp)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = _without_docstring(node.body)
    return hashlib.sha256(ast.dump(tree, include_attributes=False).encode()).hexdigest()


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    return [s for s in body if not (isinstance(s, ast.Expr) and isinstance(getattr(s, "value", None), ast.Constant))]


@lru_cache(maxsize=4096)
def _imports(path: Path, stamp: int) -> tuple[str, ...]:
    """Project modules that a file imports, at any depth of its code."""
    names: list[str] = []
    for node in ast.walk(_parsed(path, stamp)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, path)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(n for n in dict.fromkeys(names) if n.split(".")[0] == PACKAGE and module_file(n) is not None)


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    if not node.level:
        return node.module or ""
    parts = list(path.resolve().relative_to(PACKAGE_ROOT).with_suffix("").parts)
    package = parts[: len(parts) - node.level]
    return ".".join([*package, *([node.module] if node.module else [])])
