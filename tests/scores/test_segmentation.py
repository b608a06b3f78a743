import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist, directed_hausdorff
from sklearn.metrics import f1_score, jaccard_score
from torchmetrics.functional.segmentation import hausdorff_distance as torchmetrics_hausdorff

from relent.scores.segmentation import (
    average_surface_distance,
    class_masks,
    dice,
    hausdorff_distance,
    intersection_over_union,
)

two_masks = hnp.arrays(np.bool_, st.tuples(st.just(2), st.integers(1, 7), st.integers(1, 7)))


def surface_points(mask):
    """Pixels of the mask with a 4-neighbour outside, by a plain loop."""
    padded = np.pad(mask, 1)
    inside = [
        (i, j)
        for i, j in np.argwhere(mask)
        if not (padded[i, j + 1] and padded[i + 2, j + 1] and padded[i + 1, j] and padded[i + 1, j + 2])
    ]
    return np.array(inside, dtype=float).reshape(-1, 2)


@settings(max_examples=50, deadline=None)
@given(two_masks, st.sampled_from([1, 2]))
def test_overlap_against_scikit_learn(masks, spatial_dims):
    first, second = masks
    if spatial_dims == 1:
        first, second = first.reshape(1, -1), second.reshape(1, -1)
    flat = (second.ravel(), first.ravel())
    expected = f1_score(*flat, zero_division=1.0), jaccard_score(*flat, zero_division=1.0)
    ours = dice(first, second, spatial_dims), intersection_over_union(first, second, spatial_dims)
    np.testing.assert_allclose([x.item() for x in ours], expected, atol=1e-12)
    np.testing.assert_allclose(ours[1], ours[0] / (2 - ours[0]), atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(two_masks, st.sampled_from([(1.0, 1.0), (0.5, 2.0)]))
def test_surface_distances_against_all_pairs(masks, spacing):
    first, second = masks
    found = hausdorff_distance(first, second, spacing=spacing).item()
    if first.any() != second.any():
        assert found == math.inf
        return
    if not first.any():
        assert found == 0.0
        return
    a, b = (surface_points(m) * spacing for m in masks)
    expected = max(directed_hausdorff(a, b)[0], directed_hausdorff(b, a)[0])
    assert found == pytest.approx(expected, abs=1e-12)
    there, back = cdist(a, b).min(1), cdist(b, a).min(1)
    robust = max(np.percentile(there, 95), np.percentile(back, 95))
    assert hausdorff_distance(first, second, 95, spacing).item() == pytest.approx(robust, abs=1e-12)
    mean = np.concatenate((there, back)).mean()
    assert average_surface_distance(first, second, spacing).item() == pytest.approx(mean, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(two_masks)
def test_symmetry_and_identity(masks):
    first, second = masks
    for score in (dice, intersection_over_union, hausdorff_distance, average_surface_distance):
        assert score(first, second).item() == pytest.approx(score(second, first).item(), abs=1e-12)
        assert score(first, first) == (1 if score in (dice, intersection_over_union) else 0)
        np.testing.assert_allclose(score(masks, masks[::-1]), [score(first, second)] * 2)
    full, robust = hausdorff_distance(first, second), hausdorff_distance(first, second, 95)
    assert robust <= full


def test_hausdorff_against_torchmetrics():
    rng = np.random.default_rng(0)
    first, second = (torch.tensor(rng.random((3, 1, 12, 12)) < 0.3).long() for _ in range(2))
    theirs = torchmetrics_hausdorff(first, second, num_classes=1, include_background=True)
    ours = hausdorff_distance(first, second).amax(-1)
    np.testing.assert_allclose(ours, theirs.reshape(-1), atol=1e-6)


def test_shifted_squares_and_volumes():
    square = torch.zeros(20, 20)
    square[4:8, 4:8] = 1
    moved = square.roll((3, 4), (0, 1))
    assert hausdorff_distance(square, moved).item() == pytest.approx(5.0)
    assert hausdorff_distance(square, moved, spacing=(2.0, 2.0)).item() == pytest.approx(10.0)
    assert dice(square, moved) == 0
    assert dice(square, square.roll(2, 0)).item() == pytest.approx(0.5)
    volume = torch.zeros(2, 6, 6, 6, dtype=torch.bool)
    volume[0, 1:3, 1:3, 1:3] = True
    volume[1, 1:3, 1:3, 4:6] = True
    assert hausdorff_distance(volume[0], volume[1], spatial_dims=3, spacing=(1, 1, 0.5)).item() == pytest.approx(1.5)
    assert dice(volume, volume, spatial_dims=3).shape == (2,)


def test_a_hole_has_a_surface():
    disc, ring = torch.ones(9, 9), torch.ones(9, 9)
    ring[4, 4] = 0
    assert hausdorff_distance(disc, ring).item() == pytest.approx(3.0)  # from the hole's rim to the outer edge


def test_percentile_discards_an_outlier():
    mask, speck = torch.zeros(40, 40), torch.zeros(40, 40)
    mask[:20, :20] = speck[:20, :20] = 1
    speck[39, 39] = 1
    assert hausdorff_distance(mask, speck).item() > 25
    assert hausdorff_distance(mask, speck, 95) == 0


def test_empty_masks():
    none, some = torch.zeros(4, 4), torch.eye(4)
    assert dice(none, none) == 1
    assert dice(none, none, empty=math.nan).isnan()
    assert intersection_over_union(none, none, empty=math.nan).isnan()
    assert dice(none, some) == intersection_over_union(some, none) == 0
    assert hausdorff_distance(none, none) == average_surface_distance(none, none) == 0
    assert hausdorff_distance(none, some) == average_surface_distance(some, none) == math.inf


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_class_masks(spatial_dims):
    labels = torch.randint(0, 3, (2, 4, 5, 6)[: spatial_dims + 1], generator=torch.Generator().manual_seed(0))
    masks = class_masks(labels, 3, spatial_dims)
    assert masks.shape == (2, 3, *labels.shape[1:])
    assert torch.equal(masks.int().argmax(1), labels)
    assert dice(masks, masks, spatial_dims).shape == (2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dice(torch.zeros(2, 2), torch.zeros(2, 3)), ValueError, "differ in shape"),
        (lambda: dice(torch.zeros(2), torch.zeros(2)), ValueError, "spatial dimension"),
        (lambda: dice(torch.zeros(0, 2), torch.zeros(0, 2)), ValueError, "with pixels"),
        (lambda: dice(torch.full((2, 2), 0.5), torch.zeros(2, 2)), ValueError, "prediction must be boolean"),
        (lambda: dice(torch.zeros(2, 2), torch.full((2, 2), 2)), ValueError, "target must be boolean"),
        (lambda: hausdorff_distance(torch.eye(2), torch.eye(2), percentile=0), ValueError, "percentile"),
        (lambda: hausdorff_distance(torch.eye(2), torch.eye(2), spacing=(1.0,)), ValueError, "spacing"),
        (lambda: average_surface_distance(torch.eye(2), torch.eye(2), spacing=(1.0, 0.0)), ValueError, "spacing"),
        (lambda: class_masks(torch.full((2, 2), 3), 3), ValueError, "labels"),
        (lambda: class_masks(torch.zeros(2, 2), 3), TypeError, "integers"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
