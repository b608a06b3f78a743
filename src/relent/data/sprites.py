"""Units of the game Battle for Wesnoth, as colour images: which race does a sprite belong to?

Source: `wesnoth_units` (the game's data package). A class is a folder of `units/` (a race), a unit all frames whose
name below it (a file's or a folder's) agrees before the first `-`, `+` or digit (`bowman-attack-1.png` and
`bowman+female.png` are frames of `bowman`). Frames of a unit are near copies: splits are by unit, and units that share
a frame are one. Only images of 72 × 72 pixels are taken, laid on grey by their alpha mask.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from relent.data.fetch import read_members
from relent.data.units import GREY, Pictures, write_units
from relent.errors import DataError

SIDE = 72
"""Side of the images that are taken, in pixels: most frames have it; mounted and flying units are larger."""


def unit_of(name: str) -> str:
    """Unit of a file `RACE/STEM.png` or `RACE/FOLDER/….png`: STEM or FOLDER before its first `-`, `+` or digit."""
    stem = name.split("/")[1].removesuffix(".png")
    return re.split(r"[-+0-9]", stem)[0] or stem


def on_grey(image: Image.Image) -> Image.Image:
    """An image with an alpha mask laid on grey, as RGB."""
    ground = Image.new("RGBA", image.size, (GREY, GREY, GREY, 255))
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


def read_sprites(folder: Path, size: int) -> Pictures:
    """All frames of 72 × 72 pixels.

    Args:
        folder: Of the source `wesnoth_units`.
        size: Side of the images, 72 or 36 (means over 2 × 2 pixels).

    Raises:
        DataError: A file is no image.
    """
    images, classes, units = [], [], []
    for name, content in read_members(folder).items():
        try:
            with Image.open(io.BytesIO(content)) as image:
                if image.size != (SIDE, SIDE):
                    continue
                frame = on_grey(image)
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{folder}: {name} is no whole image ({error}); run `snakemake data` again") from None
        images.append(np.asarray(frame if size == SIDE else frame.reduce(SIDE // size)))
        classes.append(name.split("/")[0])
        units.append(unit_of(name))
    if not images:
        raise DataError(f"{folder}: holds no image of {SIDE} × {SIDE} pixels; run `snakemake data` again")
    return Pictures(np.stack(images), classes, units)


def prepare(sources: dict[str, Path], out: Path, options: dict[str, Any], seed: int = 0) -> None:
    """Write `dataset.zarr` (images, labels, split, source, unit) and its receipt.

    Args:
        sources: Folder of the files of `wesnoth_units`.
        out: Folder to write into.
        options: `size`, `fractions` of the units by split, `least_units` of a class, `per_unit` frames to keep.
        seed: Seed of the splits.

    Raises:
        ConfigError: Fewer than two races have enough units.
        DataError: A source file is missing or broken.
    """
    pictures = read_sprites(sources["wesnoth_units"], options.get("size", SIDE))
    write_units(out, pictures, options, seed, title="Sprites of Battle for Wesnoth")
