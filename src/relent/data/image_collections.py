"""Labelled images of the user's own: a folder of image files, CIFAR-100 as its authors publish it, or a hub's data set.

Each kind gives the classes, the labels of its two parts `train` and `val`, and one image at a time.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from relent.data.images import ArrayUnpickler
from relent.data.options import FolderOptions
from relent.errors import ConfigError, DataError

PARTS = ("train", "val")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
LAYOUT = "a folder with train/CLASS/* and val/CLASS/*, or the folder cifar-100-python"
FIX = "mend or remove it and give the same command"

Reference = str | int


class Collection(ABC):
    """Labelled images in two parts.

    `classes` names the classes; `labels` and `references` have one entry an image, by part.
    """

    classes: list[str]
    labels: dict[str, list[int]]
    references: dict[str, list[Reference]]

    @abstractmethod
    def image(self, part: str, reference: Reference) -> Image.Image:
        """One image.

        Raises:
            DataError: It cannot be decoded.
        """


class Folder(Collection):
    """Image files in the layout `train/CLASS/*`, `val/CLASS/*`; the classes are the folders in alphabetical order."""

    def __init__(self, path: Path):
        self.path = path
        found = {part: self._classes(part) for part in PARTS}
        self.classes = found["train"]
        lacking = sorted(set(found["train"]) ^ set(found["val"]))
        if lacking:
            there, not_there = PARTS if lacking[0] in found["train"] else PARTS[::-1]
            raise ConfigError(
                f"{path / there / lacking[0]} is a class of {there} alone ({len(lacking)} such classes); {not_there} "
                "must have a folder for each class, of the same name",
                key="data.path",
            )
        self.labels, self.references = {}, {}
        for part in PARTS:
            self.labels[part], self.references[part] = self._files(part)

    def _classes(self, part: str) -> list[str]:
        folder = self.path / part
        if not folder.is_dir():
            raise ConfigError(f"{folder} does not exist; `path` names {LAYOUT}", key="data.path")
        return sorted(place.name for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))

    def _files(self, part: str) -> tuple[list[int], list[Reference]]:
        labels: list[int] = []
        files: list[Reference] = []
        for number, name in enumerate(self.classes):
            folder = self.path / part / name
            own = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
            if not own:
                raise ConfigError(
                    f"{folder} holds no image ({', '.join(sorted(SUFFIXES))}); fill the class or remove it from train "
                    "and val",
                    key="data.path",
                )
            labels += [number] * len(own)
            files += [f"{part}/{name}/{file}" for file in own]
        return labels, files

    def image(self, part: str, reference: Reference) -> Image.Image:
        path = self.path / str(reference)
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            reason = "is no image" if isinstance(error, UnidentifiedImageError) else f"cannot be decoded ({error})"
            raise DataError(f"data.path: {path} {reason}; {FIX}") from None


class Cifar100(Collection):
    """The folder `cifar-100-python` (`train`, `test`, `meta`), pickles that an unpickler of plain arrays reads."""

    def __init__(self, path: Path):
        meta = self._read(path / "meta")
        self.classes = [name.decode() for name in self._entry(path / "meta", meta, b"fine_label_names")]
        self.labels, self.references, self._images = {}, {}, {}
        for part, name in zip(PARTS, ("train", "test")):
            content = self._read(path / name)
            labels = [int(label) for label in self._entry(path / name, content, b"fine_labels")]
            data = np.asarray(self._entry(path / name, content, b"data"))
            if data.shape != (len(labels), 3072) or data.dtype != np.uint8:
                raise DataError(
                    f"{path / name}: holds {data.shape} {data.dtype}, not ({len(labels)}, 3072) uint8; get it again"
                )
            if labels and not 0 <= min(labels) <= max(labels) < len(self.classes):
                raise DataError(f"{path / name}: labels reach to {max(labels)}, there are {len(self.classes)} classes")
            self.labels[part], self.references[part] = labels, list(range(len(labels)))
            self._images[part] = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)

    @staticmethod
    def _entry(path: Path, content: dict[bytes, Any], key: bytes) -> Any:
        if key not in content:
            raise DataError(f"{path}: has no entry {key.decode()!r}; `path` names {LAYOUT}")
        return content[key]

    @staticmethod
    def _read(path: Path) -> dict[bytes, Any]:
        try:
            content = ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        except Exception as error:
            raise DataError(f"{path}: is no whole pickle ({error}); get the archive again") from None
        if not isinstance(content, dict):
            raise DataError(f"{path}: holds a {type(content).__name__}, not a table of entries; get it again")
        return content

    def image(self, part: str, reference: Reference) -> Image.Image:
        return Image.fromarray(self._images[part][int(reference)])


class Hub(Collection):
    """A data set of the library `datasets`, by name; its image column, and the label column that the options name."""

    def __init__(self, name: str, label: str):
        try:
            import datasets
        except ImportError:
            raise ConfigError(
                "needs the library `datasets`: `pip install datasets`, or give `path` instead", key="data.hub"
            ) from None
        try:
            tables = datasets.load_dataset(name)
        except Exception as error:
            raise ConfigError(f"{name!r} cannot be loaded ({_line(error)})", key="data.hub") from None
        held = next((part for part in ("val", "validation", "valid", "test") if part in tables), None)
        if "train" not in tables or held is None:
            raise ConfigError(
                f"{name!r} has the parts {', '.join(tables)}; it needs train, and validation or test", key="data.hub"
            )
        self._tables = {"train": tables["train"], "val": tables[held]}
        columns = tables["train"].features
        if label not in columns or not hasattr(columns[label], "names"):
            known = [column for column, kind in columns.items() if hasattr(kind, "names")]
            raise ConfigError(
                f"{name!r} has no column {label!r} of classes; it has {', '.join(known) or 'none'}", key="data.label"
            )
        images = [column for column, kind in columns.items() if type(kind).__name__ == "Image"]
        if len(images) != 1:
            raise ConfigError(f"{name!r} has {len(images)} columns of images, not one", key="data.hub")
        self._column, self.classes = images[0], list(columns[label].names)
        self.labels = {part: [int(value) for value in table[label]] for part, table in self._tables.items()}
        self.references = {part: list(range(len(labels))) for part, labels in self.labels.items()}
        for part, labels in self.labels.items():
            if labels and min(labels) < 0:
                raise ConfigError(f"{name!r} hides the labels of its part for {part} (−1)", key="data.hub")
            empty = sorted(set(range(len(self.classes))) - set(labels))
            if empty:
                raise ConfigError(f"{name!r} has no {part} image of {self.classes[empty[0]]!r}", key="data.hub")

    def image(self, part: str, reference: Reference) -> Image.Image:
        try:
            image: Image.Image = self._tables[part][int(reference)][self._column]
            return image.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"data.hub: image {reference} of {part} cannot be decoded ({error}); {FIX}") from None


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@lru_cache(maxsize=1)
def open_collection(options: FolderOptions) -> Collection:
    """The images that a task's data options name; once a process.

    Raises:
        ConfigError: The folder or name is not there, a class is empty, or train and val have other classes.
        DataError: A file of CIFAR-100 is broken.
    """
    if options.hub is not None:
        return Hub(options.hub, options.label)
    path = Path(str(options.path))
    if not path.is_dir():
        raise ConfigError(f"{path} does not exist or is no folder; `path` names {LAYOUT}", key="data.path")
    if (path / "meta").is_file() and (path / "train").is_file():
        return Cifar100(path)
    return Folder(path)
