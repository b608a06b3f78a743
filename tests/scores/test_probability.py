"""Brier score, its decomposition, reliability curve, ROC."""

import math

import numpy as np
import pytest
import scoringrules
import torch
import xarray as xr
import xskillscore
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from relent.scores import probability


def events(seed: int, count: int = 300, levels: int | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Probabilities (on a grid of `levels` if given), outcomes that follow them loosely, weights."""
    rng = np.random.default_rng(seed)
    p = rng.uniform(size=count) if levels is None else rng.integers(0, levels + 1, size=count) / levels
    o = (rng.uniform(size=count) < 0.2 + 0.6 * p).astype(float)
    return torch.from_numpy(p), torch.from_numpy(o), torch.from_numpy(rng.uniform(0.1, 2, size=count))


class TestBrier:
    def test_against_peers(self):
        p, o, _ = events(0)
        score = probability.brier_score(p, o)
        np.testing.assert_allclose(score, scoringrules.brier_score(o.numpy(), p.numpy(), backend="numpy"))
        assert score.mean().item() == pytest.approx(metrics.brier_score_loss(o, p))
        torch.testing.assert_close(probability.brier_score(p, o.bool()), score)

    def test_ensemble_hand_computed(self):
        members, truth = torch.tensor([[0.0, 1], [2, 1], [4, 4]], dtype=torch.float64), torch.tensor([1.0, 3]).double()
        biased = probability.brier_score_ensemble(members, truth, threshold=1.5, fair=False)
        fair = probability.brier_score_ensemble(members, truth, threshold=1.5)
        assert (biased.mean().item(), fair.mean().item()) == (pytest.approx(4 / 9), pytest.approx(1 / 3))

    def test_ensemble_against_xskillscore(self, draw):
        members, truth = draw(6, 40), draw(40)
        forecast = xr.DataArray(members.numpy() > 0.3, dims=("member", "x"))
        observed = xr.DataArray(truth.numpy() > 0.3, dims="x")
        for fair in (True, False):
            theirs = xskillscore.brier_score(observed, forecast, member_dim="member", fair=fair, dim=[])
            ours = probability.brier_score_ensemble(members, truth, threshold=0.3, fair=fair)
            np.testing.assert_allclose(ours, theirs, atol=1e-12)

    @pytest.mark.parametrize("count", [2, 5, 20])
    def test_fair_expectation(self, count, draw):
        """p(1 − p) for calibrated members, whatever M."""
        score = probability.brier_score_ensemble(draw(count, 200_000), draw(200_000), threshold=0.0)
        assert abs(score.mean() - 0.25) < 5 * score.std() / math.sqrt(200_000)

    def test_nan(self, draw):
        members, truth = draw(4, 5), draw(5)
        members[0, 1], members[1:, 2], truth[3] = math.nan, math.nan, math.nan
        assert probability.brier_score_ensemble(members, truth, threshold=0.0).isnan().tolist() == [0, 1, 1, 1, 0]
        omitted = probability.brier_score_ensemble(members, truth, threshold=0.0, nan_policy="omit")
        assert omitted.isnan().tolist() == [0, 0, 1, 1, 0]
        expected = probability.brier_score_ensemble(members[1:, 1], truth[1], threshold=0.0)
        torch.testing.assert_close(omitted[1], expected)
        with pytest.raises(ValueError, match="two members"):
            probability.brier_score_ensemble(members[:1], truth, threshold=0.0)

    def test_skill(self):
        _, o, w = events(3)
        climate = o.mean()
        assert probability.brier_skill_score(climate.expand(300), o, climate).item() == pytest.approx(0)
        assert probability.brier_skill_score(o, o, climate, w).item() == 1


class TestDecomposition:
    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 10**6), st.integers(1, 25), st.booleans())
    def test_adds_up_exactly(self, seed, bins, weighted):
        p, o, w = events(seed)
        w = w if weighted else torch.ones_like(w)
        parts = probability.brier_decomposition(p, o, w, bins=bins)
        assert parts.brier.item() == pytest.approx(np.average((p - o) ** 2, weights=w), abs=1e-12)
        three = parts.reliability - parts.resolution + parts.uncertainty
        total = three + parts.within_variance - parts.within_covariance
        torch.testing.assert_close(total, parts.brier, rtol=0, atol=1e-12)
        curve = probability.reliability_curve(p, o, w, bins=bins)
        bin_of = (p * bins).long().clamp(max=bins - 1)
        rounded = (w * (curve.probability[bin_of] - o).square()).sum() / w.sum()
        torch.testing.assert_close(three, rounded, rtol=0, atol=1e-12)
        assert min(parts.reliability, parts.resolution, parts.uncertainty, parts.within_variance) >= 0

    def test_within_bin_terms_vanish_for_ensemble_probabilities(self):
        p, o, _ = events(5, levels=8)
        edges = torch.cat([torch.zeros(1), (torch.arange(8) + 0.5) / 8, torch.ones(1)]).double()
        parts = probability.brier_decomposition(p, o, bins=edges)
        assert abs(parts.within_variance) < 1e-12
        assert abs(parts.within_covariance) < 1e-12

    def test_reliability_curve(self):
        p, o = torch.tensor([0.0, 0.05, 0.5, 1.0]), torch.tensor([0.0, 1, 1, 1])
        curve = probability.reliability_curve(p, o, bins=2)
        assert curve.weight.tolist() == [2, 2]
        assert curve.frequency.tolist() == [0.5, 1]
        torch.testing.assert_close(curve.probability, torch.tensor([0.025, 0.75]).double(), rtol=0, atol=1e-8)
        assert probability.reliability_curve(p[:2], o[:2], bins=2).frequency.isnan().tolist() == [False, True]

    @pytest.mark.parametrize(
        ("p", "o", "options", "message"),
        [
            ([1.5], [1.0], {}, "logits or percentages"),
            ([0.5], [2.0], {}, "outcome must be 0 or 1"),
            ([0.5], [1.0, 0.0], {}, "differ in shape"),
            ([math.nan], [1.0], {}, "1 NaN of 1"),
            ([math.nan], [1.0], {"nan_policy": "propagate"}, "NaN has no bin"),
            ([0.5], [1.0], {"bins": 0}, "bins must be positive"),
            ([0.5], [1.0], {"bins": torch.tensor([0.0, 0.5])}, "edges"),
        ],
    )
    def test_errors(self, p, o, options, message):
        with pytest.raises(ValueError, match=message):
            probability.reliability_curve(torch.tensor(p), torch.tensor(o), **options)

    def test_omit(self):
        p, o, w = events(7)
        q = torch.cat([p, torch.tensor([math.nan, 0.3])])
        r = torch.cat([o, torch.tensor([1.0, math.nan])])
        v = torch.cat([w, torch.ones(2)])
        for ours, expected in zip(
            probability.brier_decomposition(q, r, v, nan_policy="omit"), probability.brier_decomposition(p, o, w)
        ):
            torch.testing.assert_close(ours, expected)


class TestRoc:
    @pytest.mark.parametrize("levels", [None, 10])
    def test_against_sklearn(self, levels):
        p, o, w = events(11, levels=levels)
        auc = probability.roc_auc(p, o, w)
        assert auc.item() == pytest.approx(metrics.roc_auc_score(o, p, sample_weight=w), abs=1e-12)
        alarms, hits, thresholds = metrics.roc_curve(o, p, sample_weight=w, drop_intermediate=False)
        curve = probability.roc_curve(p.numpy(), o.numpy(), w.numpy())
        for ours, theirs in zip(curve, (alarms, hits, thresholds)):
            np.testing.assert_allclose(ours, theirs, atol=1e-12)

    def test_is_the_probability_of_the_right_order(self):
        p, o, _ = events(12, levels=6)
        positive, negative = p[o == 1], p[o == 0]
        order = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative).double()
        torch.testing.assert_close(probability.roc_auc(p, o), order.mean())

    def test_needs_both_kinds(self):
        with pytest.raises(ValueError, match="both kinds"):
            probability.roc_auc(torch.rand(5), torch.ones(5))
