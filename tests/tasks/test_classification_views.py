"""Augmented views: pure functions of seed, item and epoch, and a teacher's stored outputs on the very pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file
from scipy.stats import chisquare, kstest

from relent.contract.subject import differing
from relent.contract.trained import Dies, Killed
from relent.errors import ConfigError, DataError
from relent.manifest.catalogue import Catalogue, Run
from relent.manifest.models import Scale
from relent.runspec import RunSpec
from relent.tasks.classification.options import Augmentation
from relent.tasks.classification.views import Views, hashed, uniform
from relent.train.stage import build, run_stage

AUGMENTATION = {"views": 3, "shift": 1, "flip": True, "noise": 0.1}
RANGE = (-1.5, 2.5)
BITS = 2**64 - 1


def views(**options: Any) -> Views:
    return Views(Augmentation(**options), RANGE)


def images(count: int, side: int = 5, channels: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.empty(count, channels, side, side).uniform_(*RANGE, generator=generator)


def augmented(catalogue: Catalogue, options: dict[str, Any] | None) -> Catalogue:
    """The catalogue whose task augments its images."""
    task = catalogue.tasks["patterns"]
    data = {} if options is None else {"augmentation": options}
    smoke = task.scales[Scale.smoke].model_copy(update={"data": data})
    task = task.model_copy(update={"scales": task.scales | {Scale.smoke: smoke}})
    return replace(catalogue, tasks=catalogue.tasks | {"patterns": task})


def student(catalogue: Catalogue, method: str = "knowledge_distillation", seed: int = 0) -> RunSpec:
    return catalogue.stage_spec(Run("patterns", method, catalogue.methods[method].default_variant, "smoke", seed))


@pytest.fixture
def taught(catalogue: Catalogue) -> Catalogue:
    """Augmented patterns with a trained teacher."""
    found = augmented(catalogue, AUGMENTATION)
    run_stage(found.teacher_spec("patterns", "wide", "smoke"))
    return found


# ------------------------------------------------------------------------------------------------ what a view is


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
@settings(max_examples=50, deadline=None)
def test_the_hash_is_splitmix_by_hand(seed, item, epoch):
    state = seed
    for part in (item, epoch):
        state = ((state ^ part) + 0x9E3779B97F4A7C15) & BITS
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & BITS
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & BITS
        state ^= state >> 31
    parts = (np.array([part], dtype=np.uint64) for part in (item, epoch))
    assert int(hashed(seed, *parts)[0]) == state


@given(st.integers(0, 2**31 - 1), st.permutations(range(12)), st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_a_view_depends_on_item_and_number_alone(seed, order, size):
    found, pictures = views(views=5, shift=2, flip=True, noise=0.2, seed=seed), images(12)
    items, which = torch.arange(100, 112), torch.arange(12) % 5
    whole = found.of(pictures, items, which)
    parts = torch.tensor(order).split(size)
    again = torch.cat([found.of(pictures[part], items[part], which[part]) for part in parts])
    assert torch.equal(again, whole[torch.tensor(order)])
    epochs = torch.cat([found.shown(7, items[part], 3) for part in parts])
    assert torch.equal(epochs, found.shown(7, items, 3)[torch.tensor(order)])


@pytest.mark.parametrize("border", ["edge", "black"])
def test_a_shift_brings_in_the_border_and_a_flip_mirrors(border):
    side, margin = 7, 2
    pictures = images(200, side)
    moved = views(shift=margin, flip=True, border=border).of(pictures, torch.arange(200), torch.arange(200) % 4)
    padding: dict[str, Any] = {"mode": "edge"} if border == "edge" else {"constant_values": RANGE[0]}
    padded = np.pad(pictures.numpy(), ((0, 0), (0, 0), (margin,) * 2, (margin,) * 2), **padding)
    seen = set()
    for image, wide in zip(moved.numpy(), padded):
        places = [
            (row, column, mirrored)
            for row in range(2 * margin + 1)
            for column in range(2 * margin + 1)
            for mirrored in (False, True)
            if np.array_equal(
                image,
                wide[:, row : row + side, column : column + side][..., :: -1 if mirrored else 1],
            )
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 45  # of 5 · 5 · 2


def test_noise_is_normal_new_for_every_view_and_stays_in_range():
    plain = torch.full((60, 1, 12, 12), 0.5)
    found = views(views=2, noise=0.05)
    first, second = (found.of(plain, torch.arange(60), torch.full((60,), view)) for view in range(2))
    noise = [((image - 0.5) / (0.05 * (RANGE[1] - RANGE[0]))).flatten().numpy() for image in (first, second)]
    assert kstest(noise[0], "norm").pvalue > 1e-3
    assert abs(np.corrcoef(*noise)[0, 1]) < 0.05
    assert abs(np.corrcoef(noise[0][:-1], noise[0][1:])[0, 1]) < 0.05
    loud = views(noise=1.0).of(plain, torch.arange(60), torch.zeros(60, dtype=torch.long))
    assert (float(loud.min()), float(loud.max())) == pytest.approx(RANGE)


def test_epochs_show_all_views_equally_often_and_seeds_differ():
    found, items = views(views=4, shift=1), torch.arange(500)
    shown = torch.stack([found.shown(0, items, epoch) for epoch in range(20)])
    assert chisquare(torch.bincount(shown.flatten(), minlength=4)).pvalue > 1e-3
    pairs = torch.bincount((shown[:-1] * 4 + shown[1:]).flatten(), minlength=16)
    assert chisquare(pairs).pvalue > 1e-3
    assert not torch.equal(found.shown(1, items, 0), shown[0])
    numbers = uniform(3, np.arange(20_000, dtype=np.uint64))
    assert kstest(numbers, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "must set shift, flip, noise"), ({"shift": 1, "views": 0}, "views"), ({"crop": 1}, "crop")],
)
def test_options_that_make_no_views_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        Augmentation(**options)


# --------------------------------------------------------------------------------- a student and its teacher


def teacher_of(catalogue: Catalogue) -> torch.nn.Module:
    """The trained teacher's network."""
    spec = catalogue.teacher_spec("patterns", "wide", "smoke")
    module, _, _ = build(spec)
    module.load_state_dict(load_file(Path(spec.output) / "weights.safetensors"))
    return module.network.eval()


def batches(spec: RunSpec, start: int = 0) -> Iterator[dict[str, torch.Tensor]]:
    yield from build(spec, start)[1].train_dataloader()


def test_a_student_gets_the_teachers_outputs_on_the_very_pixels_it_sees(taught):
    network, spec = teacher_of(taught), student(taught, seed=3)
    _, datamodule, task = build(spec)
    found = Views(Augmentation(**AUGMENTATION), task.data.pixel_range)
    seen: dict[int, list[bytes]] = {}
    for number, batch in enumerate(datamodule.train_dataloader()):
        epoch, index = number // datamodule.batches_per_epoch, batch["index"]
        which = found.shown(3, index, epoch)
        assert torch.equal(batch["input"], found.of(task.data.inputs[index], index, which))
        assert torch.equal(batch["label"], task.data.labels[index])
        with torch.no_grad():
            output = network(batch["input"])
        torch.testing.assert_close(batch["teacher_logits"], output.logits)
        torch.testing.assert_close(batch["teacher_features"], output.features)
        for item, image in zip(index.tolist(), batch["input"]):
            seen.setdefault(item, []).append(image.numpy().tobytes())
    assert number == 11  # six epochs of two batches
    assert max(len(forms) for forms in seen.values()) == 6
    assert max(len(set(forms)) for forms in seen.values()) == 3


def test_a_start_in_the_middle_of_an_epoch_gives_the_batches_that_are_left(taught):
    spec = student(taught)
    whole = list(batches(spec))
    for batch, expected in zip(batches(spec, 5), whole[5:], strict=True):
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in batch)


@pytest.mark.parametrize("method", ["knowledge_distillation", "saf"])
def test_a_run_killed_in_the_middle_of_an_epoch_resumes_to_the_same_bits(taught, changed, method):
    spec = changed(student(taught, method), checkpoint_every=3)  # two batches an epoch
    run_stage(spec)
    broken = replace(spec, output=spec.output + "-killed")
    with pytest.raises(Killed):
        run_stage(broken, callbacks=[Dies(8)])
    run_stage(broken)
    expected, found = (load_file(Path(run.output) / "weights.safetensors") for run in (spec, broken))
    assert not differing(expected, found)


def test_teachers_store_all_views_and_plain_outputs_as_before(taught):
    group = zarr.open_group(Path(taught.layout.teacher("patterns", "wide", "smoke")) / "outputs.zarr", mode="r")
    assert group["views/logits"].shape == (3, 200, 5)
    assert group["views/features"].shape == (3, 200, 16)
    network = teacher_of(taught)
    _, _, task = build(student(taught))
    with torch.no_grad():
        output = network(task.data.inputs)
    torch.testing.assert_close(task.teacher["logits"], output.logits)
    torch.testing.assert_close(task.teacher["features"], output.features)


def test_without_augmentation_batches_and_stores_know_nothing_of_views(catalogue, taught):
    plain = augmented(catalogue, None)
    assert student(plain).settings_json() == student(catalogue).settings_json()
    assert student(plain).plan() != student(taught).plan()
    spec = student(plain, "cross_entropy")
    _, datamodule, task = build(spec)
    for batch in datamodule.train_dataloader():
        assert sorted(batch) == ["index", "input", "label"]
        assert torch.equal(batch["input"], task.data.inputs[batch["index"]])


def test_the_validation_split_is_not_augmented(taught):
    _, datamodule, task = build(student(taught))
    for batch in datamodule.val_dataloader():
        assert torch.equal(batch["input"], task.data.inputs[batch["index"]])
        assert torch.equal(batch["teacher_logits"], task.teacher["logits"][batch["index"]])


def test_other_views_than_the_teachers_are_refused(catalogue, taught):
    spec = student(augmented(catalogue, AUGMENTATION | {"views": 4, "seed": 9}))
    with pytest.raises(DataError, match=r"other views .views: 3 there, 4 here; seed: 0 there, 9 here.; train"):
        build(spec)


def test_a_teacher_without_views_is_refused(catalogue):
    run_stage(catalogue.teacher_spec("patterns", "wide", "smoke"))
    with pytest.raises(DataError, match="has no outputs on augmented views; train the teacher again"):
        build(student(augmented(catalogue, AUGMENTATION)))


@pytest.mark.parametrize("method", ["bd_kd", "deep_mutual_learning"])
def test_online_distillation_refuses_a_stored_teacher(taught, method):
    spec = student(taught, method)
    spec.inputs["teacher"] = taught.layout.teacher("patterns", "wide", "smoke")
    with pytest.raises(
        ConfigError, match=r"stages\.student\.inputs: .* stored outputs are those of a finished network"
    ):
        build(spec)
