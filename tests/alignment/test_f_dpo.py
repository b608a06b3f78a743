"""The module of f-DPO: its loss and gradient on a network, its limit DPO, training at several divergences."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import zarr

from relent.divergences.discrete import forward_kl
from relent.errors import DataError
from relent.evaluate.run import evaluate_run
from relent.language.exact import optimal_log_probs, regularised_optimum
from relent.methods.alignment.f_dpo import f_dpo_divergence, f_dpo_loss
from relent.scores.calibration import expected_calibration_error
from relent.tasks.preference_alignment.data import read_base
from relent.tasks.preference_alignment.laws import completion_rewards
from relent.train.stage import build, run_stage

SETTINGS = [
    {"divergence": "forward_kl"},
    {"divergence": "jensen_shannon_unhalved"},
    {"divergence": "alpha", "alpha": 0.3},
    {"divergence": "alpha", "alpha": 0.7},
]


def test_the_contract_is_kept(keeps_contract):
    keeps_contract("f_dpo")


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_step_is_the_objective_on_the_tables_of_the_network(module_in_float64, sequence_ratios, same_step, setting):
    module, batch = module_in_float64("f_dpo", setting | {"beta": 0.4})
    alpha = {name: value for name, value in setting.items() if name == "alpha"}
    divergence = f_dpo_divergence(setting["divergence"], **alpha)
    expected = f_dpo_loss(*sequence_ratios(module, batch), divergence, beta=0.4).mean()
    same_step(module, batch, expected)


def test_under_the_reverse_kl_it_is_dpo(module_in_float64):
    ours, batch = module_in_float64("f_dpo", {"divergence": "reverse_kl", "beta": 0.4})
    dpo, _ = module_in_float64("dpo", {"beta": 0.4})
    assert torch.equal(ours.training_step(batch, 0), dpo.training_step(batch, 0))


@pytest.mark.parametrize("setting", SETTINGS[1:3])
def test_training_raises_the_objective_over_the_base_model(scores_after, reference_reward, setting):
    scores = scores_after("f_dpo", hyperparameters=setting | {"beta": 1.0, "max_steps": 30, "learning_rate": 0.01})
    assert scores["objective"] > reference_reward + 0.01
    assert scores["kl_to_reference"] > 0


def test_forward_kl_keeps_what_the_reference_says(scores_after):
    """At β 0.1 and equal steps its policy has lost less of the reference's mass than that of DPO."""
    steps = {"max_steps": 60, "learning_rate": 0.02}
    forward = scores_after("f_dpo", hyperparameters={"divergence": "forward_kl"} | steps)
    dpo = scores_after("dpo", hyperparameters=steps)
    assert forward["kl_from_reference"] < 0.7 * dpo["kl_from_reference"]


@pytest.fixture
def judged(student):
    """Give a function that trains f-DPO for some steps: its scores, log-ratios of pairs, tables, reward."""

    def run(**hyperparameters):
        spec = student("f_dpo", hyperparameters={"beta": 0.5, "learning_rate": 0.01} | hyperparameters)
        run_stage(spec)
        _, _, task = build(spec)
        base = read_base(spec.inputs["teacher"], task.texts, table=True)
        root = zarr.open_group(Path(spec.output) / "predictions.zarr", mode="r")
        pairs = torch.stack([torch.from_numpy(root[f"pairs/{side}"][...]) for side in ("chosen", "rejected")], 1)
        ratios = pairs.double() - base.pairs["test"].reference.double().sum(-1)
        table = torch.from_numpy(root["table"][...]).double()
        return evaluate_run(Path(spec.output)).scores, ratios, table, base.table, completion_rewards(task.texts)

    return run


@pytest.mark.parametrize("setting", SETTINGS[:3])
def test_its_scores_are_those_of_its_own_reward_and_optimum(judged, setting):
    """From the run's folder alone, against the divergence of the registry; DPO's are others."""
    scores, ratios, table, reference, rewards = judged(**setting)
    alpha = {name: value for name, value in setting.items() if name == "alpha"}
    divergence = f_dpo_divergence(setting["divergence"], **alpha)
    margins = 0.5 * (divergence.score(ratios[:, 0]) - divergence.score(ratios[:, 1]))
    assert scores["preference_nll"] == pytest.approx(float(-torch.nn.functional.logsigmoid(margins).mean()), abs=1e-9)
    ece = expected_calibration_error(margins.abs().sigmoid(), (margins > 0).double(), bins=10)
    assert scores["preference_ece"] == pytest.approx(float(ece), abs=1e-9)
    best = regularised_optimum(reference, rewards, 0.5, divergence).log_probs
    assert scores["kl_to_optimum"] == pytest.approx(float(forward_kl(table, best).mean()), abs=1e-9)
    assert scores["kl_from_optimum"] == pytest.approx(float(forward_kl(best, table).mean()), abs=1e-9)
    other = float(forward_kl(table, optimal_log_probs(reference, rewards, 0.5)).mean())
    assert scores["kl_to_optimum"] != pytest.approx(other, rel=0.01)


def test_under_the_reverse_kl_its_scores_are_those_of_dpo(scores_after):
    steps = {"beta": 0.5, "learning_rate": 0.01}
    ours = scores_after("f_dpo", hyperparameters=steps | {"divergence": "reverse_kl"})
    dpo = scores_after("dpo", hyperparameters=steps)
    for name in ("preference_nll", "preference_ece", "kl_to_optimum", "kl_from_optimum", "objective"):
        assert ours[name] == dpo[name], name


def test_predictions_that_do_not_say_their_regulariser_are_refused(student):
    spec = student("f_dpo", hyperparameters={"max_steps": 1})
    run_stage(spec)
    root = zarr.open_group(Path(spec.output) / "predictions.zarr", mode="r+")
    assert root.attrs["regulariser"]["divergence"] == "alpha"
    assert evaluate_run(Path(spec.output)).tables["divergence"] == [{"name": "alpha(0.5)", "to": "reference"}]
    del root.attrs["regulariser"]
    with pytest.raises(DataError, match=r"predictions.zarr: does not say the regulariser.*train the run again"):
        evaluate_run(Path(spec.output))
