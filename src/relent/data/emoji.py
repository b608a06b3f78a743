"""Emoji as colour images of one font: which group of Unicode's list (faces, food, flags, …) does a picture belong to?

Sources: `noto_emoji` (the font Noto Color Emoji, bitmaps of 136 × 128 pixels) and `emoji_list` (`emoji-test.txt` of
Unicode Technical Standard 51, with groups and subgroups). Every fully qualified emoji that the font draws as one
picture is an item. Pictures that differ in skin tone, gender, hair, colour, size, direction or number are near copies:
one unit (`unit_keys`), which no two splits share.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from relent.data.sprites import on_grey
from relent.data.units import Pictures, joined, write_units
from relent.errors import ConfigError, DataError

FONT_SIZE = 109
"""The one size at which the font has bitmaps."""
WIDTH, HEIGHT = 136, 128
_LINE = re.compile(r"^(?P<codes>[0-9A-F ]+?) *; fully-qualified +# \S+ E[0-9.]+ (?P<name>.+)$")
_TONES = range(0x1F3FB, 0x1F400)
_HAIR = range(0x1F9B0, 0x1F9B4)
_DROPPED = {0x200D, 0xFE0F, 0x2640, 0x2642, *_TONES, *_HAIR}
_ALIKE = {0x1F468: 0x1F9D1, 0x1F469: 0x1F9D1, 0x1F466: 0x1F9D2, 0x1F467: 0x1F9D2, 0x1F474: 0x1F9D3, 0x1F475: 0x1F9D3}
"""Man and woman → person, boy and girl → child, old man and old woman → older person."""
_WORDS = {
    *("man", "woman", "men", "women", "person", "people", "boy", "girl", "child", "old", "older", "mx", "mrs."),
    *("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white", "grey", "pink", "light", "dark"),
    *("large", "medium", "small", "low", "high", "open", "closed", "vertical", "clockwise", "counterclockwise"),
    *("left", "right", "up", "down", "top", "bottom", "back", "one", "two", "three", "four", "five", "six", "seven"),
    *("eight", "nine", "ten", "eleven", "twelve", "first", "last", "quarter", "full", "new", "waxing", "waning"),
    *("crescent", "gibbous", "santa"),
}
"""Words of names that tell near copies apart: gender and age, colours, sizes, directions, numbers, the moon's phase."""
_SYNONYMS = {"princess": "prince", "thirty": "o’clock"}


@dataclass(frozen=True)
class Emoji:
    """One fully qualified emoji of the list."""

    text: str
    name: str
    group: str
    subgroup: str


def read_list(path: Path) -> list[Emoji]:
    """All fully qualified emoji of `emoji-test.txt`, in its order.

    Raises:
        DataError: The file is missing or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it and run `snakemake data` again") from None
    group, subgroup, found = "", "", []
    for line in lines:
        if line.startswith("# group: "):
            group = line.removeprefix("# group: ")
        elif line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ")
        elif match := _LINE.match(line):
            text = "".join(chr(int(code, 16)) for code in match["codes"].split())
            found.append(Emoji(text, match["name"], group, subgroup))
    if not found:
        raise DataError(f"{path}: holds no line of a fully qualified emoji; it is no emoji-test.txt")
    return found


def unit_keys(emoji: Emoji) -> list[str]:
    """What near copies have in common; emoji that share a key belong to one unit.

    The first key is the sequence of code points without skin tones, hair and gender, the second the name without the
    words that tell near copies apart (and without what follows a colon, but for flags). Families and couples are all
    one unit.
    """
    if emoji.subgroup == "family":
        return ["family"]
    codes = [_ALIKE.get(ord(sign), ord(sign)) for sign in emoji.text if ord(sign) not in _DROPPED]
    keys = ["codes " + " ".join(f"{code:X}" for code in codes or map(ord, emoji.text))]
    if emoji.name.startswith("flag: "):
        return keys
    words = re.split(r"[ -]", emoji.name.partition(":")[0].lower())
    kept = [_SYNONYMS.get(word, word) for word in words if word not in _WORDS]
    return [*keys, *([f"name {emoji.subgroup} {' '.join(kept)}"] if kept else [])]


def draw(font: ImageFont.FreeTypeFont, text: str, size: int) -> Image.Image | None:
    """The picture of an emoji on grey, `size` × `size`; None where the font has no single picture of it."""
    if font.getlength(text) != font.getlength("\N{GRINNING FACE}"):
        return None
    picture = Image.new("RGBA", (WIDTH, WIDTH))
    ImageDraw.Draw(picture).text((0, (WIDTH - HEIGHT) // 2), text, font=font, embedded_color=True, anchor="lt")
    if picture.getbbox() is None:
        return None
    return on_grey(picture).resize((size, size), Image.Resampling.BOX)


def read_emoji(font_file: Path, listed: list[Emoji], size: int) -> Pictures:
    """Pictures of all emoji that the font draws.

    Raises:
        ConfigError: Pillow was built without Raqm, which joins the parts of a sequence to one picture.
        DataError: The font is missing or broken.
    """
    if not features.check("raqm"):
        raise ConfigError(
            "Pillow has no Raqm here, which joins sequences (flags, skin tones) to one picture; install Pillow's wheel "
            "and the system's libfribidi",
            key="data_module",
        )
    try:
        font = ImageFont.truetype(font_file, FONT_SIZE, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
        raise DataError(f"{font_file}: is no font ({error}); delete it and run `snakemake data` again") from None
    drawn = [(emoji, picture) for emoji in listed if (picture := draw(font, emoji.text, size)) is not None]
    units = joined([unit_keys(emoji) for emoji, _ in drawn])
    names = [drawn[int(np.flatnonzero(units == unit)[0])][0].name for unit in range(units.max() + 1)]
    images = np.stack([np.asarray(picture) for _, picture in drawn])
    return Pictures(images, [emoji.group for emoji, _ in drawn], [names[unit] for unit in units])


def prepare(sources: dict[str, Path], out: Path, options: dict[str, Any], seed: int = 0) -> None:
    """Write `dataset.zarr` (images, labels, split, source, unit) and its receipt.

    Args:
        sources: Folders of the files of `noto_emoji` and `emoji_list`.
        out: Folder to write into.
        options: `size`, `fractions` of the units by split, `least_units` of a class, `per_unit` pictures to keep.
        seed: Seed of the splits.

    Raises:
        ConfigError: Pillow cannot join sequences, or fewer than two groups have enough units.
        DataError: A source file is missing or broken.
    """
    listed = read_list(sources["emoji_list"] / "emoji-test.txt")
    pictures = read_emoji(sources["noto_emoji"] / "NotoColorEmoji.ttf", listed, options.get("size", 64))
    write_units(out, pictures, options, seed, title="Noto Color Emoji")
