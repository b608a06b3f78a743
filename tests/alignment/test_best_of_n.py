"""Best-of-n as a policy of the task: exact where completions are enumerated, estimated where they are not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zarr

from relent.evaluate.run import evaluate_run
from relent.methods.alignment.best_of_n import POOL, best_of_n_kl_bound, best_of_n_log_probs, estimated_log_gain
from relent.tasks.preference_alignment.data import read_base
from relent.tasks.preference_alignment.evaluation import evaluate, reference_and_rewards
from relent.tasks.preference_alignment.training import Task
from relent.train.stage import run_stage


@pytest.fixture(scope="module")
def known(trained):
    """log p and r of every completion of the test prompts."""
    task = Task(trained)
    base = read_base(trained.inputs["teacher"], task.texts, table=True)
    return reference_and_rewards(task.texts, base, trained.inputs["teacher"])


def test_the_contract_is_kept(keeps_contract):
    keeps_contract("best_of_n", passes=4)


def test_the_stored_law_is_the_exact_one(student, known):
    spec = student("best_of_n")
    run_stage(spec)
    root = zarr.open_group(Path(spec.output) / "predictions.zarr", mode="r")
    table = torch.from_numpy(root["table"][...])
    torch.testing.assert_close(table, best_of_n_log_probs(*known, 4), rtol=0, atol=1e-10)
    pairs = Task(spec)._base().pairs["test"]
    task = Task(spec)
    rows = torch.searchsorted(task.texts.items("test"), pairs.prompt)
    numbers = task.texts.space.index(pairs.tokens[:, 0], pairs.lengths[:, 0])
    torch.testing.assert_close(torch.from_numpy(root["pairs/chosen"][...]), table[rows, numbers], rtol=0, atol=0)
    # log P(best = y) − log p(y) grows with the reward.
    assert evaluate_run(Path(spec.output)).scores["ranking_accuracy"] > 0.999


def test_more_samples_have_more_reward_and_a_kl_below_the_bound(scores_after, reference_reward):
    found = [scores_after("best_of_n", f"n{n}", hyperparameters={"n": n}) for n in (1, 2, 16)]
    rewards = [scores["expected_reward"] for scores in found]
    assert rewards == sorted(rewards)
    assert rewards[0] == pytest.approx(reference_reward, abs=1e-6)
    assert abs(found[0]["kl_to_reference"]) < 1e-6
    assert found[1]["kl_to_reference"] < best_of_n_kl_bound(2)
    assert found[2]["kl_to_reference"] < best_of_n_kl_bound(16)


def test_estimates_from_samples_meet_the_exact_scores(student):
    exact = student("best_of_n", "exact")
    run_stage(exact)
    truth = evaluate_run(Path(exact.output)).scores
    spec = replace(student("best_of_n", "sampled"), evaluation_options={"exact": False, "samples": 200})
    run_stage(spec)
    found = evaluate(spec, Path(spec.output))
    for name, error in found.tables["standard_errors"][0].items():
        assert abs(found.scores[name] - truth[name]) < 5 * error + 4 / POOL, name
    assert found.scores["ranking_accuracy"] > 0.9


def test_bias_of_the_estimated_kl():
    """Without ties the KL is log n − (n − 1)/n; estimated from the pool it is lower by n/(2·POOL)."""
    n = 64
    generator = torch.Generator().manual_seed(0)
    gains = []
    for _ in range(30):
        pool = torch.rand(POOL, generator=generator, dtype=torch.float64)
        best = torch.rand(100, n, generator=generator, dtype=torch.float64).amax(1)
        gains.append(estimated_log_gain(best, pool, n).mean())
    found = torch.stack(gains)
    error = float(found.std()) / math.sqrt(len(found))
    assert abs(float(found.mean()) - best_of_n_kl_bound(n) + n / (2 * POOL)) < 4 * error + 1e-3
