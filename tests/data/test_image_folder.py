"""Images of the user's own: folders, CIFAR-100's pickles and a stand-in hub; layout, resume, broken and wrong input."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

import relent.data.image_folder as module
from relent.data.image_collections import open_collection
from relent.data.image_folder import describe, prepare, squared
from relent.data.options import FolderOptions
from relent.data.receipt import check_receipt
from relent.errors import ConfigError, DataError
from relent.manifest.models import Dask
from relent.tasks.classification.data import StoredImages, read_data

CLASSES = ("bird", "cat", "dog")


def write_folder(path: Path, train: int = 8, val: int = 3, side: int = 20) -> Path:
    """Random pictures of several shapes and formats; the class tints them."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("val", val)):
        for label, name in enumerate(CLASSES):
            (path / part / name).mkdir(parents=True)
            for number in range(count):
                shape = (side + number % 3 * 4, side + number % 2 * 6, 3)
                pixels = rng.integers(0, 128, shape).astype(np.uint8)
                pixels[..., label] += 100
                image = Image.fromarray(pixels)
                if number == 1:
                    image = image.convert("L")
                image.save(path / part / name / f"{number}.{'png' if number % 2 else 'JPEG'}")
    (path / "train" / "dog" / "notes.txt").write_text("no image")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(folder, tmp_path / "pictures")


def options(place: Path, **changes: Any) -> dict[str, Any]:
    return {"path": str(place), "side": 16, "validation": 0.2, **changes}


# ---------------------------------------------------------------------------------------------- the layout


def test_a_folder_is_laid_out_with_its_splits(folder: Path, tmp_path: Path) -> None:
    prepare({}, tmp_path / "out", options(folder))
    receipt = check_receipt(tmp_path / "out", contents=True)
    data = read_data(tmp_path / "out")
    assert data.classes == list(CLASSES)
    assert receipt["counts"] == data.counts == {"student": 18, "validation": 6, "test": 9}
    for split, each in (("student", 6), ("validation", 2), ("test", 3)):
        assert torch.bincount(data.labels[data.items(split)]).tolist() == [each] * 3
    assert torch.equal(data.items("teacher"), data.items("student"))
    assert isinstance(data.inputs, torch.Tensor)
    students = data.inputs[data.items("student")].double()
    assert abs(float(students.mean())) < 1e-5
    assert abs(float(students.std(unbiased=False)) - 1) < 1e-5


def test_images_are_those_of_the_folder(folder: Path, tmp_path: Path) -> None:
    prepare({}, tmp_path / "out", options(folder))
    stored = np.asarray(zarr.open_array(tmp_path / "out" / "dataset.zarr" / "inputs", mode="r"))
    with Image.open(folder / "train" / "bird" / "3.png") as image:
        assert np.array_equal(stored[3], squared(image.convert("RGB"), 16))
    with Image.open(folder / "val" / "dog" / "2.JPEG") as image:
        assert np.array_equal(stored[-1], squared(image.convert("RGB"), 16))


@pytest.mark.parametrize(("size", "box"), [((40, 20), (10, 0)), ((20, 40), (0, 10)), ((20, 20), (0, 0))])
def test_the_middle_square_is_kept(size: tuple[int, int], box: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    left, top = box
    assert np.array_equal(squared(Image.fromarray(pixels), 20), pixels[top : top + 20, left : left + 20])
    flat = Image.new("RGB", (size[0] * 3, size[1] * 3), (9, 8, 7))
    assert (squared(flat, 16) == (9, 8, 7)).all()


def test_from_disk_the_same_images_are_read_as_in_memory(folder: Path, tmp_path: Path) -> None:
    prepare({}, tmp_path / "memory", options(folder))
    prepare({}, tmp_path / "disk", options(folder, memory_mb=0))
    prepare({}, tmp_path / "crop", options(folder, crop=12))
    memory, disk, crop = (read_data(tmp_path / name) for name in ("memory", "disk", "crop"))
    index = torch.tensor([30, 0, 7, 7])
    assert isinstance(disk.inputs, StoredImages)
    assert torch.equal(disk.inputs[index], memory.inputs[index])
    assert torch.equal(crop.inputs[index], memory.inputs[index][:, :, 2:14, 2:14])
    assert crop.shape.size == 12
    assert torch.equal(crop.whole(index), memory.inputs[index])
    assert crop.shape.pixels == memory.pixel_range


def test_few_images_of_each_class(folder: Path, tmp_path: Path) -> None:
    prepare({}, tmp_path / "out", options(folder, per_class=3, validation=0.3))
    assert read_data(tmp_path / "out").counts == {"student": 6, "validation": 3, "test": 9}


def test_what_would_be_done_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = describe(options(folder))
    assert lines[0] == f"{folder}: 3 classes, student 18, validation 6, test 9 images, stored as 16 × 16 in 1 shards"


# ---------------------------------------------------------------------------------------------- stopped and resumed


def stop_at(monkeypatch: pytest.MonkeyPatch, shard: int) -> list[int]:
    """Shards of four images; the process dies when it comes to one of them. Returns the shards that are laid out."""
    monkeypatch.setattr(module, "shard_rows", lambda _: 4)
    monkeypatch.setattr("relent.data.rows.shard_rows", lambda _: 4)
    laid: list[int] = []
    original = module.lay_shard

    def lay(number: int, job: module.Job) -> None:
        if number == shard:
            raise KeyboardInterrupt
        laid.append(number)
        original(number, job)

    monkeypatch.setattr(module, "lay_shard", lay)
    return laid


def test_a_stopped_lay_out_goes_on_and_ends_with_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid = stop_at(monkeypatch, shard=5)
    with pytest.raises(KeyboardInterrupt):
        prepare({}, tmp_path / "out", options(folder))
    assert 0 < len(laid) < 9
    damaged, done = laid[0], set(laid[1:])
    (tmp_path / "out" / "dataset.zarr" / "inputs" / "c" / str(damaged) / "0" / "0" / "0").write_bytes(b"half")
    monkeypatch.undo()
    laid = stop_at(monkeypatch, shard=-1)
    prepare({}, tmp_path / "out", options(folder))
    assert sorted(laid) == sorted({*range(9)} - done)
    prepare({}, tmp_path / "whole", options(folder))
    one, other = (check_receipt(tmp_path / name, contents=True)["checksum"] for name in ("out", "whole"))
    assert one == other


def test_reading_otherwise_lays_nothing_out_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare({}, tmp_path / "first", options(folder))
    monkeypatch.setattr(module, "lay_shard", lambda *_: pytest.fail("a shard was laid out again"))
    prepare({}, tmp_path / "out", options(folder, crop=8, memory_mb=0), earlier=tmp_path / "first")
    assert not (tmp_path / "first").exists()
    assert read_data(tmp_path / "out").shape.size == 8


def test_workers_do_not_change_the_bytes(folder: Path, tmp_path: Path) -> None:
    prepare({}, tmp_path / "one", options(folder))
    prepare({}, tmp_path / "two", options(folder), workers=Dask(scheduler="threads", workers=2))
    one, other = (check_receipt(tmp_path / name)["checksum"] for name in ("one", "two"))
    assert one == other


# ---------------------------------------------------------------------------------------------- wrong input


def refused(place: Path, tmp_path: Path, kind: type[Exception] = ConfigError, **changes: Any) -> str:
    with pytest.raises(kind) as caught:
        prepare({}, tmp_path / "out", options(place, **changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_folder(tmp_path: Path) -> None:
    message = refused(tmp_path / "none", tmp_path)
    assert message.startswith(f"data.path: {tmp_path}/none does not exist")
    assert "train/CLASS/* and val/CLASS/*" in message


def test_a_missing_part(own: Path, tmp_path: Path) -> None:
    (own / "val").rename(own / "validation")
    assert f"data.path: {own}/val does not exist" in refused(own, tmp_path)


def test_an_empty_class(own: Path, tmp_path: Path) -> None:
    for file in (own / "val" / "cat").iterdir():
        file.unlink()
    assert f"data.path: {own}/val/cat holds no image (.bmp, .jpeg" in refused(own, tmp_path)


@pytest.mark.parametrize(("part", "other"), [("train", "val"), ("val", "train")])
def test_classes_that_differ(own: Path, tmp_path: Path, part: str, other: str) -> None:
    shutil.rmtree(own / other / "cat")
    message = refused(own, tmp_path)
    assert f"{own}/{part}/cat is a class of {part} alone (1 such classes); {other} must have a folder" in message


@pytest.mark.parametrize(
    ("damage", "reason"), [(b"no picture", "is no image"), (b"", "is no image"), (None, "cannot be decoded")]
)
def test_a_broken_image_is_named(own: Path, tmp_path: Path, damage: bytes | None, reason: str) -> None:
    file = own / "train" / "cat" / "4.JPEG"
    file.write_bytes(file.read_bytes()[:500] if damage is None else damage)
    message = refused(own, tmp_path, DataError)
    assert message.startswith(f"data.path: {file} {reason}")
    assert message.endswith("mend or remove it and give the same command")
    file.write_bytes((own / "train" / "cat" / "2.JPEG").read_bytes())
    prepare({}, tmp_path / "out", options(own))


def test_a_class_with_one_image_cannot_be_held_out(own: Path, tmp_path: Path) -> None:
    for number in range(1, 8):
        next((own / "train" / "dog").glob(f"{number}.*")).unlink()
    assert "data.validation: class 'dog' has 1 training image(s)" in refused(own, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hub": "cifar100"}, "give one of `path`"),
        ({"path": None}, "give one of `path`"),
        ({"crop": 17}, "crop 17 is larger than the stored side 16"),
        ({"side": 4}, "side"),
    ],
)
def test_wrong_options(folder: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in refused(folder, tmp_path, **changes)


# ---------------------------------------------------------------------------------------------- CIFAR-100


class Python2(pickle._Pickler):  # type: ignore[name-defined, misc]
    """Pickles byte strings as Python 2 did, which wrote CIFAR's files."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_text(self, text: bytes) -> None:
        self.write((b"U" + bytes([len(text)]) if len(text) < 256 else b"T" + struct.pack("<i", len(text))) + text)
        self.memoize(text)

    dispatch[bytes] = save_text


def old(value: object) -> bytes:
    """A pickle of Python 2, with numpy's names of then."""
    buffer = io.BytesIO()
    Python2(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core", b"numpy.core")


def write_cifar(path: Path, classes: int = 3, each: int = 6) -> dict[str, np.ndarray]:
    """The three files in their format."""
    path.mkdir(parents=True)
    rng, data = np.random.default_rng(1), {}
    for name in ("train", "test"):
        labels = np.tile(np.arange(classes), each)
        data[name] = rng.integers(0, 256, (len(labels), 3072)).astype(np.uint8)
        content = {b"data": data[name], b"fine_labels": labels.tolist(), b"coarse_labels": [0] * len(labels)}
        (path / name).write_bytes(old(content))
    meta = {b"fine_label_names": [f"class{number}".encode() for number in range(classes)]}
    (path / "meta").write_bytes(old(meta))
    return data


def test_cifar_100_is_read_from_its_pickles(tmp_path: Path) -> None:
    written = write_cifar(tmp_path / "cifar-100-python")
    prepare({}, tmp_path / "out", options(tmp_path / "cifar-100-python", side=32))
    data = read_data(tmp_path / "out")
    assert data.classes == ["class0", "class1", "class2"]
    stored = np.asarray(zarr.open_array(tmp_path / "out" / "dataset.zarr" / "inputs", mode="r"))
    assert np.array_equal(stored[4], written["train"][4].reshape(3, 32, 32).transpose(1, 2, 0))
    assert np.array_equal(stored[18], written["test"][0].reshape(3, 32, 32).transpose(1, 2, 0))
    assert data.labels.tolist() == [0, 1, 2] * 12


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train", pickle.dumps({b"data": Harmful()}), "train: the pickle asks for posix.system"),
        ("test", b"\x80\x02cut", "test: is no whole pickle"),
        ("meta", pickle.dumps([1]), "meta: holds a list, not a table"),
        ("meta", old({b"other": 1}), "meta: has no entry 'fine_label_names'"),
        ("train", old({b"data": np.zeros((2, 9), np.uint8), b"fine_labels": [0, 0]}), r"holds \(2, 9\)"),
        ("train", old({b"data": np.zeros((1, 3072), np.uint8), b"fine_labels": [7]}), "labels reach to 7"),
    ],
)
def test_hostile_and_broken_pickles(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write_cifar(tmp_path / "cifar")
    (tmp_path / "cifar" / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare({}, tmp_path / "out", options(tmp_path / "cifar", side=32))


# ---------------------------------------------------------------------------------------------- a hub


class ClassLabel:
    names = ("left", "right")


class Picture:
    """A column of images, whose class is named as the library names it."""


Picture.__name__ = "Image"


class Table:
    """A part of a data set: rows by number, columns by name."""

    def __init__(self, count: int, labels: list[int] | None = None):
        rng = np.random.default_rng(count)
        self.images = [Image.fromarray(rng.integers(0, 256, (20, 24, 3)).astype(np.uint8)) for _ in range(count)]
        self.labels = labels or [number % 2 for number in range(count)]
        self.features = {"img": Picture(), "fine_label": ClassLabel(), "text": object()}

    def __getitem__(self, key: str | int) -> Any:
        return self.labels if isinstance(key, str) else {"img": self.images[key], "fine_label": self.labels[key]}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Table]]:
    """Data sets by name that a stand-in for the library `datasets` knows."""
    known = {"pictures": {"train": Table(12), "test": Table(4)}}

    def load_dataset(name: str) -> dict[str, Table]:
        if name not in known:
            raise FileNotFoundError(f"Dataset '{name}' doesn't exist\non the hub")
        return known[name]

    stand_in = ModuleType("datasets")
    stand_in.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    open_collection.cache_clear()
    return known


def from_hub(name: str = "pictures", **changes: Any) -> dict[str, Any]:
    return {"hub": name, "label": "fine_label", "side": 16, "validation": 0.2, **changes}


def test_a_data_set_of_the_hub(hub: dict[str, dict[str, Table]], tmp_path: Path) -> None:
    prepare({}, tmp_path / "out", from_hub())
    data = read_data(tmp_path / "out")
    assert (data.classes, data.sources) == (["left", "right"], ["pictures"])
    assert data.counts == {"student": 10, "validation": 2, "test": 4}
    stored = np.asarray(zarr.open_array(tmp_path / "out" / "dataset.zarr" / "inputs", mode="r"))
    assert np.array_equal(stored[5], squared(hub["pictures"]["train"].images[5], 16))


@pytest.mark.parametrize(
    ("table", "changes", "message"),
    [
        ({}, {"hub": "nothing"}, r"data.hub: 'nothing' cannot be loaded \(Dataset 'nothing' doesn't exist\)"),
        ({}, {"label": "label"}, r"data.label: 'pictures' has no column 'label' of classes; it has fine_label"),
        ({"train": Table(4)}, {}, "has the parts train; it needs train, and validation or test"),
        ({"train": Table(4, [0, 0, 0, 0]), "test": Table(2)}, {}, "has no train image of 'right'"),
        ({"train": Table(4), "test": Table(2, [-1, -1])}, {}, "hides the labels of its part for val"),
    ],
)
def test_what_the_hub_cannot_give(
    hub: dict[str, dict[str, Table]], tmp_path: Path, table: dict[str, Table], changes: dict[str, Any], message: str
) -> None:
    hub["pictures"] = table or hub["pictures"]
    with pytest.raises(ConfigError, match=message):
        prepare({}, tmp_path / "out", from_hub() | changes)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"data.hub: needs the library `datasets`: `pip install datasets`, or give"):
        prepare({}, tmp_path / "out", from_hub())


def test_options_can_be_told_apart() -> None:
    assert hash(FolderOptions(path="a")) != hash(FolderOptions(path="b"))
