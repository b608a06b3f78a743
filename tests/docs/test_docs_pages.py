"""What the pages tell can be done: links lead somewhere, commands exist, targets are made by the workflow."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from relent.cli import cli
from relent.manifest import catalogue as manifests
from relent.manifest.catalogue import Catalogue
from relent.project import Project

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
NAMES = (
    "index",
    "architecture",
    "configuration",
    "methods",
    "adding_a_method",
    "running",
    "cluster",
    "faults",
    "tracking",
    "data",
    "weather",
)
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "config/README.md")]
PAGES += [ROOT / "docs" / f"{name}.md" for name in NAMES]
MADE_BY_RUNNING = {"docs/images/main_job.png", "docs/benchmarks.md"}


def commands(program: str) -> list[list[str]]:
    """Commands of a program in code blocks, tables and code spans of all pages, without comments."""
    found = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
        lines = [line.partition(" #")[0] for block in blocks for line in block.splitlines()]
        spans = re.findall(rf"`({program} [^`\n]+)`", text)
        found |= {part.strip() for line in (*lines, *spans) for part in line.split("&&")}
    told = [line for line in sorted(found) if line.split()[:1] == [program] and not re.search("[A-Z…]{3}", line)]
    return [shlex.split(line) for line in told]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            path = (page.parent / target).resolve()
            assert path.exists() or str(path.relative_to(ROOT)) in MADE_BY_RUNNING, f"{page.name}: {target}"


def test_anchors_of_the_method_index_exist():
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    headings = {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def test_relent_commands_exist_with_their_options_and_names():
    found = commands("relent")
    assert len(found) > 8
    catalogue = Catalogue.load(ROOT / "config", [str(ROOT / "tests" / "plugins" / "toy")])
    names = {*catalogue.methods, *catalogue.tasks, *catalogue.sources}
    with click.Context(cli) as context:
        for _, name, *arguments in found:
            command = cli.get_command(context, name)
            assert command is not None, name
            options = {option for parameter in command.params for option in parameter.opts}
            assert {argument for argument in arguments if argument.startswith("--")} <= options, (name, arguments)
            if name in ("show", "train", "prepare", "fetch", "check-method"):
                named = {argument for argument in arguments[:1] if not argument.startswith("--")}
                # docs/data.md shows how a reader's own task is made.
                assert named <= names | {"weather_mine"}, (name, arguments)


def test_make_targets_exist():
    known = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for page in PAGES:
        assert set(re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(encoding="utf-8"), flags=re.M)) <= known


def test_configuration_changes_are_accepted(monkeypatch, read_once):
    """Every `--config` of the pages, checked as the Snakefile does."""
    monkeypatch.setattr(manifests, "read_yaml", read_once)
    values = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    given = [command for command in commands("snakemake") if "--config" in command]
    assert len(given) > 5
    for command in given:
        parts = [part for part in command[command.index("--config") + 1 :] if "=" in part]
        changes = {key: yaml.safe_load(value) for key, _, value in (part.partition("=") for part in parts)}
        if "plugins" in changes:
            changes["plugins"] = [str(ROOT / "tests" / "plugins" / "toy")]
        assert Project.load(values | changes, ROOT / "config" / "config.yaml").runs()


@pytest.mark.workflow
def test_targets_are_made_by_the_workflow(tmp_path):
    """One dry run of all targets that the pages name."""
    given = [command[1:] for command in commands("snakemake") if command[1:] and not command[1].startswith("-")]
    targets = list(dict.fromkeys(command[0] for command in given))
    assert {"images", "distillation", "data"} <= set(targets)
    folders = [f"{name}={tmp_path / name}" for name in ("data", "teachers", "results")]
    moved = [re.sub(r"^(data|teachers|results)/", rf"{tmp_path}/\1/", target) for target in targets]
    command = [str(BIN / "snakemake"), *moved, "--dry-run", "--quiet", "all", "--snakefile", str(ROOT / "Snakefile")]
    done = subprocess.run([*command, "--config", *folders], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
