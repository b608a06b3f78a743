"""Receipts: whatever is missing, truncated or changed is found."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from relent.data.receipt import check_receipt, refresh_receipt, sha256, write_receipt
from relent.errors import DataError

CHUNK = "dataset.zarr/inputs/c/0/0/0"


@pytest.fixture
def folder(patterns: Path, tmp_path: Path) -> Path:
    """A data set that a test may damage; nothing in it is younger than its receipt."""
    shutil.copytree(patterns / "patterns" / "smoke", tmp_path / "smoke")
    return tmp_path / "smoke"


def stamp(folder: Path) -> tuple[bytes, int]:
    path = folder / "receipt.json"
    return path.read_bytes(), path.stat().st_mtime_ns


def younger(path: Path, receipt: Path) -> None:
    """Give a file a time stamp after the receipt's, as any writer would."""
    after = receipt.stat().st_mtime_ns + 1_000_000
    os.utime(path, ns=(after, after))


def test_a_receipt_lists_every_file_with_size_and_checksum(folder):
    receipt = check_receipt(folder, contents=True)
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"receipt.json"}
    assert set(receipt["files"]) == files
    assert CHUNK in files
    assert receipt["files"][CHUNK] == {"bytes": (folder / CHUNK).stat().st_size, "sha256": sha256(folder / CHUNK)}
    assert receipt["title"] == "patterns"


def test_the_checksum_depends_on_names_and_bytes_alone(folder, tmp_path):
    before = check_receipt(folder)["checksum"]
    shutil.copytree(folder, tmp_path / "copy")
    assert write_receipt(tmp_path / "copy", title="another") == before
    (tmp_path / "copy" / "more").write_text("x")
    changed = write_receipt(tmp_path / "copy")
    assert changed != before
    (tmp_path / "copy" / "more").rename(tmp_path / "copy" / "other")
    assert write_receipt(tmp_path / "copy") not in (before, changed)


@pytest.mark.parametrize(
    ("name", "message"), [(CHUNK, "a chunk is missing"), ("dataset.zarr/zarr.json", "the file is missing")]
)
def test_a_missing_file_is_named(folder, name, message):
    (folder / name).unlink()
    for check in (check_receipt, refresh_receipt):
        with pytest.raises(DataError, match=message) as raised:
            check(folder)
        assert name in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_truncated_file_is_named(folder):
    (folder / CHUNK).write_bytes((folder / CHUNK).read_bytes()[:-1])
    with pytest.raises(DataError, match="truncated or changed"):
        check_receipt(folder)
    with pytest.raises(DataError, match="cannot be decoded"):
        refresh_receipt(folder)


def test_changed_bytes_of_the_same_size_are_found_by_reading(folder):
    content = bytearray((folder / CHUNK).read_bytes())
    content[-1] ^= 1
    (folder / CHUNK).write_bytes(bytes(content))
    check_receipt(folder)
    with pytest.raises(DataError, match="not those of the receipt"):
        check_receipt(folder, contents=True)


@pytest.mark.parametrize("text", ["", '{"files": {', "\x00"])
def test_a_receipt_that_is_not_whole_is_refused(folder, text):
    (folder / "receipt.json").write_text(text)
    with pytest.raises(DataError, match="is not whole"):
        check_receipt(folder)


def test_refreshing_an_unchanged_data_set_writes_nothing(folder):
    before = stamp(folder)
    refresh_receipt(folder)
    younger(folder / CHUNK, folder / "receipt.json")
    refresh_receipt(folder)
    assert stamp(folder) == before


def test_a_data_set_changed_on_purpose_gets_a_new_receipt(folder):
    before = json.loads(stamp(folder)[0])
    inputs = zarr.open_group(folder / "dataset.zarr", mode="r+")["inputs"]
    inputs[0] = np.full((6, 6), 7, dtype=np.uint8)
    younger(folder / CHUNK, folder / "receipt.json")
    refresh_receipt(folder)
    after = check_receipt(folder, contents=True)
    assert after["checksum"] != before["checksum"]
    assert {k: v for k, v in after.items() if k not in ("checksum", "files")} == {
        k: v for k, v in before.items() if k not in ("checksum", "files")
    }
    assert [name for name in after["files"] if after["files"][name] != before["files"][name]] == [CHUNK]


def test_a_chunk_that_does_not_decode_gets_no_new_receipt(folder):
    before = stamp(folder)
    (folder / CHUNK).write_bytes(b"\xff" * (folder / CHUNK).stat().st_size)
    younger(folder / CHUNK, folder / "receipt.json")
    with pytest.raises(DataError, match="cannot be decoded"):
        refresh_receipt(folder)
    assert stamp(folder) == before


def test_pinned_bytes_may_not_change(tmp_path):
    (tmp_path / "digits.gz").write_bytes(b"digits")
    write_receipt(tmp_path, package="p==1")
    pinned = {"digits.gz": sha256(tmp_path / "digits.gz")}
    refresh_receipt(tmp_path, pinned)
    (tmp_path / "digits.gz").write_bytes(b"digits, other ones")
    with pytest.raises(DataError, match="not the pinned ones"):
        refresh_receipt(tmp_path, pinned)


def test_without_a_receipt_there_is_nothing_to_refresh(tmp_path):
    refresh_receipt(tmp_path)
    assert not list(tmp_path.iterdir())
