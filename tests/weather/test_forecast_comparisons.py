"""The comparisons of forecasts that are run by a file of their own, `snakemake --configfile config/NAME.yaml`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from synthetic_atmosphere import CONFIG

from relent.project import Project


def load(name: str) -> Project:
    values = yaml.safe_load((CONFIG / f"{name}.yaml").read_text())
    return Project.load(values, CONFIG / "config.yaml", CONFIG)


@pytest.mark.parametrize("name", ["sweep", "rollouts"])
def test_they_replace_the_comparisons_and_keep_the_rest(name: str) -> None:
    project = load(name)
    (comparison,) = project.comparisons
    assert comparison.task == "weather_twin"
    assert comparison.main
    assert project.config.seeds == Project.load(None, CONFIG / "config.yaml", CONFIG).config.seeds


def test_the_sweep_has_the_same_weights_of_the_kl_for_both_objectives() -> None:
    project = load("sweep")
    weights: dict[str, set[float]] = {}
    for run in project.comparisons[0].runs:
        hyperparameters = project.catalogue.stage_spec(run).hyperparameters
        if "kl_weight" in hyperparameters:
            weights.setdefault(run.method, set()).add(hyperparameters["kl_weight"])
    assert weights["fuxi_ens"] == weights["vae_l1_kl"] == {0.01, 0.1, 0.5, 1.0, 2.0, 5.0}
    assert len(weights) == 2


def test_all_claims_about_the_twin_can_be_checked_by_these_and_the_main_comparison() -> None:
    main = Project.load(None, CONFIG / "config.yaml", CONFIG)
    projects = [main, load("sweep"), load("rollouts")]
    compared = [
        {(run.method, run.variant) for c in project.comparisons if c.task == "weather_twin" for run in c.runs}
        for project in projects
    ]
    methods = main.catalogue.methods
    method = methods["fuxi_ens"]
    claims = [claim for claim in method.claims if "weather_twin" in claim.tasks]
    assert len(claims) > 15
    for claim in claims:
        name, _, variant = claim.baseline.partition(":")
        sides = {("fuxi_ens", claim.variant or "default"), (name, variant or methods[name].default_variant)}
        assert any(sides <= runs for runs in compared), claim.id


def test_the_files_say_how_they_are_run() -> None:
    for name in ("sweep", "rollouts"):
        assert f"snakemake --configfile config/{name}.yaml" in Path(CONFIG / f"{name}.yaml").read_text()
