"""Reading prepared classification data and stored teacher outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from relent.errors import DataError
from relent.tasks.classification.data import read_data, read_teacher
from relent.tasks.stored import read_array


@pytest.fixture
def folder(patterns: Path) -> Path:
    return patterns / "patterns" / "smoke"


def test_images_are_standardised_by_the_student_split_alone(folder):
    data = read_data(folder)
    raw = zarr.open_group(folder / "dataset.zarr", mode="r")["inputs"][...].astype(np.float64)
    chosen = raw[data.items("student").numpy()]
    expected = (raw - chosen.mean()) / chosen.std()
    np.testing.assert_allclose(data.inputs[:, 0].numpy(), expected, rtol=1e-4, atol=1e-4)
    assert data.inputs.dtype == torch.float32
    assert data.labels.dtype == torch.int64


def test_splits_are_disjoint_and_cover_all(folder):
    data = read_data(folder)
    items = torch.cat([data.items(split) for split in data.splits])
    assert items.sort().values.tolist() == list(range(200))
    assert [len(data.items(split)) for split in data.splits] == [data.counts[split] for split in data.splits]


def test_a_teacher_is_read_in_the_order_of_the_data(trained):
    data = read_data(trained.inputs["data"])
    teacher = read_teacher(trained.inputs["teacher"], data)
    assert teacher["logits"].shape == (200, 5)
    assert teacher["features"].shape == (200, 16)
    items = data.items("teacher")
    assert (teacher["logits"][items].argmax(1) == data.labels[items]).float().mean() > 0.6


def test_an_absent_array_and_values_that_are_not_finite_are_refused(tmp_path):
    group = zarr.create_group(store=tmp_path / "g.zarr")
    group.create_array("fine", data=np.arange(4.0))
    group.create_array("broken", data=np.array([0.0, np.inf]))
    np.testing.assert_array_equal(read_array(group, "fine", tmp_path), np.arange(4.0))
    with pytest.raises(DataError, match="has no array 'absent'"):
        read_array(group, "absent", tmp_path)
    with pytest.raises(DataError, match="broken: holds NaN or infinite values"):
        read_array(group, "broken", tmp_path)
