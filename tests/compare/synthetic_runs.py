"""Run folders and manifests made up for the tests of comparison and tracking."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relent.manifest.models import Method, Task
from relent.runspec import RunSpec

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def make_task(**changes: Any) -> Task:
    values: dict[str, Any] = {
        "name": "images",
        "title": "Image distillation",
        "kind": "classification",
        "notice": "",
        "data_module": "relent.data.images",
        "metrics": {
            "accuracy": {"title": "Accuracy", "direction": "higher", "description": "Share of right answers."},
            "nll": {"title": "NLL", "direction": "lower", "unit": "nats"},
            "spread": {"title": "Spread", "description": "Descriptive only."},
        },
        "primary_metric": "accuracy",
        "baseline": "hinton",
        "tuning_budget": "None: published settings.",
        "scales": {"laptop": {}},
    }
    return Task(**values | changes)


def make_method(name: str, claims: list[dict[str, Any]] | None = None, **changes: Any) -> Method:
    filled = [
        {"id": f"claim_{i}", "text": f"{name} makes claim {i}", "kind": "superiority", "metric": "accuracy"}
        | {"baseline": "hinton", "direction": "higher"}
        | claim
        for i, claim in enumerate(claims or [])
    ]
    values = {
        "name": name,
        "title": f"The method {name}",
        "family": "distillation",
        "implementation": f"relent.methods.distillation.{name}:Method",
        "tasks": ["classification"],
        "claims": filled,
        "paper": {"title": f"A paper on {name}", "year": 2024, "arxiv": "2401.00001"},
    }
    return Method(**values | changes)


def write_run(
    results: Path,
    method: str,
    seed: int,
    scores: Mapping[str, float],
    *,
    variant: str = "default",
    hyperparameters: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    history: list[tuple[int, str, float]] | None = None,
    task: str = "images",
    scale: str = "laptop",
) -> Path:
    folder = results / task / method / variant / scale / f"seed{seed}"
    spec = RunSpec(
        task=task,
        kind="classification",
        method=method,
        family="distillation",
        variant=variant,
        scale=scale,
        seed=seed,
        stage="student",
        final=True,
        implementation=f"relent.methods.distillation.{method}:Method",
        hyperparameters={"max_steps": 200, "temperature": 4.0} | dict(hyperparameters or {}),
        data_options={"items": 5000},
        model_options={"network": {"width": 16, "kernels": [3, 3]}},
        evaluation_options={},
        code=f"{method:f<16}",
        output=str(folder),
    )
    told = {"training_seconds": 12.5, "parameters": 12345, "torch": "2.13.0", "data_checksum": "c0ffee"}
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "figures" / "curve.png").write_bytes(PNG)
    (folder / "config.json").write_text(json.dumps(spec.to_json() | {"facts": told | dict(facts or {})}))
    document = {"plan": spec.plan(), "scores": dict(scores), "tables": {}, "settings": {"split": "test"}}
    (folder / "scores.json").write_text(json.dumps(document))
    with (folder / "metrics.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([("step", "metric", "value"), *(history or [])])
    return folder
