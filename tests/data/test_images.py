"""The image data set: hostile and broken source files, splits, and the whole preparation, without a network."""

from __future__ import annotations

import gzip
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from relent.data.images import ANIMALS, DIGITS, SPLITS, assign_splits, prepare, read_animals, read_mnist
from relent.data.receipt import check_receipt
from relent.errors import ConfigError, DataError
from relent.tasks.classification.data import read_data

FRACTIONS = {"teacher": 0.5, "student": 0.15, "validation": 0.1}
PICTURES, DUPLICATES = "animal_data_version_3.gz", 40


def write_pickle(path: Path, value: object, protocol: int = 4, old_numpy: bool = False) -> Path:
    content = pickle.dumps(value, protocol=3 if old_numpy else protocol)
    if old_numpy:
        content = content.replace(b"numpy._core", b"numpy.core")
    path.write_bytes(gzip.compress(content, 1))
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with files of the real shape and format: 5,000 digits, 10,000 animals of which 40 stand twice."""
    root = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    digits = [",".join(map(str, [*rng.integers(0, 256, 784), digit])) for digit in range(10)]
    text = "\n".join(digits[number // 500] for number in range(5000))
    (root / "mnist_5k").mkdir()
    (root / "mnist_5k" / "mnist_5k.csv.gz").write_bytes(gzip.compress(text.encode(), 1))
    pictures = np.zeros((10000, 28, 28), dtype=np.uint8)
    pictures[:, :2, :4] = rng.integers(0, 256, (10000, 2, 4))
    pictures[-DUPLICATES:] = pictures[:DUPLICATES]
    (root / "animals").mkdir()
    write_pickle(root / "animals" / PICTURES, pictures)
    labels = np.arange(10000) % 10
    write_pickle(root / "animals" / "animal_label_version_3.gz", labels, old_numpy=True)
    return {name: root / name for name in ("mnist_5k", "animals")}


@pytest.fixture(scope="module")
def prepared(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    prepare(sources, out, {"fractions": FRACTIONS, "per_class": 60})
    return out


def test_prepared_data_are_whole_balanced_and_standardised(prepared):
    receipt = check_receipt(prepared, contents=True)
    data = read_data(prepared)
    assert data.classes == [*DIGITS, *ANIMALS]
    assert np.bincount(data.labels.numpy()).tolist() == [60] * 20
    assert receipt["counts"] == {"teacher": 600, "student": 180, "validation": 120, "test": 300}
    assert data.inputs.shape == (1200, 1, 28, 28)
    student = data.inputs[data.items("student")].double()
    assert student.mean().item() == pytest.approx(0, abs=1e-5)
    assert student.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    source = data.source[data.labels.numpy() < 10]
    assert (source == data.sources.index("mnist_5k")).all()


def test_preparing_twice_gives_the_same_bytes(sources, prepared, tmp_path):
    prepare(sources, tmp_path, {"fractions": FRACTIONS, "per_class": 60})
    assert check_receipt(tmp_path)["checksum"] == check_receipt(prepared)["checksum"]


def test_label_noise_is_of_the_training_labels_alone_and_always_wrong(sources, prepared, tmp_path):
    prepare(sources, tmp_path, {"fractions": FRACTIONS, "per_class": 60, "label_noise": 0.25})
    clean, noisy = read_data(prepared), read_data(tmp_path)
    wrong = clean.labels != noisy.labels
    student = clean.items("student")
    assert int(wrong.sum()) == int(wrong[student].sum()) == round(0.25 * len(student))
    assert noisy.labels.max() < 20
    assert noisy.labels.min() >= 0


def test_no_image_stands_in_two_splits(prepared):
    """Of the animals, which differ by construction; the made-up digits are all alike."""
    group = zarr.open_group(prepared / "dataset.zarr", mode="r")
    animals = group["labels"][...] >= 10
    images = group["inputs"][...][animals].reshape(animals.sum(), -1)
    assert len(np.unique(images, axis=0)) == len(images)


def test_duplicates_are_dropped_and_the_first_kept(sources):
    folder = sources["animals"]
    pictures, labels = read_animals(folder / PICTURES, folder / "animal_label_version_3.gz")
    assert len(pictures) == len(labels) == 10000 - DUPLICATES
    assert (labels == np.arange(10000 - DUPLICATES) % 10).all()
    assert labels.dtype == np.int64


# ------------------------------------------------------------------------------------------ hostile and broken files


class Evil:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def refused(function, *paths: Path) -> str:
    with pytest.raises(DataError) as raised:
        function(*paths)
    message = str(raised.value)
    assert "\n" not in message
    assert str(paths[0].name) in message
    return message


def test_a_pickle_that_calls_anything_is_refused_before_it_runs(tmp_path):
    path = write_pickle(tmp_path / "evil.gz", Evil(tmp_path / "made"))
    assert "only plain numpy arrays are read" in refused(read_animals, path, path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, 3.5])
def test_a_pickle_of_anything_else_is_refused(tmp_path, value):
    path = write_pickle(tmp_path / "other.gz", value)
    assert "not an array" in refused(read_animals, path, path)


def test_arrays_of_another_shape_are_refused(tmp_path):
    path = write_pickle(tmp_path / "small.gz", np.zeros((3, 28, 28), dtype=np.uint8))
    assert "(3, 28, 28)" in refused(read_animals, path, path)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "not gzip", "pickle truncated", "missing"])
def test_broken_files_are_refused_with_one_line(tmp_path, damage):
    path = write_pickle(tmp_path / "array.gz", np.arange(4000).reshape(4, 1000))
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:-50])
    elif damage == "flipped":
        middle = len(content) // 2
        path.write_bytes(
            content[:middle] + bytes(b ^ 0xFF for b in content[middle : middle + 40]) + content[middle + 40 :]
        )
    elif damage == "not gzip":
        path.write_bytes(b"plain text")
    elif damage == "pickle truncated":
        path.write_bytes(gzip.compress(gzip.decompress(content)[:-20]))
    else:
        path.unlink()
    refused(read_animals, path, path)
    if damage != "pickle truncated":
        refused(read_mnist, path)


@pytest.mark.parametrize("text", ["1,2,3\n4,5,6", "1,2,3\n4,5", "a,b\nc,d"])
def test_a_table_of_another_form_is_refused(tmp_path, text):
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    refused(read_mnist, path)


# ------------------------------------------------------------------------------------------ splits


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=20, max_size=200),
    st.tuples(*[st.floats(0.05, 0.3)] * 3),
    st.integers(0, 2**31 - 1),
)
def test_splits_are_stratified(labels, shares, seed):
    labels = np.array(labels)
    splits = assign_splits(labels, dict(zip(SPLITS, shares)), seed)
    for label in np.unique(labels):
        items = splits[labels == label]
        for number, share in enumerate(shares):
            assert abs((items == number).sum() - share * len(items)) <= 1
    assert (splits == assign_splits(labels, dict(zip(SPLITS, shares)), seed)).all()
    assert set(splits) <= set(range(4))


def test_another_seed_splits_otherwise():
    labels = np.zeros(200, dtype=np.int64)
    one, other = (assign_splits(labels, FRACTIONS, seed) for seed in (0, 1))
    assert (one != other).any()
    assert (np.bincount(one) == np.bincount(other)).all()


@pytest.mark.parametrize(
    "fractions",
    [
        {"teacher": 0.5, "student": 0.3, "validation": 0.2},
        {"teacher": 0.5, "student": -0.1, "validation": 0.1},
        {"teacher": 0.5, "validation": 0.1},
        {"teacher": 0.5, "student": 0.1, "validation": 0.1, "tset": 0.1},
    ],
)
def test_absurd_shares_are_refused(fractions):
    with pytest.raises(
        ConfigError, match=r"data\.fractions: must give positive shares of teacher, student, validation"
    ):
        assign_splits(np.zeros(10, dtype=np.int64), fractions, 0)
