"""Every classification method keeps the contract: seeds, exact resume, its baseline at weight zero, finite losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from relent.contract.check import check_method
from relent.manifest.catalogue import Catalogue, Run
from relent.manifest.models import Scale
from relent.train.stage import run_stage

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
    model = {"network": "mlp", "hidden": [8, 16]}  # as wide as the teacher: their features can be compared
    smoke = task.scales[Scale.smoke].model_copy(update={"evaluation": EVALUATION, "model": model})
    task = task.model_copy(update={"scales": task.scales | {Scale.smoke: smoke}})
    return replace(catalogue, tasks=catalogue.tasks | {"patterns": task})


@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_the_contract(name: str, evaluated: Catalogue, tmp_path: Path):
    found = check_method(evaluated, name, "patterns", tmp_path / name)
    broken = [f"{result.check}: {result.detail}" for result in found if result.outcome == "fail"]
    assert not broken


def test_training_by_the_factored_layer_is_plain_sgd_of_the_whole_network(
    catalogue: Catalogue, changed, tmp_path: Path
):
    """The body by the task's optimiser, the output layer by its factored step: the weights of SGD on everything."""
    trained = {}
    for layer in ("dense", "factored"):
        spec = catalogue.stage_spec(Run("patterns", "z_loss", "default", "smoke", 0))
        sgd = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.1, "output_rate": 0.1}
        spec = replace(changed(spec, output_layer=layer, warmup_steps=3, **sgd), output=str(tmp_path / layer))
        run_stage(spec)
        trained[layer] = load_file(tmp_path / layer / "weights.safetensors")
    assert trained["dense"].keys() == trained["factored"].keys()
    for name, weight in trained["dense"].items():
        torch.testing.assert_close(trained["factored"][name], weight, rtol=1e-4, atol=1e-5)
