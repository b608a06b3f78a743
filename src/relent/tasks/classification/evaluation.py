"""Scores and figures of one classification run, from its stored logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor

from relent.divergences.discrete import forward_kl
from relent.divergences.logits import non_target_log_probs
from relent.errors import DataError
from relent.evaluate.run import Evaluation
from relent.runspec import RunSpec
from relent.scores.calibration import expected_calibration_error, reliability_diagram, top_label
from relent.scores.classification import (
    accuracy,
    agreement,
    confusion_matrix,
    kl_to_teacher,
    negative_log_likelihood,
    non_target_rank_correlation,
    per_class_accuracy,
)
from relent.tasks.classification.data import ClassificationData, read_array, read_data, read_teacher

BINS = 15


def read_predictions(folder: Path, split: str, data: ClassificationData) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, C), labels (N,) and item indices (N,) of a split.

    Raises:
        DataError: The predictions are missing, incomplete, or of another data set.
    """
    place = folder / "predictions.zarr"
    if not place.is_dir():
        raise DataError(f"{place}: does not exist; train the run first")
    root = zarr.open_group(place, mode="r")
    if root.attrs["data_checksum"] != data.checksum:
        raise DataError(f"{place}: was made from another data set; train the run again")
    index = torch.from_numpy(read_array(root, f"{split}/index", place))
    logits = torch.from_numpy(read_array(root, f"{split}/logits", place)).double()
    return logits, data.labels[index], index


def scores_of(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, NLL and ECE of logits (N, C), float64."""
    confidence, outcome = top_label(logits, labels)
    return {
        "accuracy": float(accuracy(logits, labels)),
        "nll": float(negative_log_likelihood(logits, labels)),
        "ece": float(expected_calibration_error(confidence, outcome, bins=BINS)),
    }


def teacher_scores(logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> dict[str, float]:
    """How closely a student follows a teacher on the same items; logits (N, C), float64."""
    non_target = forward_kl(
        non_target_log_probs(teacher_logits, labels), non_target_log_probs(logits, labels), reduction="mean"
    )
    return {
        "teacher_agreement": float(agreement(logits, teacher_logits)),
        "teacher_kl": float(kl_to_teacher(logits, teacher_logits)),
        "teacher_rank_correlation": float(non_target_rank_correlation(logits, teacher_logits, labels)),
        "non_target_kl": float(non_target),
    }


def evaluate(spec: RunSpec, folder: Path) -> Evaluation:
    """Score a run on the test split; the task's teacher is compared with even where the method never saw it."""
    data = read_data(spec.inputs["data"])
    logits, labels, index = read_predictions(folder, "test", data)
    scores = scores_of(logits, labels)
    for number, source in enumerate(data.sources):
        chosen = torch.from_numpy(data.source == number)[index]
        if chosen.any():
            scores[f"accuracy_{source}"] = float(accuracy(logits[chosen], labels[chosen]))
    settings: dict[str, Any] = {"split": "test", "items": len(labels), "ece_bins": BINS, "module_mode": "eval"}
    if "teacher" in spec.inputs:
        teacher = read_teacher(spec.inputs["teacher"], data)["logits"].double()[index]
        scores |= teacher_scores(logits, teacher, labels)
        settings |= {f"teacher_{name}": value for name, value in scores_of(teacher, labels).items()}
    by_class = per_class_accuracy(logits, labels)
    validation, validation_labels, _ = read_predictions(folder, "validation", data)
    settings |= {f"validation_{name}": value for name, value in scores_of(validation, validation_labels).items()}
    confidence, outcome = top_label(logits, labels)
    diagram = reliability_diagram(confidence, outcome, bins=BINS)
    bins = [
        {"confidence": float(c), "accuracy": float(a), "count": int(n)}
        for c, a, n in zip(diagram.confidence, diagram.frequency, diagram.counts)
        if n > 0
    ]
    classes = [{"class": name, "accuracy": float(value)} for name, value in zip(data.classes, by_class)]
    return Evaluation(scores, {"class_accuracy": classes, "reliability": bins}, settings)


def draw(spec: RunSpec, folder: Path, into: Path) -> None:
    """Draw the reliability diagram and the confusion matrix of the test split."""
    from matplotlib.figure import Figure

    data = read_data(spec.inputs["data"])
    logits, labels, _ = read_predictions(folder, "test", data)
    confidence, outcome = top_label(logits, labels)
    diagram = reliability_diagram(confidence, outcome, bins=BINS)
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    kept = diagram.counts > 0
    left.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--", label="calibrated")
    left.plot(diagram.confidence[kept], diagram.frequency[kept], "o-", color="#0072b2", ms=4, label=spec.method)
    left.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title="Reliability, test split")
    left.legend(frameon=False)
    matrix = confusion_matrix(logits, labels).double()
    shares = (matrix / matrix.sum(1, keepdim=True).clamp_min(1)).numpy()
    image = right.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    ticks = np.arange(len(data.classes))
    right.set_xticks(ticks, data.classes, rotation=90, fontsize=7)
    right.set_yticks(ticks, data.classes, fontsize=7)
    right.set(xlabel="predicted", ylabel="label", title="Confusion, share of each label")
    figure.colorbar(image, ax=right, shrink=0.9)
    figure.savefig(into / "reliability_and_confusion.png", dpi=110)
