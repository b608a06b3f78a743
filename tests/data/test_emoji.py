"""The emoji: the list, what counts as one unit, and pictures drawn with a font that is at hand."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import zarr
from PIL import ImageFont, features

from relent.data.emoji import FONT_SIZE, Emoji, draw, prepare, read_list, unit_keys
from relent.data.units import joined
from relent.errors import DataError

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
"""Draws the emoticons from U+1F600 on, in black."""
HEAD = """# emoji-test.txt
# group: Smileys & Emotion
# subgroup: face-smiling
1F600                                                  ; fully-qualified     # 😀 E1.0 grinning face
263A FE0F                                              ; fully-qualified     # ☺️ E0.6 smiling face
263A                                                   ; unqualified         # ☺ E0.6 smiling face
# group: Component
# subgroup: skin-tone
1F3FB                                                  ; component           # 🏻 E1.0 light skin tone
"""
needs_raqm = pytest.mark.skipif(not features.check("raqm"), reason="Pillow has no Raqm here")


def emoji(codes: str, name: str, subgroup: str = "x") -> Emoji:
    return Emoji("".join(chr(int(code, 16)) for code in codes.split()), name, "g", subgroup)


def test_fully_qualified_emoji_are_read_with_their_groups(tmp_path: Path) -> None:
    (tmp_path / "emoji-test.txt").write_text(HEAD, encoding="utf-8")
    found = read_list(tmp_path / "emoji-test.txt")
    assert [(e.text, e.name, e.group, e.subgroup) for e in found] == [
        ("😀", "grinning face", "Smileys & Emotion", "face-smiling"),
        ("☺️", "smiling face", "Smileys & Emotion", "face-smiling"),
    ]


@pytest.mark.parametrize(
    "alike",
    [
        [("1F44B", "waving hand"), ("1F44B 1F3FF", "waving hand: dark skin tone")],
        [("1F9D1 200D 1F373", "cook"), ("1F469 1F3FD 200D 1F373", "woman cook: medium skin tone")],
        [("1F3C3", "person running"), ("1F3C3 1F3FB 200D 2642 FE0F", "man running: light skin tone")],
        [("1F9D1", "person"), ("1F468 200D 1F9B0", "man: red hair"), ("1F469", "woman")],
        [("1F467", "girl"), ("1F466", "boy"), ("1F9D2 1F3FB", "child: light skin tone")],
        [("1F483", "woman dancing"), ("1F57A", "man dancing")],
        [("1F934", "prince"), ("1F478", "princess")],
        [("1F385", "Santa Claus"), ("1F936", "Mrs. Claus"), ("1F9D1 200D 1F384", "mx claus")],
        [("1F550", "one o’clock"), ("1F55C", "one-thirty"), ("1F565", "ten-thirty")],
        [("1F311", "new moon"), ("1F312", "waxing crescent moon"), ("1F315", "full moon")],
        [("1F7E6", "blue square"), ("1F7E9", "green square")],
        [("2B06 FE0F", "up arrow"), ("2196 FE0F", "up-left arrow")],
        [("0031 FE0F 20E3", "keycap: 1"), ("0032 FE0F 20E3", "keycap: 2")],
    ],
)
def test_near_copies_are_one_unit(alike: list[tuple[str, str]]) -> None:
    assert joined([unit_keys(emoji(*item)) for item in alike]).tolist() == [0] * len(alike)


def test_families_and_couples_are_one_unit() -> None:
    assert unit_keys(emoji("1F46A", "family", "family")) == unit_keys(emoji("1F48F", "kiss", "family"))


@pytest.mark.parametrize(
    "unlike",
    [
        [("1F1E9 1F1EA", "flag: Germany"), ("1F1EB 1F1F7", "flag: France")],
        [("1F436", "dog face"), ("1F431", "cat face")],
        [("1F600", "grinning face"), ("1F622", "crying face")],
        [("1F468 200D 1F373", "man cook"), ("1F468 200D 1F3A8", "man artist")],
    ],
)
def test_other_pictures_are_not(unlike: list[tuple[str, str]]) -> None:
    assert joined([unit_keys(emoji(*item)) for item in unlike]).tolist() == list(range(len(unlike)))


def test_names_join_within_a_subgroup_only() -> None:
    groups = joined([unit_keys(emoji("1F4D7", "green book", "book")), unit_keys(emoji("1F957", "green", "food"))])
    assert groups.tolist() == [0, 1]


@needs_raqm
def test_only_single_pictures_are_drawn() -> None:
    font = ImageFont.truetype(FONT, FONT_SIZE)
    picture = draw(font, "\N{GRINNING FACE}", 32)
    assert picture is not None
    assert picture.size == (32, 32)
    assert picture.mode == "RGB"
    assert draw(font, "\N{GRINNING FACE}\N{GRINNING FACE}", 32) is None


@needs_raqm
def test_a_whole_preparation(tmp_path: Path) -> None:
    lines = ["# emoji-test.txt"]
    for number, group in enumerate(("first", "second")):
        lines.append(f"# group: {group}")
        codes = range(0x1F600 + 20 * number, 0x1F600 + 20 * number + 12)
        lines += [f"{code:X} ; fully-qualified # {chr(code)} E1.0 face {code:X}" for code in codes]
    for name in ("list", "font", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "list" / "emoji-test.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "font" / "NotoColorEmoji.ttf").write_bytes(FONT.read_bytes())
    sources = {"noto_emoji": tmp_path / "font", "emoji_list": tmp_path / "list"}
    fractions = {"teacher": 0.5, "student": 0.2, "validation": 0.1}
    prepare(sources, tmp_path / "out", {"size": 32, "fractions": fractions, "least_units": 8})
    group = zarr.open_group(tmp_path / "out" / "dataset.zarr", mode="r")
    assert group.attrs["classes"] == ["first", "second"]
    # Two of the 24 look alike in this font.
    assert np.asarray(group["inputs"]).shape == (23, 32, 32, 3)


def test_broken_sources_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"emoji-test.txt: cannot be read"):
        read_list(tmp_path / "emoji-test.txt")
    (tmp_path / "emoji-test.txt").write_text("# nothing")
    with pytest.raises(DataError, match="holds no line of a fully qualified emoji"):
        read_list(tmp_path / "emoji-test.txt")
    (tmp_path / "emoji-test.txt").write_text(HEAD, encoding="utf-8")
    (tmp_path / "NotoColorEmoji.ttf").write_bytes(b"no font")
    if features.check("raqm"):
        with pytest.raises(DataError, match=r"NotoColorEmoji.ttf: is no font"):
            prepare({"noto_emoji": tmp_path, "emoji_list": tmp_path}, tmp_path / "out", {"size": 32})
