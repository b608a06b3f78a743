"""A small classification task without a network: its manifest, and prepared data in the layout of the image data."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml
import zarr

from relent.data.receipt import write_receipt

SPLITS = ("teacher", "student", "validation", "test")

TASK: dict[str, Any] = {
    "name": "patterns",
    "title": "Generated patterns",
    "kind": "classification",
    "data_module": "relent.data.images",
    "primary_metric": "accuracy",
    "baseline": "knowledge_distillation",
    "tuning_budget": "none",
    "metrics": {
        "accuracy": {"title": "Accuracy", "direction": "higher"},
        "nll": {"title": "NLL", "direction": "lower"},
        "teacher_rank_correlation": {"title": "Rank correlation", "direction": "higher"},
        "non_target_kl": {"title": "Non-target KL", "direction": "lower"},
        # Of single methods, for their claims.
        "feature_norm_ratio": {"title": "Feature norm"},
        "class_mean_cosine": {"title": "Cosine to class mean"},
        "class_overlap": {"title": "Overlap"},
        "head_norm": {"title": "Head norm"},
        "prototype_distance": {"title": "Head to class mean"},
        "top_eigenvalue": {"title": "Top eigenvalue"},
        "training_seconds": {"title": "Training", "direction": "lower"},
        "ece": {"title": "ECE", "direction": "lower"},
        "peer_accuracy": {"title": "Peer accuracy", "direction": "higher"},
        "tail_robust_accuracy": {"title": "Tail robust accuracy", "direction": "higher"},
        # What else a run may be scored by.
        "worst_class_accuracy": {"title": "Worst class"},
        "accuracy_even": {"title": "Accuracy, even"},
        "accuracy_odd": {"title": "Accuracy, odd"},
        "teacher_agreement": {"title": "Agreement"},
        "teacher_kl": {"title": "KL to teacher"},
        "class_similarity": {"title": "Similarity"},
        "sam_sharpness": {"title": "SAM sharpness"},
        "robust_accuracy": {"title": "Robust accuracy"},
        "worst_class_robust_accuracy": {"title": "Worst class under attack"},
        "peer_ece": {"title": "Peer ECE"},
        "peak_memory_mb": {"title": "Memory"},
    },
    "teachers": {
        "wide": {
            "model": {"smoke": {"network": "mlp", "hidden": [16, 16]}},
            "training": {"smoke": {"max_steps": 30}},
        }
    },
    "scales": {
        "smoke": {
            "model": {"network": "mlp", "hidden": [8, 8]},
            "training": {"max_steps": 12, "batch_size": 16, "learning_rate": 0.01, "checkpoint_every": 4},
        }
    },
}


def write_patterns(folder: Path, classes: int = 5, each: int = 40, size: int = 6, seed: int = 0) -> Path:
    """Write a prepared data set of noisy patterns, in the layout of the image data; returns its folder."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    patterns = rng.normal(size=(classes, size, size))
    images = 128 + 40 * (patterns[labels] + rng.normal(scale=1.2, size=(len(labels), size, size)))
    split = np.tile(np.array([0, 0, 1, 2, 3], dtype=np.int8), len(labels))[: len(labels)]
    folder.mkdir(parents=True, exist_ok=True)
    group = zarr.create_group(store=folder / "dataset.zarr")
    group.create_array("inputs", data=images.clip(0, 255).astype(np.uint8), chunks=(64, size, size))
    group.create_array("labels", data=labels)
    group.create_array("split", data=split)
    group.create_array("source", data=(np.arange(len(labels)) % 2).astype(np.int8))
    names = [f"class {number}" for number in range(classes)]
    group.attrs.update(classes=names, splits=list(SPLITS), sources=["even", "odd"])
    counts = {name: int((split == number).sum()) for number, name in enumerate(SPLITS)}
    write_receipt(folder, title="patterns", counts=counts)
    return folder


def copy_methods(manifests: Path, folder: Path) -> None:
    """Copy the manifests of all methods for classification, without the claims about tasks other than `patterns`."""
    shutil.copytree(manifests / "methods", folder / "methods", ignore=shutil.ignore_patterns("weather", "alignment"))
    for path in (folder / "methods").rglob("*.yaml"):
        values = yaml.safe_load(path.read_text())
        claims = values.get("claims", [])
        here = [claim for claim in claims if not claim.get("tasks")]
        if len(here) < len(claims):
            path.write_text(yaml.safe_dump(values | {"claims": here}, sort_keys=False, allow_unicode=True))
