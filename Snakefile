"""Relent: data → teachers → students → evaluation → comparison → claims → tracking → report."""

import os
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

from relent.errors import RelentError
from relent.locks import watch_over
from relent.project import Project
from relent.slurm.cluster import Cluster, prefer_commands
from relent.slurm.orphans import end_orphans, forget_jobs


report: "workflow/report/workflow.rst"


try:
    PROJECT = Project.load(config, manifests=Path(workflow.basedir) / "config")
    CLUSTER = Cluster.read(workflow.resource_settings.default_resources)
    if workflow.is_main_process:
        # Kept open: the lock lasts as long as this process.
        LOCK = watch_over(
            Path(".snakemake"), lambda text: print(f"relent: {text}", file=sys.stderr)
        )
        PROJECT.check_files()
        PROJECT.check_cluster(CLUSTER)
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
    "RELENT_DASK": PROJECT.config.dask.model_dump_json(),
}
DEPLOYMENT = workflow.deployment_settings.deployment_method
if {DeploymentMethod.CONDA, DeploymentMethod.APPTAINER} & set(DEPLOYMENT):
    SETTINGS["PYTHONPATH"] = Path(workflow.basedir) / "src"
    BIN = Path(workflow.basedir) / "workflow" / "bin"
else:
    BIN = Path(sys.executable).parent
if DeploymentMethod.APPTAINER in DEPLOYMENT:

    # Built by the user out of the Containerfile: for CPUs, or with CUDA.
    container: "envs/relent.sif"


# `relent` is a command and no shell function: a rule puts it in the place of its shell (`exec`), so that a signal which
# ends the job reaches the training and not a shell before it; and `srun` starts commands alone.
SET = "".join(f"export {k}={shlex.quote(str(v))}; " for k, v in SETTINGS.items())
SET += f"export PATH={shlex.quote(str(BIN))}:$PATH; "
# Snakemake fills in what stands in braces.
shell.prefix(SET.replace("{", "{{").replace("}", "}}"))
if CLUSTER.launcher and workflow.is_main_process:
    # Commands of SLURM that are given again when SLURM is too busy to answer.
    prefer_commands(Path(workflow.basedir) / "profiles" / "slurm" / "bin")
PROJECT.tell_tracking_address()


wildcard_constraints:
    task="|".join(CATALOGUE.tasks),
    group="|".join(PROJECT.config.groups) or "(?!)",
    source="|".join(CATALOGUE.sources),
    teacher=r"[a-z][a-z0-9_]*",
    method="|".join(CATALOGUE.methods),
    variant=r"[a-z][a-z0-9_]*",
    scale="smoke|laptop|cluster",
    stage=r"[a-z][a-z0-9_]*",
    seed=r"0|[1-9][0-9]*",


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
include: "workflow/rules/forecast.smk"
include: "workflow/rules/comparison.smk"
include: "workflow/rules/overview.smk"
include: "workflow/rules/tracking.smk"
include: "workflow/rules/targets.smk"


onstart:
    try:
        end_orphans(say=lambda text: print(f"relent: {text}", file=sys.stderr))
    except RelentError as error:
        raise WorkflowError(f"relent: {error}") from None
    # Snakemake limits how many jobs start in a second by looking for work again a second after it has looked, and every
    # job that ends adds a look of its own: after some hundred jobs a core does nothing else. Ends of jobs are enough.
    workflow.scheduler.job_rate_limiter = None


onsuccess:
    forget_jobs()
    from relent.cli import main as relent

    pages = [
        job for job in workflow.dag.jobs if job.rule.name in ("page", "overview")
    ]
    if pages and "RELENT_SUMMARY_LATER" not in os.environ:
        relent(
            [
                "summary",
                "--results",
                RESULTS,
                *(next(iter(p.wildcards)) for p in pages),
            ]
        )
