"""Scores of a classification run against scikit-learn and scipy on the stored logits."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from scipy.special import log_softmax, softmax
from scipy.stats import entropy, spearmanr
from sklearn.metrics import accuracy_score, log_loss, recall_score

from relent.errors import DataError
from relent.evaluate.run import evaluate_run
from relent.files import read_json
from relent.runspec import RunSpec


def stored(spec: RunSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Student logits, teacher logits, labels and sources of the test split."""
    group = zarr.open_group(Path(spec.output) / "predictions.zarr", mode="r")["test"]
    data = zarr.open_group(Path(spec.inputs["data"]) / "dataset.zarr", mode="r")
    teacher = zarr.open_group(Path(spec.inputs["teacher"]) / "outputs.zarr", mode="r")["logits"][...]
    index = group["index"][...]
    logits = group["logits"][...].astype(np.float64)
    return logits, teacher[index].astype(np.float64), data["labels"][...][index], data["source"][...][index]


def test_scores_are_those_of_the_field_s_own_tools(own_run):
    evaluation = evaluate_run(Path(own_run.output))
    scores, (logits, teacher, labels, source) = evaluation.scores, stored(own_run)
    predicted = logits.argmax(1)
    assert scores["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert scores["nll"] == pytest.approx(log_loss(labels, softmax(logits, axis=1), labels=range(5)), rel=1e-9)
    for number, name in enumerate(("even", "odd")):
        chosen = source == number
        assert scores[f"accuracy_{name}"] == pytest.approx(accuracy_score(labels[chosen], predicted[chosen]))
    assert scores["teacher_agreement"] == pytest.approx((predicted == teacher.argmax(1)).mean())
    kl = entropy(softmax(teacher, axis=1), softmax(logits, axis=1), axis=1).mean()
    assert scores["teacher_kl"] == pytest.approx(kl, rel=1e-7)
    others = [np.delete(np.arange(5), label) for label in labels]
    pairs = [(row[o], reference[o]) for row, reference, o in zip(logits, teacher, others)]
    ranks = np.mean([spearmanr(student, reference).statistic for student, reference in pairs])
    assert scores["teacher_rank_correlation"] == pytest.approx(ranks, rel=1e-9)
    non_target = np.mean([entropy(softmax(reference), softmax(student)) for student, reference in pairs])
    assert scores["non_target_kl"] == pytest.approx(non_target, rel=1e-7)


def test_a_run_is_scored_by_metrics_of_its_task(own_run, shared_catalogue):
    scores = evaluate_run(Path(own_run.output)).scores
    assert scores.keys() <= shared_catalogue.tasks["patterns"].metrics.keys()
    assert {"accuracy_even", "accuracy_odd"} <= scores.keys()


def test_calibration_error_by_its_definition(own_run):
    logits, _, labels, _ = stored(own_run)
    confidence = np.exp(log_softmax(logits, axis=1).max(1))
    right = logits.argmax(1) == labels
    bins = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
    gaps = [abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    assert evaluate_run(Path(own_run.output)).scores["ece"] == pytest.approx(sum(gaps), rel=1e-9)


def test_tables_hold_every_class_and_every_item(own_run):
    tables = evaluate_run(Path(own_run.output)).tables
    logits, _, labels, _ = stored(own_run)
    recalls = recall_score(labels, logits.argmax(1), average=None)
    assert [row["class"] for row in tables["class_accuracy"]] == [f"class {number}" for number in range(5)]
    np.testing.assert_allclose([row["accuracy"] for row in tables["class_accuracy"]], recalls)
    assert sum(row["count"] for row in tables["reliability"]) == len(labels)


def test_the_folder_gets_scores_and_a_figure(own_run):
    evaluation = evaluate_run(Path(own_run.output))
    folder = Path(own_run.output)
    written = read_json(folder / "scores.json")
    assert written["scores"] == evaluation.scores
    assert written["plan"] == read_json(folder / "config.json")["plan"]
    assert written["settings"]["split"] == "test"
    assert written["settings"]["items"] == 40
    (figure,) = (folder / "figures").iterdir()
    assert figure.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert figure.stat().st_size > 10_000


def test_inputs_may_lie_elsewhere(own_run, tmp_path):
    shutil.copytree(own_run.inputs["data"], tmp_path / "moved")
    shutil.copytree(own_run.inputs["teacher"], tmp_path / "teacher")
    found = evaluate_run(Path(own_run.output), {"data": str(tmp_path / "moved"), "teacher": str(tmp_path / "teacher")})
    assert found.scores == evaluate_run(Path(own_run.output)).scores


def test_predictions_that_are_not_finite_are_refused(own_run):
    zarr.open_group(Path(own_run.output) / "predictions.zarr", mode="r+")["test/logits"][0, 0] = np.nan
    with pytest.raises(DataError, match="test/logits: holds NaN"):
        evaluate_run(Path(own_run.output))
    assert not (Path(own_run.output) / "scores.json").exists()


def test_missing_predictions_are_refused(own_run):
    shutil.rmtree(Path(own_run.output) / "predictions.zarr")
    with pytest.raises(DataError, match=r"predictions\.zarr: does not exist; train the run first"):
        evaluate_run(Path(own_run.output))


def test_predictions_of_other_data_are_refused(own_run):
    root = zarr.open_group(Path(own_run.output) / "predictions.zarr", mode="r+")
    root.attrs["data_checksum"] = "0" * 64
    with pytest.raises(DataError, match="another data set; train the run again"):
        evaluate_run(Path(own_run.output))
