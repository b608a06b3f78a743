import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from relent.scores.calibration import (
    classwise_calibration_error,
    expected_calibration_error,
    fit_temperature,
    maximum_calibration_error,
    reliability_diagram,
    squared_calibration_error,
    top_label,
)
from relent.scores.classification import negative_log_likelihood

pairs = st.lists(
    st.tuples(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.2, 0.5, 1.0])), st.booleans()), min_size=1, max_size=40
)


def calibrated(n, seed, low=0.0, high=1.0):
    generator = torch.Generator().manual_seed(seed)
    probs = low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)
    return probs, torch.rand(n, generator=generator, dtype=torch.float64) < probs


def multiclass(n=4000, classes=4, temperature=1.0, seed=0):
    """Logits whose softmax at `temperature` is the distribution that the labels are drawn from."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator).squeeze(-1)
    return logits, labels


def test_by_hand():
    confidence, right = [0.95, 0.85, 0.65, 0.55], [1, 0, 1, 0]
    assert expected_calibration_error(confidence, right, 15).item() == pytest.approx(0.45)
    assert maximum_calibration_error(confidence, right, 15).item() == pytest.approx(0.85)
    one_bin = expected_calibration_error(confidence, right, 1)
    assert one_bin.item() == pytest.approx(0.25)


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_against_torchmetrics(bins):
    probs, event = calibrated(500, 0)
    for norm, ours in (("l1", expected_calibration_error), ("max", maximum_calibration_error)):
        theirs = binary_calibration_error(probs, event.long(), n_bins=bins, norm=norm)
        assert ours(probs, event, bins).item() == pytest.approx(theirs.item(), abs=1e-6)
    plug_in = squared_calibration_error(probs, event, bins, debiased=False)
    theirs = binary_calibration_error(probs, event.long(), n_bins=bins, norm="l2")
    assert plug_in.sqrt().item() == pytest.approx(theirs.item(), abs=1e-6)
    logits, labels = multiclass(500)
    theirs = multiclass_calibration_error(logits.softmax(-1), labels, 4, n_bins=bins)
    assert expected_calibration_error(*top_label(logits, labels), bins).item() == pytest.approx(theirs.item(), abs=1e-6)


@pytest.mark.parametrize(("binning", "strategy"), [("width", "uniform"), ("mass", "quantile")])
def test_reliability_against_scikit_learn(binning, strategy):
    probs, event = calibrated(1000, 1)
    data = reliability_diagram(probs, event, 10, binning)
    frequency, confidence = calibration_curve(event, probs, n_bins=10, strategy=strategy)
    # quantile edges are interpolated there, so a bin may differ by one of its hundred items
    tolerance = 1e-12 if binning == "width" else 0.02
    np.testing.assert_allclose(data.frequency, frequency, atol=tolerance)
    np.testing.assert_allclose(data.confidence, confidence, atol=tolerance)
    if binning == "mass":
        assert (data.counts == 100).all()


def test_bins_are_closed_on_the_right_and_empty_ones_are_nan():
    data = reliability_diagram([0.0, 0.5, 0.75, 1.0], [0, 1, 1, 1], 4)
    assert data.counts.tolist() == [1, 1, 1, 1]
    data = reliability_diagram([0.1, 0.2], [0, 1], 2)
    assert data.counts.tolist() == [2, 0]
    assert data.confidence[1].isnan()
    assert data.frequency[1].isnan()


@settings(max_examples=40, deadline=None)
@given(pairs, st.integers(1, 20), st.sampled_from(["width", "mass"]), st.randoms(use_true_random=False))
def test_identities(items, bins, binning, random):
    confidence, outcome = zip(*items)
    data = reliability_diagram(confidence, outcome, bins, binning)
    assert data.counts.sum() == len(items)
    assert (data.edges.diff() > 0).all()
    ece = expected_calibration_error(confidence, outcome, bins, binning)
    mce = maximum_calibration_error(confidence, outcome, bins, binning)
    squared = squared_calibration_error(confidence, outcome, bins, binning, debiased=False)
    assert 0 <= ece <= mce + 1e-12
    assert mce <= 1 + 1e-12
    assert ece**2 <= squared + 1e-12  # Jensen
    random.shuffle(items)
    shuffled = expected_calibration_error(*zip(*items), bins, binning)
    assert shuffled.item() == pytest.approx(ece.item(), abs=1e-12)
    gap = abs(np.mean(confidence) - np.mean(outcome))
    assert ece >= gap - 1e-12  # the overall gap is the coarsest binning


def test_equal_confidences_are_not_parted():
    data = reliability_diagram([0.3] * 6 + [0.8] * 2, [1, 0, 0, 1, 0, 0, 1, 1], 4, "mass")
    assert sorted(data.counts[data.counts > 0].tolist()) == [2, 6]


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_bias_of_the_plug_in_and_none_of_the_debiased(binning):
    runs, n, bins = 300, 1000, 15
    scores = {"ece": [], "plug-in": [], "debiased": []}
    for seed in range(runs):
        probs, event = calibrated(n, seed, 0.6, 0.8)
        scores["ece"].append(expected_calibration_error(probs, event, bins, binning).item())
        scores["plug-in"].append(squared_calibration_error(probs, event, bins, binning, debiased=False).item())
        scores["debiased"].append(squared_calibration_error(probs, event, bins, binning).item())
    mean = {name: np.mean(values) for name, values in scores.items()}
    error = {name: np.std(values) / math.sqrt(runs) for name, values in scores.items()}
    occupied = 15 if binning == "mass" else 3
    assert mean["plug-in"] > 20 * error["plug-in"]
    assert abs(mean["debiased"]) < 4 * error["debiased"]
    if binning == "mass":  # the docstring's formula
        assert mean["ece"] == pytest.approx(math.sqrt(2 * occupied * 0.207 / (math.pi * n)), rel=0.05)
        assert mean["ece"] == pytest.approx(0.04, abs=0.006)


def test_debiased_finds_the_true_squared_error():
    runs, gap = 400, 0.1
    values = []
    for seed in range(runs):
        probs, _ = calibrated(200, seed, 0.2, 0.8)
        event = torch.rand(200, generator=torch.Generator().manual_seed(10_000 + seed)) < probs + gap
        values.append(squared_calibration_error(probs, event, 10).item())
    assert abs(np.mean(values) - gap**2) < 4 * np.std(values) / math.sqrt(runs)


def test_debiased_is_the_mean_over_pairs():
    probs, event = calibrated(9, 3)
    residual = (event.double() - probs).numpy()
    pairs_of_one_bin = [residual[i] * residual[j] for i in range(9) for j in range(9) if i != j]
    assert squared_calibration_error(probs, event, 1).item() == pytest.approx(np.mean(pairs_of_one_bin))


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_certain_predictions(probability):
    event = [bool(probability)] * 4
    for binning in ("width", "mass"):
        assert expected_calibration_error([probability] * 4, event, 5, binning) == 0
        assert expected_calibration_error([1 - probability] * 4, event, 5, binning) == 1


def test_classwise_is_the_mean_over_classes():
    logits, labels = multiclass(300)
    probs = logits.softmax(-1)
    expected = np.mean([expected_calibration_error(probs[:, c], labels == c, 10).item() for c in range(4)])
    assert classwise_calibration_error(logits, labels, 10).item() == pytest.approx(expected)
    one = classwise_calibration_error(torch.zeros(5, 1), torch.zeros(5, dtype=torch.long))
    assert one == 0


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_temperature_is_recovered(temperature):
    logits, labels = multiclass(40_000, temperature=temperature)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(temperature, rel=0.03)
    before = expected_calibration_error(*top_label(logits, labels))
    after = expected_calibration_error(*top_label(logits / found, labels))
    assert after < 0.01
    assert temperature == 1.0 or before > 3 * after


def test_temperature_is_the_minimum_of_the_likelihood():
    logits, labels = multiclass(300, temperature=1.7)
    best = fit_temperature(logits, labels)
    at = [negative_log_likelihood(logits / (best * factor), labels).item() for factor in (0.999, 1.0, 1.001)]
    assert at[1] < min(at[0], at[2])
    assert fit_temperature(logits * 5, labels) == pytest.approx(5 * best, rel=1e-8)
    assert fit_temperature(logits + 7, labels) == pytest.approx(best, rel=1e-8)


def test_temperature_at_its_bounds():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    assert fit_temperature(logits, torch.tensor([0, 1])) == 0.01
    assert fit_temperature(logits, torch.tensor([1, 0])) == 100.0
    assert fit_temperature(logits, torch.tensor([1, 0]), bounds=(0.5, 3.0)) == 3.0


def test_temperature_with_impossible_classes():
    logits, labels = multiclass(2000, classes=3, temperature=2.0)
    padded = torch.cat((logits, torch.full((2000, 1), -math.inf)), dim=-1)
    assert fit_temperature(padded, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: expected_calibration_error([], []), "non-empty"),
        (lambda: expected_calibration_error([0.5], [1, 0]), "non-empty"),
        (lambda: expected_calibration_error([1.2], [1]), "confidence"),
        (lambda: expected_calibration_error([math.nan], [1]), "confidence"),
        (lambda: expected_calibration_error([0.5], [0.5]), "outcome"),
        (lambda: expected_calibration_error([0.5], [1], bins=0), "bin"),
        (lambda: expected_calibration_error([0.5], [1], binning="area"), "binning"),
        (lambda: squared_calibration_error([0.1, 0.9], [0, 1], 2), "two items"),
        (lambda: fit_temperature(torch.zeros(1, 2), torch.tensor([0]), (2.0, 1.0)), "bounds"),
        (lambda: fit_temperature(torch.tensor([[0.0, -math.inf]]), torch.tensor([1])), "probability 0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
