"""Runs all checks on one method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from relent.contract.declared import check_fingerprint, check_manifest
from relent.contract.objective import check_objective
from relent.contract.result import CheckResult, failed
from relent.contract.subject import Subject
from relent.contract.trained import check_baseline_limit, check_evaluation, check_resume, check_seeds
from relent.manifest.catalogue import Catalogue


def check_method(
    catalogue: Catalogue,
    name: str,
    task: str | None,
    workdir: Path,
    scale: str = "smoke",
    variant: str | None = None,
) -> list[CheckResult]:
    """Check everything that a method must keep, by trainings of a few steps on one CPU.

    Args:
        catalogue: All manifests; plug-ins included.
        name: The method.
        task: The task; default: the first that the method fits.
        workdir: Folder for the trainings; what is already trained there is not trained again.
        scale: Whose settings are used; the task's data set of this scale must be prepared.
        variant: The variant; default: the method's. Runs of other methods that it reads are trained for it.

    Returns:
        One result a check, in a fixed order; an error inside a check is its failure.

    Raises:
        ConfigError: No such method, variant, task or scale, or they do not fit.
        DataError: The data set is missing; says how to prepare it.
    """
    subject = Subject.of(catalogue, name, task, scale, workdir, variant)
    results = _run("manifest", lambda: check_manifest(subject))
    results += _run("code fingerprint", lambda: check_fingerprint(subject))
    for stage in subject.method.stages:
        results += _run(f"objective ({stage})", lambda stage=stage: check_objective(subject, stage))  # type: ignore[misc]
    results += _run("seeds", lambda: check_seeds(subject))
    results += _run("resume", lambda: check_resume(subject))
    results += _run("baseline limit", lambda: check_baseline_limit(subject))
    results += _run("evaluation", lambda: check_evaluation(subject))
    return results


def _run(name: str, check: Callable[[], CheckResult | list[CheckResult]]) -> list[CheckResult]:
    """Results of one group of checks. Whatever a method under test raises is a finding, not an end."""
    try:
        found = check()
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        return [
            failed(
                name, f"{type(error).__name__}: {first}", "run `relent train` on the method to see where it is raised"
            )
        ]
    return found if isinstance(found, list) else [found]
