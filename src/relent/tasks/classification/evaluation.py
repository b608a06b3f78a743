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
from relent.evaluate.run import Evaluation
from relent.figures import COLOURS, plain
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
    worst_class_accuracy,
)
from relent.scores.features import means_by_class, pair_similarities
from relent.scores.robustness import robust_accuracy, tail_robust_accuracy, worst_class_robust_accuracy
from relent.tasks.classification.data import ClassificationData, read_data, read_teacher
from relent.tasks.classification.subclasses import draw_subclasses, evaluate_subclasses
from relent.tasks.stored import open_predictions, read_array, training_costs

BINS = 15
NAMED = 50
"""Classes up to which the confusion matrix names them."""
TOP = (1, 5, 10, 20, 50)
"""Depths k of the top-k accuracies."""


def read_predictions(
    folder: Path, split: str, data: ClassificationData, name: str = "logits"
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, C), labels (N,) and item indices (N,) of a split.

    Args:
        folder: The run.
        split: Split, or `attacks/NAME`.
        data: The data set.
        name: `logits`, `peer_logits` or `features`.

    Raises:
        DataError: The predictions are missing, incomplete, or of another data set.
    """
    root, place = open_predictions(folder, data.checksum), folder / "predictions.zarr"
    index = torch.from_numpy(read_array(root, f"{split}/index", place))
    values = torch.from_numpy(read_array(root, f"{split}/{name}", place)).double()
    return values, data.labels[index], index


def scores_of(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, NLL and ECE of logits (N, C), float64."""
    confidence, outcome = top_label(logits, labels)
    return {
        "accuracy": float(accuracy(logits, labels)),
        "nll": float(negative_log_likelihood(logits, labels)),
        "ece": float(expected_calibration_error(confidence, outcome, bins=BINS)),
    }


def teacher_scores(logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> dict[str, float]:
    """How closely a student follows a teacher on the same items; logits (N, C), float64.

    With two classes nothing is left to rank beside the target.
    """
    scores = {
        "teacher_agreement": float(agreement(logits, teacher_logits)),
        "teacher_kl": float(kl_to_teacher(logits, teacher_logits)),
    }
    if logits.shape[-1] > 2:
        own, others = non_target_log_probs(logits, labels), non_target_log_probs(teacher_logits, labels)
        scores["teacher_rank_correlation"] = float(non_target_rank_correlation(logits, teacher_logits, labels))
        scores["non_target_kl"] = float(forward_kl(others, own, reduction="mean"))
    return scores


def geometry_scores(
    features: Tensor, labels: Tensor, teacher: Tensor | None, means: Tensor | None, head: Tensor | None
) -> dict[str, float]:
    """Geometry of penultimate features (N, D) of the test split.

    Args:
        features: The student's.
        labels: (N,).
        teacher: The teacher's features of the same items.
        means: Mean of the teacher's features over the training items of each class, (C, D').
        head: Class vectors of the output layer, (C, D).
    """
    same, different = pair_similarities(features, labels)
    scores = {"class_similarity": float(same), "class_overlap": float(different)}
    if teacher is not None and means is not None:
        scores["feature_norm_ratio"] = float((features.norm(dim=1) / teacher.norm(dim=1).clamp_min(1e-12)).mean())
        if means.shape[1] == features.shape[1]:
            scores["class_mean_cosine"] = float(torch.cosine_similarity(features, means[labels]).mean())
    if head is not None and head.shape[1] == features.shape[1]:
        scores["head_norm"] = float(head.norm())
        own = means_by_class(features, labels, len(head))
        present = torch.bincount(labels, minlength=len(head)) > 0
        distance = torch.cosine_similarity(head.double()[present], own[present])
        scores["prototype_distance"] = float((1 - distance).mean())
    return scores


def robust_scores(folder: Path, root: zarr.Group, data: ClassificationData) -> dict[str, float]:
    """Accuracy under each attack, `robust_accuracy` under the first; under it the worst class and the worst 30 % of the
    classes too."""
    scores = {}
    for number, name in enumerate(sorted(root["attacks"].keys()) if "attacks" in root else []):  # type: ignore[union-attr]
        logits, labels, _ = read_predictions(folder, f"attacks/{name}", data)
        scores[f"robust_accuracy_{name}" if number else "robust_accuracy"] = float(robust_accuracy(logits, labels))
        if number == 0:
            scores["worst_class_robust_accuracy"] = float(worst_class_robust_accuracy(logits, labels))
            scores["tail_robust_accuracy"] = float(tail_robust_accuracy(logits, labels))
    return scores


def evaluate(spec: RunSpec, folder: Path) -> Evaluation:
    """Score a run on the test split; the task's teacher is compared with even where the method never saw it."""
    data = read_data(spec.inputs["data"])
    root = open_predictions(folder, data.checksum)
    costs = training_costs(folder)
    if "rank" in root["test"]:  # type: ignore[operator]
        return _evaluate_ranks(folder, root, data, costs)
    logits, labels, index = read_predictions(folder, "test", data)
    scores = scores_of(logits, labels) | costs | robust_scores(folder, root, data) | _sharpness(root)
    scores["worst_class_accuracy"] = float(worst_class_accuracy(logits, labels))
    for number, source in enumerate(data.sources):
        chosen = torch.from_numpy(data.source == number)[index]
        if chosen.any() and not chosen.all():
            scores[f"accuracy_{source}"] = float(accuracy(logits[chosen], labels[chosen]))
    settings: dict[str, Any] = {"split": "test", "items": len(labels), "ece_bins": BINS, "module_mode": "eval"}
    teacher_features = means = None
    if "teacher" in spec.inputs:
        outputs = read_teacher(spec.inputs["teacher"], data)
        teacher = outputs["logits"][index].double()
        scores |= teacher_scores(logits, teacher, labels)
        settings |= {f"teacher_{name}": value for name, value in scores_of(teacher, labels).items()}
        teacher_features = outputs["features"][index].double()
        items = data.items("student")
        means = means_by_class(outputs["features"][items].double(), data.labels[items], len(data.classes))
    if data.people is not None:
        log_people = data.people[index].double().log()
        scores["people_kl"] = float(forward_kl(log_people, logits.log_softmax(-1), reduction="mean"))
    if "peer_logits" in root["test"]:  # type: ignore[operator]
        peer = scores_of(read_predictions(folder, "test", data, "peer_logits")[0], labels)
        scores |= {f"peer_{name}": peer[name] for name in ("accuracy", "ece")}
    place = folder / "predictions.zarr"
    head = torch.from_numpy(read_array(root, "head", place)) if "head" in root else None
    features = read_predictions(folder, "test", data, "features")[0]
    scores |= geometry_scores(features, labels, teacher_features, means, head)
    subclass_scores, subclasses, subclass_settings = evaluate_subclasses(folder, data, spec.inputs["data"], index)
    scores |= subclass_scores
    settings |= subclass_settings
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
    tables: dict[str, list[dict[str, Any]]] = {"class_accuracy": classes, "reliability": bins}
    if subclasses:
        tables["subclasses"] = subclasses
    return Evaluation(scores, tables, settings)


def _sharpness(root: zarr.Group) -> dict[str, float]:
    measured: Any = root.attrs.get("sharpness", {})
    return {name: float(value) for name, value in measured.items()}


def rank_scores(rank: Tensor) -> dict[str, float]:
    """Share of items whose label is among the first k, and the mean reciprocal rank, from ranks (N,), 1 the best."""
    scores = {f"top{k}_accuracy": float((rank <= k).double().mean()) for k in TOP}
    return {"accuracy": scores.pop("top1_accuracy"), **scores, "mrr": float(rank.double().reciprocal().mean())}


def _evaluate_ranks(folder: Path, root: zarr.Group, data: ClassificationData, costs: dict[str, float]) -> Evaluation:
    """Scores of a task with very many classes, of which ranks and log-probabilities are stored."""
    place = folder / "predictions.zarr"
    settings: dict[str, Any] = {"split": "test", "module_mode": "eval"}
    found = {}
    for split in ("validation", "test"):
        rank = torch.from_numpy(read_array(root, f"{split}/rank", place))
        log_prob = torch.from_numpy(read_array(root, f"{split}/log_prob", place)).double()
        found[split] = rank_scores(rank) | {"nll": float(-log_prob.mean())}
    settings |= {f"validation_{name}": value for name, value in found["validation"].items()}
    # The loss of a spherical family knows no softmax: its likelihood is no score to be compared.
    settings["nll"] = found["test"].pop("nll")
    rows = [{"k": k, "accuracy": found["test"]["accuracy" if k == 1 else f"top{k}_accuracy"]} for k in TOP]
    return Evaluation(found["test"] | costs, {"top_k": rows}, settings)


def draw(spec: RunSpec, folder: Path, evaluation: Evaluation, into: Path) -> None:
    """Draw the reliability diagram and the confusion matrix of the test split, and the pseudo-subclasses of a run that
    has any; of ranks, the accuracy over k."""
    from matplotlib.figure import Figure

    if "top_k" in evaluation.tables:
        rows = evaluation.tables["top_k"]
        figure = Figure(figsize=(4.6, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.semilogx([row["k"] for row in rows], [row["accuracy"] for row in rows], "o-", color=COLOURS[0])
        axes.set(xlabel="k", ylabel="label among the first k", ylim=(0, 1), title="Top-k accuracy, test split")
        plain(axes)
        figure.savefig(into / "top_k.png", dpi=110)
        return

    if "subclasses" in evaluation.tables:
        found = evaluation.tables["subclasses"], evaluation.scores, evaluation.settings
        draw_subclasses(*found, into / "subclasses.png")
    data = read_data(spec.inputs["data"])
    logits, labels, _ = read_predictions(folder, "test", data)
    bins = evaluation.tables["reliability"]
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    confidence, accuracies = ([row[key] for row in bins] for key in ("confidence", "accuracy"))
    left.plot([0, 1], [0, 1], color="0.6", lw=1, ls="--", label="calibrated")
    left.plot(confidence, accuracies, "o-", color=COLOURS[0], ms=4, label=spec.method)
    left.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title="Reliability, test split")
    left.legend(frameon=False)
    matrix = confusion_matrix(logits, labels).double()
    shares = (matrix / matrix.sum(1, keepdim=True).clamp_min(1)).numpy()
    image = right.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    if len(data.classes) <= NAMED:
        ticks = np.arange(len(data.classes))
        right.set_xticks(ticks, data.classes, rotation=90, fontsize=7)
        right.set_yticks(ticks, data.classes, fontsize=7)
    right.set(xlabel="predicted", ylabel="label", title="Confusion, share of each label")
    figure.colorbar(image, ax=right, shrink=0.9)
    figure.savefig(into / "reliability_and_confusion.png", dpi=110)
