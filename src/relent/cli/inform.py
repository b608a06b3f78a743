"""`relent list`, `relent show`, `relent doctor`: what there is to know, on a terminal, in a pipe or as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from relent.cli.options import catalogue_options
from relent.errors import nearest
from relent.inform.findings import Findings
from relent.manifest.catalogue import Catalogue
from relent.project import CONFIG

AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


@click.command("list")
@click.option("--family", default="", help="Only methods of this family.")
@click.option("--task", default="", help="Only this task and the methods that fit it.")
@AS_JSON
@catalogue_options
def list_command(family: str, task: str, as_json: bool, catalogue: Catalogue) -> None:
    """List methods by family and tasks, with papers and the state of the papers' claims.

    A claim's state comes from results/TASK/claims.json, written by the workflow.
    """
    from relent.inform.facts import catalogue_facts

    _known("family", family, catalogue.families())
    _known("task", task, catalogue.tasks)
    findings = Findings.read(catalogue)
    facts = catalogue_facts(catalogue, findings, family, task)
    if as_json:
        _print_json(facts | {"problems": findings.problems})
        return
    from relent.inform.pages import list_page

    list_page(facts)
    _tell_problems(findings)


@click.command("show")
@click.argument("name")
@AS_JSON
@catalogue_options
def show_command(name: str, as_json: bool, catalogue: Catalogue) -> None:
    """Show all about NAME, a method or a task.

    A method: paper, equation, stages, variants, hyperparameters with their sources, differences between paper and
    code, claims with their verdicts, results, and the commands that run it. A task: data, metrics, teachers, scales.
    """
    from relent.inform.facts import method_facts, task_facts

    _known("method or task", name, {**catalogue.methods, **catalogue.tasks})
    findings = Findings.read(catalogue)
    is_method = name in catalogue.methods
    facts = (
        method_facts(catalogue, catalogue.methods[name], findings)
        if is_method
        else task_facts(catalogue, catalogue.tasks[name], findings)
    )
    if as_json:
        _print_json(facts | {"problems": findings.problems})
        return
    from relent.inform.pages import method_page, task_page

    (method_page if is_method else task_page)(facts)
    _tell_problems(findings)


@click.command("doctor")
@click.option("--config", default=CONFIG, show_default=True, type=click.Path(path_type=Path), help="Configuration.")
@AS_JSON
def doctor_command(config: Path, as_json: bool) -> None:
    """Say what this machine has, what is missing, and how to get it.

    Cores, memory, disk, Python and packages, GPUs, SLURM, the profile `slurm`, the tracking store, data. Exit status 1
    only if something is broken that the main job needs.
    """
    from relent.inform.doctor import examine

    examination = examine(config)
    if as_json:
        _print_json(examination.to_json())
    else:
        from relent.inform.pages import doctor_page

        doctor_page(examination)
    if not examination.sound:
        sys.exit(1)


def _known(what: str, name: str, known: Any) -> None:
    if name and name not in known:
        raise click.BadParameter(f"no {what} {name!r}{nearest(name, known)}")


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, ensure_ascii=False))


def _tell_problems(findings: Findings) -> None:
    for problem in findings.problems:
        click.echo(f"note: {problem}", err=True)
