"""Every classification method keeps the contract: seeds, exact resume, its baseline at weight zero, finite losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from relent.contract.check import check_method
from relent.manifest.catalogue import Catalogue
from relent.manifest.models import Scale

METHODS = (
    *("sinkd", "dkd", "dist", "fitnet", "nd_loss", "deep_mutual_learning", "bd_kd", "lelp"),
    *("opl", "harmonic", "z_loss", "sam", "saf", "mesa", "pgd_at", "trades", "done_at"),
)
# What the claims of some methods need beside the outputs.
EVALUATION = {
    "sharpness": True,
    "attacked_items": 16,
    "attacks": {"weak": {"norm": "linf", "radius": 0.1, "steps": 2, "step_size": 0.1}},
}


@pytest.fixture
def evaluated(catalogue: Catalogue) -> Catalogue:
    task = catalogue.tasks["patterns"]
    smoke = task.scales[Scale.smoke].model_copy(update={"evaluation": EVALUATION})
    task = task.model_copy(update={"scales": task.scales | {Scale.smoke: smoke}})
    return replace(catalogue, tasks=catalogue.tasks | {"patterns": task})


@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_the_contract(name: str, evaluated: Catalogue, tmp_path: Path):
    found = check_method(evaluated, name, "patterns", tmp_path / name)
    broken = [f"{result.check}: {result.detail}" for result in found if result.outcome == "fail"]
    assert not broken
