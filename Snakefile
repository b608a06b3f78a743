"""Relent: data → teachers → students → evaluation → comparison → claims → tracking → report."""

import os
import shlex
import sys
from pathlib import Path

from snakemake.settings.types import DeploymentMethod

from relent.errors import RelentError
from relent.project import Project


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


try:
    PROJECT = Project.load(config, manifests=Path(workflow.basedir) / "config")
    if workflow.is_main_process:
        PROJECT.check_files()
except RelentError as error:
    sys.exit(f"relent: {error}")


DATA, TEACHERS, RESULTS = (
    PROJECT.config.data,
    PROJECT.config.teachers,
    PROJECT.config.results,
)
CATALOGUE = PROJECT.catalogue

# What every command is told: folders and plug-ins, and where `relent` itself is found.
SETTINGS = {
    "RELENT_MANIFESTS": Path(workflow.basedir) / "config",
    "RELENT_PLUGINS": os.pathsep.join(PROJECT.config.plugins),
    "RELENT_DATA": DATA,
    "RELENT_TEACHERS": TEACHERS,
    "RELENT_RESULTS": RESULTS,
}
if DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method:
    SETTINGS["PYTHONPATH"] = Path(workflow.basedir) / "src"
    FIND = 'relent() { python -m relent "$@"; }; '
else:
    FIND = f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; "
shell.prefix(
    "".join(f"export {k}={shlex.quote(str(v))}; " for k, v in SETTINGS.items()) + FIND
)
PROJECT.tell_tracking_address()


wildcard_constraints:
    task="|".join(CATALOGUE.tasks),
    source="|".join(CATALOGUE.sources),
    teacher=r"[a-z][a-z0-9_]*",
    method="|".join(CATALOGUE.methods),
    variant=r"[a-z][a-z0-9_]*",
    scale="smoke|laptop|cluster",
    stage=r"[a-z][a-z0-9_]*",
    seed=r"\d+",


localrules:
    all,
    data,
    track,


rule all:
    default_target: True
    input:
        PROJECT.targets(),


include: "workflow/rules/data.smk"
include: "workflow/rules/teachers.smk"
include: "workflow/rules/students.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/comparison.smk"
include: "workflow/rules/tracking.smk"
include: "workflow/rules/targets.smk"


onsuccess:
    from relent.cli import main as relent

    pages = [job for job in workflow.dag.jobs if job.rule.name == "page"]
    if pages and "RELENT_SUMMARY_LATER" not in os.environ:
        relent(
            ["summary", "--results", RESULTS, *(p.wildcards.task for p in pages)]
        )
