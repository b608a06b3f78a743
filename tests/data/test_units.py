"""Images in units of near copies: what is one unit, and that no two splits share one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from relent.data.images import SPLITS
from relent.data.receipt import check_receipt
from relent.data.units import Pictures, joined, split_units, spread, without_copies, write_units
from relent.errors import ConfigError, DataError
from relent.tasks.classification.data import read_data

FRACTIONS = {"teacher": 0.5, "student": 0.2, "validation": 0.1}


def pictures(units_of: dict[str, int], frames: int = 3, seed: int = 0) -> Pictures:
    """Random images; class → number of its units, `frames` images each."""
    names = [(name, f"u{number}") for name, count in units_of.items() for number in range(count) for _ in range(frames)]
    images = np.random.default_rng(seed).integers(0, 256, (len(names), 6, 6, 3)).astype(np.uint8)
    return Pictures(images, [name for name, _ in names], [unit for _, unit in names])


def test_items_that_share_a_key_through_others_are_one_group() -> None:
    groups = joined([["a"], ["b", "c"], ["d"], ["c", "a"], ["e"]])
    assert groups.tolist() == [0, 0, 1, 0, 2]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3), min_size=1, max_size=12))
def test_groups_are_the_components_of_the_graph_of_shared_keys(keys: list[list[str]]) -> None:
    from scipy.sparse.csgraph import connected_components

    shared = np.array([[bool(set(one) & set(other)) for other in keys] for one in keys])
    _, expected = connected_components(shared, directed=False)
    found = joined(keys)
    assert ((found[:, None] == found) == (expected[:, None] == expected)).all()


def test_a_frame_that_two_units_share_makes_them_one_and_stands_once() -> None:
    given_ = pictures({"a": 4, "b": 4})
    given_.images[0] = given_.images[3]
    kept, units = without_copies(given_)
    assert len(kept.images) == 23
    assert len(np.unique(units)) == 7
    of = {(name, unit): number for name, unit, number in zip(kept.classes, kept.units, units)}
    assert of["a", "u0"] == of["a", "u1"] != of["a", "u2"]


def test_a_frame_of_two_classes_is_dropped_and_joins_nothing() -> None:
    given_ = pictures({"a": 4, "b": 4})
    given_.images[0] = given_.images[12]
    kept, units = without_copies(given_)
    assert len(kept.images) == 22
    assert len(np.unique(units)) == 8


@pytest.mark.parametrize(
    ("count", "positions"), [(0, range(9)), (1, [0, 5]), (2, [0, 4, 5, 8]), (3, [0, 2, 4, 5, 7, 8])]
)
def test_frames_to_keep_are_spread_over_the_unit(count: int, positions: list[int]) -> None:
    # 2 of 4 and 5 frames: first and last; 3 of 4: the ends and 1.5, which rounds to the even 2.
    assert spread(np.array([1, 1, 1, 1, 1, 0, 0, 0, 0]), count).tolist() == list(positions)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 5), min_size=4, max_size=15), min_size=2, max_size=5),
    st.integers(0, 1000),
)
def test_no_unit_stands_in_two_splits_and_each_class_has_each_split(sizes: list[list[int]], seed: int) -> None:
    labels = np.concatenate([np.full(sum(own), number) for number, own in enumerate(sizes)])
    flat = [size for own in sizes for size in own]
    units = np.repeat(np.arange(len(flat)), flat)
    splits = split_units(labels, units, FRACTIONS, seed)
    assert all(len(np.unique(splits[units == unit])) == 1 for unit in np.unique(units))
    for label in range(len(sizes)):
        assert np.unique(splits[labels == label]).tolist() == [0, 1, 2, 3]


def test_splits_are_shares_of_the_units() -> None:
    splits = split_units(np.zeros(100, dtype=np.int64), np.arange(100), FRACTIONS, seed=1)
    # One unit each, and the shares of the other 96.
    assert np.bincount(splits).tolist() == [49, 20, 11, 20]


def test_a_class_with_too_few_units_cannot_be_split() -> None:
    with pytest.raises(DataError, match="class 0 has 3 units, but each of the 4 splits needs one"):
        split_units(np.zeros(3, dtype=np.int64), np.arange(3), FRACTIONS, seed=0)


def test_the_data_set_is_written_and_read(tmp_path: Path) -> None:
    options = {"fractions": FRACTIONS, "least_units": 6, "per_unit": 2}
    write_units(tmp_path, pictures({"a": 8, "few": 5, "b": 6}), options, 0, title="Pictures")
    receipt = check_receipt(tmp_path, contents=True)
    data = read_data(tmp_path)
    assert data.classes == ["a", "b"]
    assert data.inputs.shape == (28, 3, 6, 6)
    assert sum(receipt["counts"].values()) == 28
    group = zarr.open_group(tmp_path / "dataset.zarr", mode="r")
    names, units = np.array(group.attrs["units"]), np.asarray(group["unit"])
    written = {name: set(names[units[data.split == number]]) for number, name in enumerate(SPLITS)}
    assert {name: set(own) for name, own in receipt["units"].items()} == written
    assert sum(len(own) for own in written.values()) == len(set().union(*written.values())) == 14


def test_too_few_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.least_units: 1 classes have 7 units or more"):
        write_units(tmp_path, pictures({"a": 8, "b": 6}), {"fractions": FRACTIONS, "least_units": 7}, 0, title="x")
