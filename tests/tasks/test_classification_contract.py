"""The extreme batches of the classification task are what they say."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from relent.tasks.classification.contract import HUGE, batches
from relent.train.stage import build


@pytest.fixture
def found(trained):
    _, datamodule, task = build(trained)
    return dict(batches(task, datamodule))


def test_every_batch_is_finite_and_of_the_data_s_form(found):
    first = found["data"]
    assert next(iter(found)) == "data"
    for name, batch in found.items():
        assert batch.keys() == first.keys()
        assert all(value.isfinite().all() for value in batch.values() if value.is_floating_point()), name
        size = 1 if name == "one item" else 16
        assert all(value.shape == (size, *first[key].shape[1:]) for key, value in batch.items())
        assert all(value.dtype == first[key].dtype for key, value in batch.items())


def test_teachers_reach_both_extremes(found):
    label = found["data"]["label"]
    signs = found["teacher ±1e4"]["teacher_logits"]
    assert signs.max() == HUGE
    assert signs.min() == -HUGE
    assert torch.equal(found["one-hot teacher"]["teacher_logits"].argmax(-1), label)
    assert not (found["one-hot teacher, wrong"]["teacher_logits"].argmax(-1) == label).any()
    assert (found["equal teacher"]["teacher_logits"].diff(dim=-1) == 0).all()


def test_huge_images_saturate_the_student(trained, found):
    network = build(trained)[0].network
    assert network(found["images × 1e4"]["input"]).logits.abs().max() > 1e3


def test_without_a_teacher_there_are_no_teacher_batches(trained):
    spec = replace(trained, inputs={"data": trained.inputs["data"]})
    _, datamodule, task = build(spec)
    assert not [name for name, _ in batches(task, datamodule) if "teacher" in name]
