"""The sprites: units by name, the images that are taken, and a whole preparation from an archive made here."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from relent.data.fetch import write_members
from relent.data.sprites import prepare, read_sprites, unit_of
from relent.data.units import GREY
from relent.errors import DataError


def png(seed: int, size: tuple[int, int] = (72, 72)) -> bytes:
    """A random image whose left half is transparent."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4)).astype(np.uint8)
    pixels[:, : size[0] // 2, 3] = 0
    pixels[:, size[0] // 2 :, 3] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two races of nine units with three frames each, one of three units, and frames of another size."""
    names = [
        f"{race}/{'abcdefghi'[unit]}unit{ending}.png"
        for race, count in (("orcs", 9), ("elves", 9), ("woses", 3))
        for unit in range(count)
        for ending in ("", "-attack-1", "+female")
    ]
    files = {name: png(number) for number, name in enumerate(names)}
    files |= {"orcs/large.png": png(900, (80, 72)), "orcs/huge/huge-ne.png": png(901, (100, 100))}
    path = tmp_path_factory.mktemp("source") / "wesnoth_units"
    path.mkdir()
    write_members(files, path / "members.zip")
    return path


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("orcs/grunt.png", "grunt"),
        ("orcs/grunt-attack-1.png", "grunt"),
        ("elves/archer+female-bow.png", "archer"),
        ("monsters/yeti2.png", "yeti"),
        ("loyalists/knight/knight-attack-n1.png", "knight"),
        ("loyalists/grand-knight/grand-knight.png", "grand"),
        ("undead/-odd.png", "-odd"),
    ],
)
def test_a_unit_is_the_name_before_the_first_sign_or_digit(name: str, unit: str) -> None:
    assert unit_of(name) == unit


def test_frames_of_the_one_size_are_laid_on_grey(folder: Path) -> None:
    found = read_sprites(folder, 72)
    assert found.images.shape == (63, 72, 72, 3)
    assert (found.images[:, :, :36] == GREY).all()
    assert found.images[0, :, 36:].std() > 50
    half = read_sprites(folder, 36)
    expected = found.images[5].astype(float).reshape(36, 2, 36, 2, 3).mean((1, 3))
    assert np.abs(half.images[5] - expected).max() <= 0.75


def test_no_unit_stands_in_two_splits(folder: Path, tmp_path: Path) -> None:
    fractions = {"teacher": 0.5, "student": 0.2, "validation": 0.1}
    prepare({"wesnoth_units": folder}, tmp_path, {"size": 36, "fractions": fractions, "least_units": 5})
    group = zarr.open_group(tmp_path / "dataset.zarr", mode="r")
    assert group.attrs["classes"] == ["elves", "orcs"]
    unit, split = np.asarray(group["unit"]), np.asarray(group["split"])
    assert len(np.unique(unit)) == 18
    assert np.bincount(unit).tolist() == [3] * 18
    assert all(len(np.unique(split[unit == number])) == 1 for number in range(18))


def test_broken_sources_are_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"members.zip: is missing, truncated or broken"):
        read_sprites(tmp_path, 72)
    (tmp_path / "members.zip").write_bytes((folder / "members.zip").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"members.zip: is missing, truncated or broken"):
        read_sprites(tmp_path, 72)
    write_members({"orcs/grunt.png": png(1)[:3000]}, tmp_path / "members.zip")
    with pytest.raises(DataError, match=r"orcs/grunt.png is no whole image"):
        read_sprites(tmp_path, 72)
    write_members({"orcs/grunt.png": png(1, (30, 30))}, tmp_path / "members.zip")
    with pytest.raises(DataError, match="holds no image of 72 × 72 pixels"):
        read_sprites(tmp_path, 72)
