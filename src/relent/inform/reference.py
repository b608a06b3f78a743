"""The JSON schemas and the configuration reference, made from the models that validate `config/`."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from relent import tasks
from relent.inform.hyperparameters import bounds, plain
from relent.inform.markdown import code, table
from relent.inform.typewords import is_name, type_in_words
from relent.manifest.models import Config, Method, Source, Task
from relent.methods.config import MethodConfig

FILES: dict[str, tuple[type[BaseModel], str]] = {
    "config": (Config, "config/config.yaml"),
    "task": (Task, "config/tasks/NAME.yaml"),
    "method": (Method, "config/methods/FAMILY/NAME.yaml"),
    "source": (Source, "config/sources/NAME.yaml"),
}
INTRODUCTION = """\
# Configuration reference

<!-- Made by `relent docs` from the models in src/relent/manifest/models.py; change those, not this page. -->

Everything that a user sets stands in `config/`, as YAML, and is checked before any job starts: an unknown key, a wrong
type or an absurd value ends the command with one line that names file, line and key. A key without a default must be
given. A name consists of small letters, digits and underscores. The same models give the JSON schemas in
`workflow/schemas/`; an editor with a YAML language server completes and checks a file whose first line is
`# yaml-language-server: $schema=` and the path of its schema.

Keys of `config/config.yaml` can be changed for one call: `snakemake --config scale=smoke 'seeds=[0,1]'`.
"""


def schema(model: type[BaseModel], title: str) -> str:
    """JSON schema of a model, as text."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(head | model.model_json_schema() | {"title": title}, indent=1, ensure_ascii=False) + "\n"


def schemas() -> dict[str, str]:
    """Path → text of every schema."""
    named = FILES.items()
    return {f"workflow/schemas/{name}.schema.json": schema(model, f"Relent: {file}") for name, (model, file) in named}


def configuration_page() -> str:
    """Text of docs/configuration.md."""
    lines = INTRODUCTION.split("\n")
    explained: set[type[BaseModel]] = set()
    for model, path in FILES.values():
        lines += [f"## `{path}`", "", *_model(model)]
        for part in _parts(model):
            if part not in explained:
                explained.add(part)
                lines += [f"### {part.__name__}", "", *_model(part)]
    for kind, options in task_kinds().items():
        lines += [f"## Options of `{kind}` tasks", "", _OPTIONS, ""]
        for part in _parts(options):
            lines += [f"### {part.__name__} of `{kind}`", "", *_model(part)]
    lines += ["## The shared recipe", "", _RECIPE, "", *_hyperparameters()]
    return "\n".join(lines).rstrip() + "\n"


_OPTIONS = """\
What may stand under `scales.SCALE.data`, `.model` and `.evaluation`; a teacher's `model` is the same as a student's."""


def task_kinds() -> dict[str, type[BaseModel]]:
    """Kinds of task with the model of their options."""
    folder = Path(tasks.__file__).parent
    kinds = sorted(path.parent.name for path in folder.glob("*/options.py"))
    return {kind: import_module(f"relent.tasks.{kind}.options").Options for kind in kinds}


_RECIPE = """\
Hyperparameters that every trained method has. A task sets them for all its methods under `scales.SCALE.training`; a
method's manifest may change them under `hyperparameters.SCALE`, a variant under its own `hyperparameters` (the later
one counts). What a method adds stands in the [method index](methods.md)."""


def _hyperparameters() -> list[str]:
    rows = [_row(name, field) for name, field in MethodConfig.model_fields.items()]
    return table(("key", "type", "default", "what it is"), rows)


def _model(model: type[BaseModel]) -> list[str]:
    text = (model.__doc__ or "").partition("\n\n")[0].strip().rpartition("yaml`: ")[2]
    text = text[:1].upper() + text[1:]
    rows = [_row(name, field) for name, field in model.model_fields.items()]
    return [text, "", *table(("key", "type", "default", "what it is"), rows)]


def _row(name: str, field: FieldInfo) -> tuple[str, str, str, str]:
    limits = bounds(field)
    kind = "name" if is_name(field.metadata) else type_in_words(field.annotation)
    kind += f", {limits}" if limits else ""
    return code(name), kind, "must be given" if field.is_required() else _default(field), field.description or ""


def _default(field: FieldInfo) -> str:
    value = plain(field.get_default(call_default_factory=True))
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, dict) and any(isinstance(v, BaseModel) for v in value.values()):
        return ", ".join(map(code, value))
    return "none" if value is None else code(json.dumps(value, ensure_ascii=False))


def _parts(model: type[BaseModel]) -> list[type[BaseModel]]:
    """Models nested in a model, in the order of its fields, each followed by its own parts."""
    found: list[type[BaseModel]] = []
    for field in model.model_fields.values():
        for part in _models_in(field.annotation):
            found += [part, *_parts(part)]
    return list(dict.fromkeys(found))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
