"""Tiles: their geometry, rows beyond the poles, one request a sample, sums that add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec

from relent.data.frames import MemoryFrames
from relent.data.layout import TileGrid, create_tiles, over_poles
from relent.data.shards import ShardReader
from relent.data.statistics import Moments, finish, moments
from relent.data.tiles import Fields
from relent.errors import DataError
from relent.grid import Topology

# ------------------------------------------------------------------------------------------------ geometry


@settings(max_examples=60, deadline=None)
@given(
    st.integers(8, 40),
    st.integers(8, 40),
    st.integers(1, 20),
    st.integers(0, 6),
    st.sampled_from(list(Topology)),
    st.data(),
)
def test_a_tile_that_is_found_holds_the_window(
    height: int, width: int, core: int, halo: int, topology: Topology, data: st.DataObject
) -> None:
    grid = TileGrid((height, width), core, halo, topology)
    for axis, positions in ((0, grid.rows), (1, grid.columns)):
        n_points = grid.shape[axis]
        wraps = topology.wraps_columns if axis else topology.wraps_rows
        length = data.draw(st.integers(1, min(grid.side, n_points)))
        first = data.draw(st.integers(0, n_points - 1 if wraps else n_points - length))
        found = grid.holding(first, length, axis)
        wanted = first + np.arange(length)
        rests = positions % n_points if wraps else positions
        holders = [
            tile
            for tile in range(grid.counts[axis])
            if any(
                np.array_equal(rests[tile, o : o + length], wanted % n_points if wraps else wanted)
                for o in range(grid.side - length + 1)
            )
        ]
        if found is not None:
            tile, offset = found
            np.testing.assert_array_equal(rests[tile, offset : offset + length], wanted % n_points if wraps else wanted)
        elif length <= core and halo <= core and n_points % core == 0:
            assert not holders, "a tile that holds the window was not found"


def test_every_point_belongs_to_one_core() -> None:
    grid = TileGrid((19, 36), 8, 2, Topology.globe)
    assert grid.counts == (3, 5)
    rows = np.concatenate([r[2:10] for r in grid.rows])
    assert rows.tolist() == list(range(24))
    with pytest.raises(ValueError, match="a core of 1 or more"):
        TileGrid((19, 36), 0, 2, Topology.globe)


@pytest.mark.parametrize("poles", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_flow_goes_on_over_the_poles(poles: bool, turned: bool) -> None:
    """A field that is smooth in space, and the wind of a rotation about an axis in the equator's plane."""
    step = 5.0
    latitude = np.arange(-90, 90.1, step) if poles else np.arange(-90 + step / 2, 90, step)
    latitude = latitude[::-1].copy() if turned else latitude
    longitude = np.arange(0, 360, step)
    phi, theta = np.deg2rad(latitude)[:, None], np.deg2rad(longitude)[None]

    def fields(phi: np.ndarray, theta: np.ndarray) -> np.ndarray:
        scalar = np.cos(phi) * np.cos(theta) + 0.5 * np.sin(phi)
        eastward = -np.sin(phi) * np.cos(theta)
        northward = np.broadcast_to(np.sin(theta), np.broadcast(phi, theta).shape)
        return np.stack([scalar, eastward, northward])

    values = torch.from_numpy(fields(phi, theta)).float()[None]
    attributes = {"s": {}, "u": {"standard_name": "eastward_wind"}, "v": {"standard_name": "northward_wind"}}
    data = Fields(
        variables=tuple(attributes),
        attributes=attributes,
        time=np.array(["2020-01-01"], dtype="datetime64[ns]"),
        trajectory=np.zeros(1, int),
        usable=np.ones(1, bool),
        latitude=latitude,
        longitude=longitude,
        step_hours=6,
        topology=Topology.globe,
        splits={"train": [0], "validation": [], "test": []},
        source=MemoryFrames(values),
        base=torch.zeros(3, len(latitude)),
        std=torch.ones(3),
        lead_damping=torch.zeros(1, 3),
        lead_residual_std=torch.ones(1, 3),
        checksum="",
    )
    # The analytic continuation over the pole: φ beyond 90° in the same formulas, where east and north turn around.
    rows = torch.tensor([-3, -2, -1, 0, 1, len(latitude) - 1, len(latitude), len(latitude) + 1])
    found = data.frames(0, 1, rows, torch.arange(len(longitude)))[0]
    beyond = latitude[0] + (latitude[1] - latitude[0]) * rows.numpy()
    expected = fields(np.deg2rad(beyond)[:, None], theta)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_a_grid_that_ends_before_the_pole_has_no_row_there() -> None:
    latitude = np.arange(-89.0, 90)
    index, crossed, on_grid = over_poles(latitude, np.array([-2, -1, 0, 178, 179, 180]))
    assert on_grid.tolist() == [True, False, True, True, False, True]
    assert index[[0, 5]].tolist() == [0, 178]
    assert crossed.tolist() == [True, True, False, False, True, True]


def test_an_odd_number_of_longitudes_has_no_other_side() -> None:
    from relent.data.frames import read_over_poles

    source = MemoryFrames(torch.zeros(1, 1, 4, 5))
    window = (0, 1, np.array([-1, 0]), np.arange(5))
    with pytest.raises(ValueError, match="even number of longitudes, the grid has 5"):
        read_over_poles(source, np.array([-67.5, -22.5, 22.5, 67.5]), 5, torch.zeros(1, dtype=torch.bool), window)


# ------------------------------------------------------------------------------------------------ shards


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """An array of tiles whose last shard is not full, and its values."""
    store = tmp_path_factory.mktemp("tiles") / "dataset.zarr"
    grid = TileGrid((12, 18), 6, 1, Topology.globe)
    array = create_tiles(store, grid, 11, 2, 4)
    values = np.random.default_rng(0).normal(size=array.shape).astype(np.float32)
    values[1, 2, 5] = np.nan
    for begin in (0, 4, 8):
        array[:, :, begin : begin + 4] = values[:, :, begin : begin + 4]
    return store / "tiles", values


def test_the_reader_gives_what_zarr_gives(tiles: tuple[Path, np.ndarray]) -> None:
    path, values = tiles
    reader = ShardReader(path)
    np.testing.assert_array_equal(zarr.open_array(path, mode="r")[:], values)
    for start in range(11):
        for length in range(1, 12 - start):
            np.testing.assert_array_equal(reader.read(1, 2, start, length), values[1, 2, start : start + length])


def test_inner_chunks_that_zarr_left_out_are_nan(tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "t",
        shape=(1, 1, 4, 1, 8, 8),
        chunks=(1, 1, 1, 1, 8, 8),
        shards=(1, 1, 4, 1, 8, 8),
        dtype="f4",
        fill_value=np.nan,
        compressors=None,
    )
    array[0, 0, 2] = 5.0
    read = ShardReader(tmp_path / "t").read(0, 0, 0, 4)
    assert np.isnan(read[[0, 1, 3]]).all()
    assert (read[2] == 5).all()


def test_other_arrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened"):
        ShardReader(tmp_path / "nothing")
    common = {"shape": (1, 1, 4, 1, 8, 8), "dtype": "f4"}
    zarr.create_array(tmp_path / "plain", chunks=(1, 1, 1, 1, 8, 8), **common)
    zarr.create_array(tmp_path / "cut", chunks=(1, 1, 1, 1, 4, 8), shards=(1, 1, 4, 1, 8, 8), **common)
    zarr.create_array(
        tmp_path / "gzip",
        chunks=(1, 1, 1, 1, 8, 8),
        shards=(1, 1, 4, 1, 8, 8),
        compressors=zarr.codecs.GzipCodec(),
        **common,
    )
    zarr.create_array(
        tmp_path / "double",
        chunks=(1, 1, 1, 1, 8, 8),
        shards=(1, 1, 4, 1, 8, 8),
        compressors=BloscCodec(),
        **(common | {"dtype": "f8"}),
    )
    for name in ("plain", "cut", "gzip", "double"):
        with pytest.raises(DataError, match="run the data rule again"):
            ShardReader(tmp_path / name)


# ------------------------------------------------------------------------------------------------ statistics


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.floats(0, 0.4), st.integers(1, 11), st.integers(0, 2**31))
def test_sums_add_up_over_any_cut(leads: int, gaps: float, cut: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = (5e4 + 10 * generator.normal(size=(12, 2, 4, 7))).astype(np.float32)
    values[:, 1][generator.uniform(size=(12, 4, 7)) < gaps] = np.nan
    counted = generator.uniform(size=12) < 0.9
    shift = np.array([5e4, 4.9e4])
    whole = moments(values, shift, counted, 0, leads)
    before = min(cut, leads)
    parts = moments(values[:cut], shift, counted[:cut], 0, leads) + moments(
        values[cut - before :], shift, counted[cut - before :], before, leads
    )
    np.testing.assert_allclose(parts.single, whole.single, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(parts.pairs, whole.pairs, rtol=1e-12, atol=1e-7)


def test_a_constant_channel_is_finite_and_an_unknown_one_refused() -> None:
    values = np.full((6, 2, 3, 4), 7.25, dtype=np.float32)
    values[:, 1] = np.random.default_rng(0).normal(size=(6, 3, 4))
    latitude = np.array([-40.0, 0, 40])
    found = finish(moments(values, np.array([5.0, 0]), np.ones(6, bool), 0, 2), np.array([5.0, 0]), latitude)
    assert found["base"][0] == pytest.approx(7.25)
    assert (found["std"][0], found["damping"][0, 0], found["residual_std"][0, 0]) == (1, 0, 1)
    with pytest.raises(ValueError, match="channel 0 has no known value"):
        finish(Moments.empty(1, 1, 3), np.zeros(1), latitude)


def test_a_latitude_that_is_never_known_gets_the_mean() -> None:
    values = np.random.default_rng(0).normal(3, 1, size=(6, 1, 3, 4)).astype(np.float32)
    values[:, :, 0] = np.nan
    found = finish(moments(values, np.zeros(1), np.ones(6, bool), 0, 1), np.zeros(1), np.array([-80.0, 0, 30]))
    weights = np.cos(np.deg2rad([0, 30]))
    expected = np.average(values[:, 0, 1:].mean(axis=(0, 2)), weights=weights)
    assert found["base"][0, 0] == pytest.approx(expected)
