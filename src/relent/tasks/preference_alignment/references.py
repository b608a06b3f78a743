"""How far a policy is from the models that its own run started from or held it to."""

from __future__ import annotations

from pathlib import Path

import torch
import zarr
from torch import Tensor

from relent.divergences.discrete import forward_kl
from relent.errors import DataError
from relent.tasks.stored import read_array


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
    if not place.is_dir():
        return {}
    group = zarr.open_group(place, mode="r")
    if group.attrs["data_checksum"] != checksum:
        raise DataError(f"{place}: was made from another data set; train the run again")
    models = {name: torch.from_numpy(read_array(group, name, place)).double() for name in sorted(group.array_keys())}
    return {f"kl_to_{name}": float(forward_kl(table, model).mean()) for name, model in models.items()}
