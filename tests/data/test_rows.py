"""Rows of arrays on disk: equal to what zarr reads, in any order and any process, and refused where they are broken."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from relent.data.rows import StoredRows, create_rows, shard_rows
from relent.errors import DataError


@pytest.fixture(scope="module")
def values() -> dict[str, np.ndarray]:
    """`rows` (100, 3, 2) with a row of zeros, and `views` (3, 100, 4)."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(100, 3, 2)).astype(np.float32)
    rows[7] = 0
    return {"rows": rows, "views": rng.normal(size=(3, 100, 4)).astype(np.float32)}


@pytest.fixture(scope="module")
def store(values: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both arrays in shards of 16 rows."""
    path = tmp_path_factory.mktemp("rows") / "store.zarr"
    group = zarr.create_group(store=path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("relent.data.rows.shard_rows", lambda _: 16)
        create_rows(group, "rows", (100, 3, 2), "float32")
        create_rows(group, "views", (3, 100, 4), "float32", lead=1)
    rows, views = StoredRows(path / "rows"), StoredRows(path / "views")
    rows.write(0, values["rows"][:64])
    assert rows.write(64, values["rows"][64:]) == ["c/4/0/0", "c/5/0/0", "c/6/0/0"]
    for number in range(3):
        views.write(0, values["views"][number], number)
    return path


def test_zarr_reads_what_is_written(store: Path, values: dict[str, np.ndarray]) -> None:
    group = zarr.open_group(store, mode="r")
    for name, expected in values.items():
        assert np.array_equal(np.asarray(group[name]), expected)


def test_what_zarr_writes_is_read(tmp_path: Path, values: dict[str, np.ndarray]) -> None:
    array = create_rows(zarr.create_group(store=tmp_path / "a.zarr"), "rows", (100, 3, 2), "float32")
    array[...] = values["rows"]
    items = torch.arange(99, -1, -1)
    assert torch.equal(StoredRows(tmp_path / "a.zarr" / "rows")[items], torch.from_numpy(values["rows"])[items])


def test_rows_a_shard() -> None:
    assert shard_rows(12) == 4096
    assert shard_rows(3 * 256**2) == 512
    assert shard_rows(2**30) == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 99), max_size=30), st.integers(0, 2))
def test_rows_are_read_in_any_order(store: Path, values: dict[str, np.ndarray], index: list[int], view: int) -> None:
    items = torch.tensor([7, *index])
    assert torch.equal(StoredRows(store / "rows")[items], torch.from_numpy(values["rows"])[items])
    found = StoredRows(store / "views")[torch.full_like(items, view), items]
    assert torch.equal(found, torch.from_numpy(values["views"])[view, items])


def test_all_rows_are_read_at_once(store: Path, values: dict[str, np.ndarray]) -> None:
    assert torch.equal(StoredRows(store / "rows").to(torch.float64), torch.from_numpy(values["rows"]).double())


def test_only_whole_shards_are_written(store: Path, values: dict[str, np.ndarray]) -> None:
    rows = StoredRows(store / "rows")
    for first, end, view in ((8, 16, None), (0, 20, None), (0, 16, 1)):
        with pytest.raises(ValueError, match="do not fill shards of 16"):
            rows.write(first, values["rows"][first:end], view)
    with pytest.raises(ValueError, match=r"a row has the shape \(3, 2\), got \(2, 3\)"):
        rows.write(0, values["rows"][:16].reshape(16, 2, 3))


def test_a_reader_can_be_sent_to_another_process(store: Path) -> None:
    rows = pickle.loads(pickle.dumps(StoredRows(store / "rows")))
    assert rows.shape == (100, 3, 2)
    assert len(rows) == 100


def test_wrong_indices_are_refused(store: Path) -> None:
    rows = StoredRows(store / "rows")
    with pytest.raises(IndexError, match="rows go from 0 to 99"):
        rows[torch.tensor([100])]
    with pytest.raises(IndexError, match="has 1 axes before a row, got 2 indices"):
        rows[torch.tensor([0]), torch.tensor([0])]


def test_broken_shards_are_one_line(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "store.zarr")
    shard = tmp_path / "store.zarr" / "rows" / "c" / "1" / "0" / "0"
    content = shard.read_bytes()
    shard.write_bytes(content[:100])
    with pytest.raises(DataError, match=r"c/1/0/0: it is truncated; delete the data set and make it again"):
        StoredRows(tmp_path / "store.zarr" / "rows")[torch.tensor([20])]
    shard.unlink()
    with pytest.raises(DataError, match=r"c/1/0/0: the shard is missing"):
        StoredRows(tmp_path / "store.zarr" / "rows")[torch.tensor([20])]


def test_other_arrays_are_refused(tmp_path: Path) -> None:
    group = zarr.create_group(store=tmp_path / "a.zarr")
    group.create_array("plain", data=np.zeros((10, 3)))
    group.create_array("packed", shape=(8, 3), dtype="f4", chunks=(1, 3), shards=(8, 3))
    for name, message in (("plain", "not sharded with one row a chunk"), ("packed", "are compressed")):
        with pytest.raises(DataError, match=message):
            StoredRows(tmp_path / "a.zarr" / name)
    with pytest.raises(DataError, match="cannot be opened"):
        StoredRows(tmp_path / "a.zarr" / "none")
