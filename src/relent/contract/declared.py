"""Checks of what a method declares: its Config, its manifest, and the fingerprint of its code."""

from __future__ import annotations

import tempfile
from pathlib import Path

from relent.contract.result import CheckResult, failed, passed
from relent.contract.subject import Subject
from relent.manifest.fingerprint import fingerprint
from relent.manifest.hyperparameters import config_class, locate
from relent.methods.config import MethodConfig
from relent.train.stage import load_module


def check_manifest(subject: Subject) -> CheckResult:
    """Config is readable without torch and equals the imported one, every hyperparameter tells meaning and source,
    all variants and stages resolve."""
    implementation = subject.method.implementation
    config = config_class(implementation, locate(implementation)[0].stat().st_mtime_ns)
    config()
    undocumented = [
        name
        for name, field in config.model_fields.items()
        if not field.description
        or not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("source"))
    ]
    if undocumented:
        return failed(
            "manifest",
            f"no description or source: {', '.join(undocumented)}",
            'declare each field by hyperparameter(default, "what it means", source="paper and section, or ours")',
        )
    imported = load_module(implementation.partition(":")[0]).Config
    if set(imported.model_fields) != set(config.model_fields):
        return failed(
            "manifest",
            f"Config has other fields once imported: {sorted(set(imported.model_fields) ^ set(config.model_fields))}",
            "declare every field in the class statement; nothing may be added to Config at import",
        )
    stages = subject.specs("manifest")
    own = len(set(config.model_fields) - set(MethodConfig.model_fields))
    return passed("manifest", f"{own} hyperparameters of its own, stages: {', '.join(stages)}")


def check_fingerprint(subject: Subject) -> CheckResult:
    """A comment leaves the fingerprint of the method's file as it is, a statement changes it."""
    name = "code fingerprint"
    source, _ = locate(subject.method.implementation)
    text = source.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        versions = (text, f"# A comment.\n{text}\n# Another one.\n", f"{text}\nCHANGED = True\n")
        same, commented, changed = (_fingerprint(Path(folder) / str(n), source.name, v) for n, v in enumerate(versions))
    if same != commented or same == changed:
        return failed(
            name,
            "a comment changes it" if same != commented else "a changed statement does not change it",
            "keep the whole method in one Python file, with imports at its top and no code in strings",
        )
    return passed(name, "comments leave it, a statement changes it")


def _fingerprint(folder: Path, name: str, text: str) -> str:
    folder.mkdir()
    (folder / name).write_text(text, encoding="utf-8")
    return fingerprint([str(folder / name)])
