"""How far a policy is from the models that its own run started from or held it to."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from relent.divergences.discrete import forward_kl
from relent.tasks.stored import open_extras, read_array


def evaluate_references(folder: Path, checksum: str, table: Tensor) -> dict[str, float]:
    """`kl_to_NAME`, KL(policy ‖ model) of each model of a run that wrote some; means over the test prompts, in nats.

    Args:
        folder: The run.
        checksum: Of its data set.
        table: log π(y|x), (P, N) float64.

    Raises:
        DataError: They are incomplete, or of another data set.
    """
    place = folder / "references.zarr"
    group = open_extras(place, checksum)
    if group is None:
        return {}
    models = {name: torch.from_numpy(read_array(group, name, place)).double() for name in sorted(group.array_keys())}
    return {f"kl_to_{name}": float(forward_kl(table, model).mean()) for name, model in models.items()}
