"""The storm of 1996: gaps, rectangle, splits, statistics, on made-up files of the real form and on the real ones."""

from __future__ import annotations

from pathlib import Path

import netCDF4
import numpy as np
import pytest
import torch

from relent.data.receipt import check_receipt
from relent.data.storm96 import N_STEPS, VARIABLES, prepare
from relent.data.tiles import Windows, read_fields
from relent.errors import ConfigError, DataError
from relent.grid import Topology

REAL = Path(__file__).parents[2] / "data" / "sources" / "storm96"
FILL = -9999.0
LOST = {"v": (17, 37), "t": (17,), "v_500": (36,)}
CENTRES = {"u": 2.0, "v": 0.0, "t": 276.0, "p": 101_700.0, "u_500": 16.0, "v_500": -3.0}
SIZES = {"u": 5.0, "v": 5.0, "t": 6.0, "p": 800.0, "u_500": 9.0, "v_500": 10.0}


def storm(name: str, seed: int = 0) -> np.ndarray:
    """(64, 33, 36) values with memory from step to step, the wedge and the lost steps as fill values."""
    generator = np.random.default_rng([seed, list(VARIABLES).index(name)])
    values = np.empty((N_STEPS, 33, 36), dtype=np.float32)
    state = generator.normal(size=(33, 36))
    for step in range(N_STEPS):
        state = 0.8 * state + 0.6 * generator.normal(size=(33, 36))
        values[step] = CENTRES[name] + SIZES[name] * state + np.linspace(-1, 1, 33)[:, None] * SIZES[name]
    values[:, 20:, :6] = FILL
    values[:, 32, 8:12] = FILL
    values[list(LOST.get(name, ()))] = FILL
    return values


def write(path: Path, values: np.ndarray, name: str = "x", step: int = 6, reftime: str = "1996 01 05 00:00") -> None:
    with netCDF4.Dataset(path, "w", format="NETCDF3_CLASSIC") as file:
        for dimension, size in (("timestep", values.shape[0]), ("lat", 33), ("lon", 36), ("timelen", 20)):
            file.createDimension(dimension, size)
        file.createVariable(name, "f4", ("timestep", "lat", "lon"), fill_value=FILL)[:] = values
        file.createVariable("timestep", "i4", ("timestep",))[:] = np.arange(values.shape[0]) * step
        file.createVariable("lat", "f4", ("lat",))[:] = 20 + 1.25 * np.arange(33)
        file.createVariable("lon", "f4", ("lon",))[:] = -140 + 2.5 * np.arange(36)
        file.createVariable("reftime", "S1", ("timelen",))[:] = netCDF4.stringtochar(np.array([reftime], "S20"))[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for name, variable in VARIABLES.items():
        write(folder / variable.file, storm(name), name[0])
    return folder


@pytest.fixture(scope="module")
def prepared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare({"storm96": source}, folder, {"tile": 16})
    return folder


def test_rectangle_times_and_gaps(prepared: Path) -> None:
    fields = read_fields(prepared)
    assert fields.variables == ("u", "v", "t", "p", "u_500", "v_500")
    assert fields.shape == (32, 20)
    assert fields.topology is Topology.regional
    assert fields.time[0] == np.datetime64("1996-01-05T00")
    assert fields.time[-1] == np.datetime64("1996-01-20T18")
    assert (fields.latitude[0], fields.latitude[-1]) == (20, 58.75)
    assert (fields.longitude[0], fields.longitude[-1]) == (-120, -72.5)
    assert np.flatnonzero(~fields.usable).tolist() == [17, 36, 37]
    for channel, name in enumerate(fields.variables):
        frames = fields.physical(fields.frames(0, N_STEPS))[:, channel].numpy()
        expected = storm(name)[:, :32, 8:28].copy()
        expected[list(LOST.get(name, ()))] = np.nan
        np.testing.assert_allclose(frames, expected, rtol=1e-5, atol=1e-3)
    receipt = check_receipt(prepared, contents=True)
    assert receipt["lost_steps"] == ["1996-01-09T06:00", "1996-01-14T00:00", "1996-01-14T06:00"]
    assert receipt["steps"] == {"train": 35, "validation": 6, "test": 18, "unused": 5}


def test_splits_are_apart_in_time(prepared: Path) -> None:
    fields = read_fields(prepared)
    assert fields.splits["train"] == [step for step in range(36) if step != 17]
    assert fields.splits["validation"] == list(range(38, 44))
    assert fields.splits["test"] == list(range(46, 64))
    starts = list(Windows.over(fields, "train", 3, 16, 1).starts)
    assert len(starts) == 31
    assert not {15, 16, 17} & set(starts)
    assert max(starts) + 2 == 35
    assert list(Windows.over(fields, "validation", 3, 16, 16).starts) == [38, 39, 40, 41]
    cases = fields.cases("test", 4)
    assert cases[0] == (42, [4])
    assert [sum(lead in leads for _, leads in cases) for lead in (1, 4)] == [18, 18]
    assert all(fields.usable[initial - 1 : initial + 1].all() for initial, _ in cases)


def test_statistics_come_from_training_steps_alone(prepared: Path, tmp_path: Path) -> None:
    fields = read_fields(prepared)
    train = fields.splits["train"]
    rows = np.cos(np.deg2rad(fields.latitude))

    def mean(values: np.ndarray) -> float:
        return float(np.average(values.mean(axis=(0, 2)), weights=rows))

    for channel, name in enumerate(fields.variables):
        values = storm(name)[:, :32, 8:28].astype(float)
        base = values[train].mean(0)
        np.testing.assert_allclose(fields.base[channel], base, rtol=1e-5, atol=1e-4)
        anomaly = values - base
        std = np.sqrt(mean(anomaly[train] ** 2))
        assert float(fields.std[channel]) == pytest.approx(std, rel=1e-5)
        for lead in (1, 5):
            starts = [step for step in train if step + lead in train]
            before, after = anomaly[starts], anomaly[[step + lead for step in starts]]
            slope = mean(before * after) / mean(before**2)
            left = mean((after - slope * before) ** 2)
            assert float(fields.lead_damping[lead - 1, channel]) == pytest.approx(slope, rel=1e-4)
            assert float(fields.lead_residual_std[lead - 1, channel]) == pytest.approx(np.sqrt(left) / std, rel=1e-4)
    assert fields.lead_damping.shape == (8, 6)
    (tmp_path / "source").mkdir()
    for name, variable in VARIABLES.items():
        values = storm(name)
        values[38:] = np.where(values[38:] == FILL, FILL, CENTRES[name] + 0.5 * (values[38:] - CENTRES[name]))
        write(tmp_path / "source" / variable.file, values)
    prepare({"storm96": tmp_path / "source"}, tmp_path / "other", {})
    other = read_fields(tmp_path / "other")
    for name in ("base", "std", "lead_damping", "lead_residual_std"):
        assert torch.equal(getattr(fields, name), getattr(other, name))
    assert other.checksum != fields.checksum


def test_preparing_twice_gives_the_same_bytes(source: Path, prepared: Path, tmp_path: Path) -> None:
    prepare({"storm96": source}, tmp_path, {"tile": 16})
    assert read_fields(tmp_path).checksum == read_fields(prepared).checksum


def celsius(values: np.ndarray) -> np.ndarray:
    return np.where(values == FILL, FILL, values - 273.15)


def with_a_hole(values: np.ndarray) -> np.ndarray:
    values[30, 5, 15] = FILL
    return values


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("t", celsius, "air temperature near the surface goes from .* which cannot be in K"),
        ("p", lambda v: np.where(v == FILL, FILL, v / 100), "which cannot be in Pa"),
        ("u", with_a_hole, "step 30 lacks a part of the rectangle"),
        ("u", lambda v: v[:60], "must have 64 steps 6 hours apart, has 60|has the shape"),
        ("v", lambda v: np.full_like(v, FILL), "no value is known"),
    ],
    ids=["celsius", "hPa", "a hole", "too short", "nothing"],
)
def test_fields_that_are_not_as_they_should_be(source: Path, tmp_path: Path, name: str, change, message: str) -> None:
    for other in VARIABLES.values():
        (tmp_path / other.file).write_bytes((source / other.file).read_bytes())
    write(tmp_path / VARIABLES[name].file, change(storm(name)))
    with pytest.raises(DataError, match=message) as caught:
        prepare({"storm96": tmp_path}, tmp_path / "out", {})
    assert VARIABLES[name].file in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_times_that_are_not_as_they_should_be(source: Path, tmp_path: Path) -> None:
    write(tmp_path / "Ustorm.cdf", storm("u"), step=3)
    with pytest.raises(DataError, match="64 steps 6 hours apart"):
        prepare({"storm96": tmp_path}, tmp_path / "out", {})
    write(tmp_path / "Ustorm.cdf", storm("u"), reftime="some day")
    with pytest.raises(DataError, match="its times cannot be read"):
        prepare({"storm96": tmp_path}, tmp_path / "out", {})


def test_missing_and_broken_files(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Ustorm\.cdf: does not exist; run the data rule"):
        prepare({"storm96": tmp_path}, tmp_path / "out", {})
    (tmp_path / "Ustorm.cdf").write_bytes(b"not netCDF")
    with pytest.raises(DataError, match=r"Ustorm\.cdf: cannot be read as netCDF"):
        prepare({"storm96": tmp_path}, tmp_path / "out", {})


def test_options_that_cannot_be(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.tile: .*less than or equal to 20, got 32"):
        prepare({"storm96": source}, tmp_path, {"tile": 32})
    with pytest.raises(ConfigError, match=r"data\.coarsen: unknown key"):
        prepare({"storm96": source}, tmp_path, {"coarsen": 2})


@pytest.mark.skipif(
    not REAL.is_dir(), reason="the real fields are not here: snakemake data --config tasks=weather_storm"
)
def test_the_real_storm(tmp_path: Path) -> None:
    prepare({"storm96": REAL}, tmp_path, {})
    fields = read_fields(tmp_path)
    assert np.flatnonzero(~fields.usable).tolist() == [17, 36, 37]
    expected = [0.73, 0.66, 0.84, 0.89, 0.86, 0.77]
    torch.testing.assert_close(fields.damping, torch.tensor(expected), atol=0.01, rtol=0)
    low = fields.physical(fields.frames(0, N_STEPS))[:, 3]
    # Lows of a blizzard, in Pa, not hPa.
    assert 97_000 < float(low[torch.from_numpy(fields.usable)].min()) < 98_500
