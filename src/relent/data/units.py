"""Image data sets of near copies: frames of one sprite, skin tones of one emoji. Near copies are one *unit*, and a unit
lies in one split as a whole: frames of one unit on both sides would let a network remember instead of recognise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from relent.data.images import SPLITS, Images, Labels
from relent.data.receipt import write_receipt
from relent.errors import ConfigError, DataError

GREY = 128
"""Grey value of the ground on which images with an alpha mask are laid."""


@dataclass(frozen=True)
class Pictures:
    """Images in an order of their own, before they are split.

    Shapes: `images` (N, H, W, 3) uint8; `classes` and `units` N names each. Names of units need to differ within a
    class only.
    """

    images: Images
    classes: list[str]
    units: list[str]

    def chosen(self, items: NDArray[np.int64]) -> Pictures:
        """Some of them, in the order given."""
        return Pictures(self.images[items], [self.classes[i] for i in items], [self.units[i] for i in items])


def joined(keys: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """Group of each item such that items that share a key, directly or through others, are in one group.

    Args:
        keys: Keys of each item, at least one each.

    Returns:
        (N,) numbers of the groups, in the order of their first items.
    """
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for own in keys:
        for key in own[1:]:
            parent[root(key)] = root(own[0])
    order: dict[str, int] = {}
    return np.array([order.setdefault(root(own[0]), len(order)) for own in keys], dtype=np.int64)


def without_copies(pictures: Pictures) -> tuple[Pictures, NDArray[np.int64]]:
    """Images that stand once, and the unit of each.

    An image that stands several times in a class is kept once, and the units that hold it become one; an image that
    stands in two classes says nothing about either and is dropped.

    Returns:
        The kept images, and (N,) numbers of units over all classes.
    """
    content = [image.tobytes() for image in pictures.images]
    seen: dict[bytes, set[str]] = {}
    for image, name in zip(content, pictures.classes):
        seen.setdefault(image, set()).add(name)
    clear = [i for i, image in enumerate(content) if len(seen[image]) == 1]
    numbers: dict[bytes, int] = {}
    keys = [
        (f"{pictures.classes[i]}/{pictures.units[i]}", f"= {numbers.setdefault(content[i], len(numbers))}")
        for i in clear
    ]
    groups, kept, told = joined(keys), [], set[bytes]()
    for position, i in enumerate(clear):
        if content[i] not in told:
            told.add(content[i])
            kept.append(position)
    return pictures.chosen(np.array(clear)[kept]), groups[kept]


def spread(units: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Positions of at most `count` items of each unit, evenly spread over its items; 0: all."""
    if not count:
        return np.arange(len(units))
    kept = []
    for unit in np.unique(units):
        own = np.flatnonzero(units == unit)
        kept.append(own[np.unique(np.linspace(0, len(own) - 1, min(count, len(own))).round().astype(int))])
    return np.sort(np.concatenate(kept))


def split_units(labels: Labels, units: NDArray[np.int64], fractions: dict[str, float], seed: int) -> NDArray[np.int8]:
    """Split of each item: in every class each split gets its share of the units, and at least one.

    Args:
        labels: (N,) classes.
        units: (N,) units; one unit has one class.
        fractions: Share of the units by split; the last split, `test`, gets the rest.
        seed: Seed of the shuffle; splits are part of the task, so it does not change with a run's seed.

    Returns:
        (N,) index into `SPLITS`.

    Raises:
        DataError: A class has fewer units than there are splits.
    """
    rng = np.random.default_rng(seed)
    splits = np.empty(len(labels), dtype=np.int8)
    for label in np.unique(labels):
        own = rng.permutation(np.unique(units[labels == label]))
        spare = len(own) - len(SPLITS)
        if spare < 0:
            raise DataError(f"class {label} has {len(own)} units, but each of the {len(SPLITS)} splits needs one")
        ends = np.rint(np.cumsum([fractions[name] for name in SPLITS[:-1]]) * spare).astype(int)
        for number, part in enumerate(np.split(own, ends + np.arange(1, len(SPLITS)))):
            splits[np.isin(units, part)] = number
    return splits


def write_units(out: Path, pictures: Pictures, options: dict[str, Any], seed: int, **receipt: Any) -> None:
    """Write `dataset.zarr` (images, labels, split, source, unit) and its receipt, which names the units of each split.

    Args:
        out: Folder to write into.
        pictures: All images.
        options: `fractions`, `least_units` (classes with fewer are left out) and `per_unit` (images of a unit to keep).
        seed: Seed of the splits.
        **receipt: What else the receipt says.

    Raises:
        ConfigError: Fewer than two classes have enough units.
    """
    pictures, units = without_copies(pictures)
    least = max(options.get("least_units", 0), len(SPLITS))
    own = np.array(pictures.classes)
    classes = [name for name in dict.fromkeys(pictures.classes) if len(np.unique(units[own == name])) >= least]
    if len(classes) < 2:
        raise ConfigError(
            f"{len(classes)} classes have {least} units or more; a task needs two: lower it", key="data.least_units"
        )
    chosen = np.flatnonzero(np.isin(own, classes))
    chosen = chosen[spread(units[chosen], options.get("per_unit", 0))]
    pictures, units = pictures.chosen(chosen), units[chosen]
    labels = np.array([classes.index(name) for name in pictures.classes], dtype=np.int64)
    splits = split_units(labels, units, options["fractions"], seed)
    names, numbers = np.unique(units, return_inverse=True)
    first = [int(np.flatnonzero(units == unit)[0]) for unit in names]
    titles = [f"{pictures.classes[i]}/{pictures.units[i]}" for i in first]

    group = zarr.create_group(store=out / "dataset.zarr")
    group.create_array("inputs", data=pictures.images, chunks=(256, *pictures.images.shape[1:]))
    source = np.zeros(len(labels), dtype=np.int8)
    arrays: dict[str, NDArray[Any]] = {"labels": labels, "split": splits, "source": source, "unit": numbers}
    for name, values in arrays.items():
        group.create_array(name, data=values)
    group.attrs.update(
        classes=classes, splits=list(SPLITS), sources=[receipt["title"]], units=titles, image_range=[0, 255]
    )
    counts = {name: int((splits == number).sum()) for number, name in enumerate(SPLITS)}
    of_unit = splits[first]
    by_split = {name: [titles[u] for u in np.flatnonzero(of_unit == number)] for number, name in enumerate(SPLITS)}
    write_receipt(out, counts=counts, units=by_split, options=options, seed=seed, **receipt)
