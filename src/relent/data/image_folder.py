"""Lays labelled images of any size out for training: one zarr array of uint8, resized, resumable, in bounded memory.

Every image is resized (bilinear, antialiased) so that its shorter side is `side`, and its middle square kept: as
ImageNet is prepared for evaluation (shorter side 256, of which the network sees the middle 224). Images that have that
size, such as CIFAR's, are stored as they are. `train` gives the students' and the validation split, `val` is the test;
there is no `teacher` split: teachers learn from the students' images, as in the papers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from PIL import Image

from relent.data.image_collections import PARTS, Collection, Reference, open_collection
from relent.data.options import FolderOptions, checked
from relent.data.progress import Progress
from relent.data.receipt import sha256, write_receipt
from relent.data.rows import StoredRows, create_rows, shard_rows
from relent.errors import ConfigError
from relent.files import read_json, remove, write_json
from relent.manifest.fingerprint import canonical, code_of
from relent.manifest.models import Dask
from relent.scheduler import scheduler

RESUMES = True
"""A folder that an earlier call left unfinished is gone on with."""
DECIDING = ("relent.data.image_collections", "relent.data.image_folder", "relent.data.rows")
"""Modules that decide the bytes: where one of them has changed, everything is laid out again."""
SPLITS = ("student", "validation", "test")
WORK, LISTS = "work", "lists"
READING = frozenset({"crop", "memory_mb"})
"""Options that say how the data are read, not what is stored."""


@dataclass(frozen=True)
class Shelf:
    """All images in their order, and the folder that they are laid out into."""

    options: FolderOptions
    folder: Path
    parts: NDArray[np.int8]
    references: list[Reference]

    @property
    def shards(self) -> list[slice]:
        """Items of each shard."""
        size = shard_rows(3 * self.options.side**2)
        return [slice(first, min(first + size, len(self.parts))) for first in range(0, len(self.parts), size)]

    def result(self, number: int) -> Path:
        """Where a task writes what it found in its shard."""
        return self.folder / WORK / f"{number}.json"

    def file(self, number: int) -> str:
        """Name of a shard's file."""
        return f"dataset.zarr/inputs/c/{number}/0/0/0"


@dataclass(frozen=True)
class Job:
    """What a task is told; the names of its images lie beside its result, for there may be millions."""

    options: FolderOptions
    folder: Path


def prepare(
    sources: dict[str, Path],
    out: Path,
    options: dict[str, Any],
    seed: int = 0,
    workers: Dask | None = None,
    earlier: Path | None = None,
) -> None:
    """Write `dataset.zarr` (images (N, side, side, 3) uint8, labels, split, source) and its receipt.

    Args:
        sources: Unused: the manifest names the images.
        out: Folder to write, or to go on with; the caller renames it when it is whole.
        options: `relent.data.options.FolderOptions`; what else the task reads is ignored.
        seed: Seed of the validation split.
        workers: Where the work is done; default: one thread.
        earlier: A finished data set; it is moved to `out` and kept where nothing that decides its bytes has changed.

    Raises:
        ConfigError: The folder or name is not there, a class is empty, or train and val have other classes.
        DataError: An image is broken.
    """
    chosen = _checked(options)
    open_collection.cache_clear()
    collection = open_collection(chosen)
    shelf, labels, splits = _ordered(collection, chosen, out, seed)
    digest = _digest(shelf, labels, splits)
    _begin(shelf, digest, earlier)
    print(f"{_place(chosen)}: {_words(shelf, collection, splits)}", flush=True)
    waiting = [number for number in range(len(shelf.shards)) if not _is_laid(shelf, number)]
    _list(shelf, waiting)
    with scheduler(workers or Dask()) as scheduler_, Progress("laid out", len(waiting), "shards") as progress:
        scheduler_.map(lay_shard, waiting, Job(chosen, out), progress.step)
    _finish(shelf, collection, labels, splits, digest, seed)


def describe(options: dict[str, Any]) -> list[str]:
    """What would be laid out, in words; folders are listed, no image is decoded, nothing written.

    Raises:
        ConfigError: As `prepare`.
    """
    chosen = _checked(options)
    collection = open_collection(chosen)
    shelf, _, splits = _ordered(collection, chosen, Path(), 0)
    size = len(shelf.parts) * 3 * chosen.side**2 / 1e6
    return [f"{_place(chosen)}: {_words(shelf, collection, splits)}", f"stored: {size:,.0f} MB"]


def _checked(options: dict[str, Any]) -> FolderOptions:
    return checked(FolderOptions, {k: v for k, v in options.items() if k in FolderOptions.model_fields})


def _place(options: FolderOptions) -> str:
    return options.hub or str(options.path)


def _words(shelf: Shelf, collection: Collection, splits: NDArray[np.int8]) -> str:
    counts = ", ".join(f"{name} {int((splits == number).sum()):,}" for number, name in enumerate(SPLITS))
    size = f"{shelf.options.side} × {shelf.options.side}"
    return f"{len(collection.classes)} classes, {counts} images, stored as {size} in {len(shelf.shards)} shards"


def _ordered(
    collection: Collection, options: FolderOptions, out: Path, seed: int
) -> tuple[Shelf, NDArray[np.int64], NDArray[np.int8]]:
    """All images, train before val, with labels and splits."""
    rng = np.random.default_rng(seed)
    parts, references, labels, splits = [], list[Reference](), [], []
    for number, part in enumerate(PARTS):
        own = np.array(collection.labels[part], dtype=np.int64)
        kept, held = _drawn(own, collection.classes, options, part, rng)
        references += [collection.references[part][item] for item in kept]
        parts.append(np.full(len(kept), number, dtype=np.int8))
        labels.append(own[kept])
        splits.append(held if part == "train" else np.full(len(kept), 2, dtype=np.int8))
    return Shelf(options, out, np.concatenate(parts), references), np.concatenate(labels), np.concatenate(splits)


def _drawn(
    labels: NDArray[np.int64], classes: list[str], options: FolderOptions, part: str, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Items to keep, ascending, and their split, with the validation share of each class held out of `train`."""
    kept, held = [], set[int]()
    for label, name in enumerate(classes):
        own = rng.permutation(np.flatnonzero(labels == label))[: options.per_class or None]
        count = max(1, round(options.validation * len(own)))
        if part == "train" and len(own) <= count:
            raise ConfigError(
                f"class {name!r} has {len(own)} training image(s), of which {count} would be held out; it needs two",
                key="data.validation",
            )
        kept.append(own)
        held.update(own[:count].tolist())
    items = np.sort(np.concatenate(kept))
    return items, np.array([int(item in held) for item in items.tolist()], dtype=np.int8)


def _digest(shelf: Shelf, labels: NDArray[np.int64], splits: NDArray[np.int8]) -> str:
    """What decides the bytes: options, code, and the list of the images."""
    digest = hashlib.sha256(canonical(shelf.options.model_dump(exclude=set(READING))).encode())
    digest.update(code_of(DECIDING).encode() + labels.tobytes() + splits.tobytes())
    digest.update("\0".join(map(str, shelf.references)).encode())
    return digest.hexdigest()[:16]


def _begin(shelf: Shelf, digest: str, earlier: Path | None) -> None:
    """The folder of a new lay-out, or that of an unfinished or finished one of the same images."""
    out = shelf.folder

    def same(folder: Path) -> bool:
        mark = folder / WORK / "plan.json"
        return mark.is_file() and read_json(mark).get("digest") == digest

    if earlier is not None and not same(out) and same(earlier):
        remove(out)
        earlier.rename(out)
    if same(out):
        done = sum(_is_laid(shelf, number) for number in range(len(shelf.shards)))
        print(f"goes on with {done} of {len(shelf.shards)} shards that are there", flush=True)
        return
    remove(out)
    (out / WORK).mkdir(parents=True)
    group, side = zarr.create_group(store=out / "dataset.zarr"), shelf.options.side
    create_rows(group, "inputs", (len(shelf.parts), side, side, 3), "uint8")
    write_json(out / WORK / "plan.json", {"digest": digest})


def _list(shelf: Shelf, waiting: list[int]) -> None:
    """Write down which images each waiting shard holds."""
    (shelf.folder / LISTS).mkdir(exist_ok=True)
    for number in waiting:
        items = shelf.shards[number]
        names = [[PARTS[part], reference] for part, reference in zip(shelf.parts[items], shelf.references[items])]
        write_json(shelf.folder / LISTS / f"{number}.json", {"first": items.start, "images": names})


def _is_laid(shelf: Shelf, number: int) -> bool:
    path = shelf.folder / shelf.file(number)
    if not (shelf.result(number).is_file() and path.is_file()):
        return False
    return path.stat().st_size == int(read_json(shelf.result(number))["bytes"])


def lay_shard(number: int, job: Job) -> None:
    """Decode and resize the images of one shard and write it; note sums of their pixels, size and SHA-256.

    Raises:
        DataError: An image is broken.
    """
    listed = read_json(job.folder / LISTS / f"{number}.json")
    collection, side = open_collection(job.options), job.options.side
    images = np.stack([squared(collection.image(part, reference), side) for part, reference in listed["images"]])
    inputs = job.folder / "dataset.zarr" / "inputs"
    file = inputs / StoredRows(inputs).write(listed["first"], images)[0]
    found = {
        "bytes": file.stat().st_size,
        "sha256": sha256(file),
        "sums": [int(image.sum(dtype=np.int64)) for image in images],
        "squares": [int(np.square(image, dtype=np.int64).sum()) for image in images],
    }
    write_json(job.folder / WORK / f"{number}.json", found)


def squared(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """The middle square of an image whose shorter side is resized to `side`: (side, side, 3)."""
    width, height = image.size
    if min(width, height) != side:
        scale = side / min(width, height)
        shape = (side, max(side, int(scale * height))) if width <= height else (max(side, int(scale * width)), side)
        image = image.resize(shape, Image.Resampling.BILINEAR)
    left, top = (round((length - side) / 2) for length in image.size)
    return np.asarray(image.convert("RGB").crop((left, top, left + side, top + side)))


def _finish(
    shelf: Shelf,
    collection: Collection,
    labels: NDArray[np.int64],
    splits: NDArray[np.int8],
    digest: str,
    seed: int,
) -> None:
    """Labels, splits, the mean and deviation of the students' pixels, and the receipt."""
    remove(shelf.folder / LISTS)
    options, found = shelf.options, [read_json(shelf.result(number)) for number in range(len(shelf.shards))]
    students = splits == SPLITS.index("student")
    pixels = int(students.sum()) * 3 * options.side**2
    sums, squares = (np.concatenate([part[name] for part in found])[students] for name in ("sums", "squares"))
    mean = int(sums.sum()) / pixels
    std = max(int(squares.sum()) / pixels - mean**2, 1e-12) ** 0.5
    group = zarr.open_group(shelf.folder / "dataset.zarr", mode="a")
    source = np.zeros(len(labels), dtype=np.int8)
    arrays: dict[str, NDArray[Any]] = {"labels": labels, "split": splits, "source": source}
    for name, values in arrays.items():
        group.create_array(name, data=values, overwrite=True)
    group.attrs.update(
        classes=collection.classes,
        splits=list(SPLITS),
        sources=[_place(options)],
        image_range=[0, 255],
        rows={"mean": mean, "std": std, "crop": options.crop or options.side, "memory_mb": options.memory_mb},
    )
    known = {
        shelf.file(number): {"bytes": part["bytes"], "sha256": part["sha256"]} for number, part in enumerate(found)
    }
    counts = {name: int((splits == number).sum()) for number, name in enumerate(SPLITS)}
    write_receipt(
        shelf.folder,
        known,
        title=f"Images of {_place(options)}",
        layout=digest,
        counts=counts,
        options=options.model_dump(mode="json"),
        seed=seed,
    )
