"""Figures of a comparison of classifiers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from relent.compare.results import RunResult, by_label, read_run
from relent.evaluate.run import evaluate_run
from relent.tasks.classification.comparison import draw, reliability


def _run(label: str, seed: int, **tables: list[dict[str, float]]) -> RunResult:
    config = {"seed": seed, "method": label, "hyperparameters": {}}
    return RunResult(Path(label), label, config, {"accuracy": 0.1 + 0.01 * seed}, tables, {})


def test_a_comparison_gets_figures_with_captions(own_run, tmp_path):
    evaluate_run(Path(own_run.output))
    one = read_run(own_run.output, "knowledge_distillation")
    runs = [one, replace(one, label="pld"), replace(one, config=one.config | {"seed": 1})]
    assert {label: len(found) for label, found in by_label(runs).items()} == {"knowledge_distillation": 2, "pld": 1}
    into = tmp_path / "figures"
    into.mkdir()
    captions = draw(runs, into)
    assert (
        sorted(captions)
        == sorted(path.name for path in into.iterdir())
        == ["classes.png", "reliability.png", "scores.png"]
    )
    assert all(caption.endswith(".") for caption in captions.values())
    assert all(path.stat().st_size > 5_000 for path in into.iterdir())


def test_scores_that_a_method_lacks_are_left_out(own_run, tmp_path):
    evaluate_run(Path(own_run.output))
    one = read_run(own_run.output, "a")
    draw([one, replace(one, label="b", scores={"accuracy": 0.5})], tmp_path)
    assert (tmp_path / "scores.png").is_file()


def test_ranks_of_very_many_classes_get_a_curve_and_no_reliability(tmp_path):
    curve = [{"k": k, "accuracy": 0.01 * k} for k in (1, 5, 10)]
    captions = draw([_run(label, seed, top_k=curve) for label in "ab" for seed in (0, 1)], tmp_path)
    assert sorted(captions) == sorted(path.name for path in tmp_path.iterdir()) == ["scores.png", "top_k.png"]


def test_reliability_puts_the_bins_of_all_seeds_together():
    first = [{"confidence": 0.5, "accuracy": 0.4, "count": 30}, {"confidence": 0.9, "accuracy": 1.0, "count": 4}]
    second = [{"confidence": 0.52, "accuracy": 0.8, "count": 10}, {"confidence": 0.9, "accuracy": 1.0, "count": 5}]
    confidence, accuracy = reliability([_run("a", 0, reliability=first), _run("a", 1, reliability=second)])
    assert confidence == pytest.approx([0.505])  # the other bin has nine items, which say nothing
    assert accuracy == pytest.approx([0.5])
