"""Figures of a comparison of classifiers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from relent.compare.results import by_label, read_run
from relent.evaluate.run import evaluate_run
from relent.tasks.classification.comparison import draw


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
