"""What pseudo-subclasses know of the classes that the labels hide, where the data set tells what an item shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import Tensor

from relent.scores.classification import label_entropy, mutual_information
from relent.tasks.classification.data import ClassificationData
from relent.tasks.stored import open_extras, read_array

Rows = list[dict[str, Any]]


def read_subclasses(folder: Path, data: ClassificationData) -> Tensor | None:
    """Share of each subclass in every item, for every class: (N, C, S); None for a run without such a stage.

    Args:
        folder: The run.
        data: Its data set.

    Raises:
        DataError: They are incomplete, or of another data set.
    """
    place = folder / "stages" / "subclasses" / "subclasses.zarr"
    group = open_extras(place, data.checksum)
    if group is None:
        return None
    return torch.from_numpy(read_array(group, "shares", place))


def evaluate_subclasses(
    folder: Path, data: ClassificationData, dataset: str, index: Tensor
) -> tuple[dict[str, float], Rows, dict[str, Any]]:
    """Score, table and settings; all empty where there are no subclasses or the labels hide nothing.

    `subclass_information` is the mutual information, in nats, of (label, likeliest subclass of that class) and what an
    item shows. The label alone gives the floor, its entropy; the ceiling is the entropy of what is shown.

    Args:
        folder: The run.
        data: Its data set.
        dataset: Folder of the data set.
        index: Items that are scored, (M,).
    """
    shares = read_subclasses(folder, data)
    if shares is None or data.shown is None or torch.equal(data.shown, data.labels):
        return {}, [], {}
    labels, shown = data.labels[index], data.shown[index]
    likeliest = shares[index, labels].argmax(-1)
    count = shares.shape[2]
    scores = {"subclass_information": float(mutual_information(labels * count + likeliest, shown))}
    settings = {
        "subclass_information_floor": float(label_entropy(labels)),
        "subclass_information_ceiling": float(label_entropy(shown)),
    }
    names = zarr.open_group(Path(dataset) / "dataset.zarr", mode="r").attrs["shown"]
    return scores, _rows(likeliest, shown, labels, list(names), data.classes, count), settings  # type: ignore[arg-type]


def _rows(
    likeliest: Tensor, shown: Tensor, labels: Tensor, names: list[str], classes: list[str], count: int
) -> list[dict[str, Any]]:
    """Of the items that show the same, the share in each subclass of their class."""
    rows = []
    for number, name in enumerate(names):
        chosen = shown == number
        if not chosen.any():
            continue
        shares = torch.bincount(likeliest[chosen], minlength=count).double() / chosen.sum()
        own = classes[int(labels[chosen][0])]
        rows += [
            {"class": own, "shown": name, "subclass": subclass + 1, "share": float(share)}
            for subclass, share in enumerate(shares)
        ]
    return rows


def share_matrices(rows: Rows) -> dict[str, tuple[list[str], list[int], NDArray[np.float64]]]:
    """Of each class, what is shown (K), its subclasses (S) and the shares (K, S), both in an order that makes blocks.

    The numbers of the subclasses mean nothing: they follow the random rotation.
    """
    found = {}
    for name in dict.fromkeys(row["class"] for row in rows):
        own = [row for row in rows if row["class"] == name]
        shown = list(dict.fromkeys(row["shown"] for row in own))
        subclasses = sorted({row["subclass"] for row in own})
        share = {(row["shown"], row["subclass"]): row["share"] for row in own}
        matrix = np.array([[share[item, subclass] for subclass in subclasses] for item in shown])
        order = np.argsort((matrix * np.arange(len(shown))[:, None]).sum(0) / matrix.sum(0).clip(1e-12), kind="stable")
        found[name] = (shown, [subclasses[place] for place in order], matrix[:, order])
    return found


def draw_shares(axes: Any, title: str, shown: list[str], subclasses: list[int], matrix: NDArray[np.float64]) -> Any:
    """Heat map of shares (K, S) with their numbers; returns the image for a colour bar."""
    image = axes.imshow(matrix, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(subclasses)), subclasses, fontsize=8)
    axes.set_yticks(range(len(shown)), shown, fontsize=8)
    axes.set(title=title, xlabel="pseudo-subclass", ylabel="what the image shows")
    if len(subclasses) <= 12:
        for (row, column), value in np.ndenumerate(matrix):
            colour = "black" if value > 0.5 else "white"
            axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    return image


def draw_subclasses(rows: Rows, scores: dict[str, float], settings: dict[str, Any], path: Path) -> None:
    """Figure of a run: how the items of every hidden class fall into the subclasses of their class."""
    from matplotlib.figure import Figure

    matrices = share_matrices(rows)
    width = sum(max(2.6, 0.42 * len(subclasses) + 1.2) for _, subclasses, _ in matrices.values())
    figure = Figure(figsize=(width + 1.4, 3.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(matrices)))
    for axes, (name, (shown, subclasses, matrix)) in zip(panels, matrices.items()):
        image = draw_shares(axes, f"class {name}", shown, subclasses, matrix)
    figure.colorbar(image, ax=list(panels), shrink=0.9, label="share of the images (numbers: %)")
    floor, ceiling = (settings[f"subclass_information_{end}"] for end in ("floor", "ceiling"))
    figure.suptitle(
        f"Label and likeliest pseudo-subclass of test images: {scores['subclass_information']:.2f} nats about what\n"
        f"they show (the label alone {floor:.2f}, at most {ceiling:.2f})",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)
