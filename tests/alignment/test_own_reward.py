"""A run is judged by the reward that its own loss reads off the policy, and by the optimum of its own objective."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import zarr
from safetensors.torch import load_file

from relent.divergences.discrete import forward_kl
from relent.evaluate.run import evaluate_run
from relent.language.exact import optimal_log_probs, token_level_optimum
from relent.language.regulariser import Regulariser
from relent.tasks.preference_alignment.data import read_base
from relent.tasks.preference_alignment.laws import completion_rewards
from relent.train.stage import build, run_stage

METHODS = {
    "dpo": ("dpo", {}),
    "f_dpo": ("f_dpo", {}),
    "tdpo1": ("tdpo", {"version": 1}),
    "tdpo2": ("tdpo", {"version": 2}),
    "tdpo2_without_kl": ("tdpo", {"version": 2, "alpha": 0.0}),
    "sparsepo": ("sparsepo", {"positive_start": True}),
    "sparsepo_as_tdpo1": ("sparsepo", {"reward_mask": "unit", "kl_mask": "unit"}),
    "sparsepo_as_dpo": ("sparsepo", {"reward_mask": "unit", "kl_mask": "zero"}),
    "dpo_kernels": ("dpo_kernels", {"gamma": 0.7, "alpha": 0.4}),
    "dpo_kernels_as_dpo": ("dpo_kernels", {"gamma": 0.0, "alpha": 0.0}),
}
OPTIMA = {
    **dict.fromkeys(("dpo", "tdpo2_without_kl", "sparsepo_as_dpo", "dpo_kernels_as_dpo"), "completion"),
    **dict.fromkeys(("tdpo1", "sparsepo_as_tdpo1"), "token"),
}


@pytest.fixture
def judged(student):
    """Give a function that trains a method for some steps: specification, trained module, task."""

    def run(name: str):
        method, settings = METHODS[name]
        spec = student(method, hyperparameters={"beta": 0.5, "learning_rate": 0.01, "max_steps": 20} | settings)
        run_stage(spec)
        module, _, task = build(spec)
        module.load_state_dict(load_file(Path(spec.output) / "weights.safetensors"))
        return spec, module.eval(), task

    return run


@pytest.mark.parametrize("name", METHODS)
def test_the_likelihood_of_preferences_is_the_loss_on_the_test_pairs(judged, name):
    spec, module, task = judged(name)
    items = task._items("test")
    batch = items.__getitems__(list(range(len(items))))
    with torch.no_grad():
        loss = module.terms(batch)["preference"]
    assert evaluate_run(Path(spec.output)).scores["preference_nll"] == pytest.approx(float(loss), abs=1e-5)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "f_dpo"])
def test_the_optimum_is_that_of_the_objective(judged, name):
    spec, _, task = judged(name)
    scores = evaluate_run(Path(spec.output)).scores
    if name not in OPTIMA:
        assert "kl_to_optimum" not in scores
        return
    base = read_base(spec.inputs["teacher"], task.texts, table=True)
    rewards = completion_rewards(task.texts)
    if OPTIMA[name] == "token":
        best = token_level_optimum(base.table, rewards, 0.5, task.texts.space)
    else:
        best = optimal_log_probs(base.table, rewards, 0.5)
    root = zarr.open_group(Path(spec.output) / "predictions.zarr", mode="r")
    table = torch.from_numpy(root["table"][...]).double()
    assert scores["kl_to_optimum"] == pytest.approx(float(forward_kl(table, best).mean()), abs=1e-9)
    assert scores["kl_from_optimum"] == pytest.approx(float(forward_kl(best, table).mean()), abs=1e-9)


def test_an_optimum_of_single_tokens_needs_the_space():
    with pytest.raises(ValueError, match="needs the space of completions"):
        Regulariser(1.0, level="token").optimum(torch.zeros(1, 3), torch.zeros(1, 3))
