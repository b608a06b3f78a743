"""The CSV logger of a run."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from relent.train.history import HEADER, History


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as handle:
        return list(csv.reader(handle))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    history = History(tmp_path / "run" / "metrics.csv")
    for step in (0, 2, 4, 6):
        history.log_metrics({"train/loss": step / 3, "epoch": 0, "validation/nll": 1.5}, step)
    return tmp_path / "run" / "metrics.csv"


def test_numbers_come_back_bit_for_bit_and_the_epoch_is_left_out(written):
    header, *found = rows(written)
    assert tuple(header) == HEADER
    assert [float(value) for step, name, value in found if name == "train/loss"] == [0 / 3, 2 / 3, 4 / 3, 6 / 3]
    assert {name for _, name, _ in found} == {"train/loss", "validation/nll"}


def test_a_resumed_run_drops_what_it_will_write_again(written):
    before = rows(written)
    history = History(written, resume_step=4)
    assert rows(written) == [row for row in before if row[0] in ("step", "0", "2")]
    for step in (4, 6):
        history.log_metrics({"train/loss": step / 3, "validation/nll": 1.5}, step)
    assert rows(written) == before


def test_a_half_written_row_is_dropped(written):
    with written.open("a") as handle:
        handle.write("2,train/lo")
    History(written, resume_step=7)
    assert all(len(row) == 3 for row in rows(written))
    assert len(rows(written)) == 1 + 8


def test_a_fresh_start_begins_anew(written):
    History(written)
    assert rows(written) == [list(HEADER)]


def test_numbers_that_are_not_finite_are_kept(tmp_path):
    History(tmp_path / "m.csv").log_metrics({"train/loss": math.nan}, None)
    assert rows(tmp_path / "m.csv")[1] == ["0", "train/loss", "nan"]
