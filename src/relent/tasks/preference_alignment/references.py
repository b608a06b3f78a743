"""The models that a run started from or was held to beside the base model, and how far its policy is from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import zarr
from torch import Tensor, nn

from relent.divergences.discrete import forward_kl
from relent.files import whole
from relent.tasks.stored import open_extras, read_array

if TYPE_CHECKING:
    from relent.tasks.preference_alignment.training import Task


def write_references(folder: Path, task: Task, models: Mapping[str, nn.Module]) -> None:
    """Write `references.zarr` of a run: log-probabilities of all completions of the test prompts under each model.

    Args:
        folder: The run.
        task: Whose completions are few enough to be enumerated.
        models: Language models, by name.
    """
    with whole(folder / "references.zarr") as temporary:
        group = zarr.create_group(store=temporary)
        group.attrs.update(data_checksum=task.texts.checksum)
        for name, model in models.items():
            group.create_array(name, data=task.network_law(model).table().numpy())


def read_references(folder: Path, checksum: str) -> dict[str, Tensor]:
    """log π(y|x), (P, N) float64, of each model of a run that wrote some.

    Args:
        folder: The run.
        checksum: Of its data set.

    Raises:
        DataError: They are incomplete, or of another data set.
    """
    place = folder / "references.zarr"
    group = open_extras(place, checksum)
    if group is None:
        return {}
    return {name: torch.from_numpy(read_array(group, name, place)).double() for name in sorted(group.array_keys())}


def distances(table: Tensor, models: Mapping[str, Tensor]) -> dict[str, float]:
    """`kl_to_NAME`, KL(policy ‖ model) of each model; means over the test prompts, in nats. All (P, N)."""
    return {f"kl_to_{name}": float(forward_kl(table, model).mean()) for name, model in models.items()}
