"""Energy and variogram score, spread and skill, rank histogram."""

import math

import dask.array as da
import numpy as np
import pytest
import scoringrules
import torch
import xarray as xr
import xskillscore
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from relent.scores import ensemble
from relent.scores.crps import crps_ensemble


class TestEnergyScore:
    @pytest.mark.parametrize(("estimator", "theirs"), [("biased", "nrg"), ("fair", "fair")])
    def test_against_scoringrules(self, estimator, theirs, draw):
        members, truth = draw(7, 10, 3), draw(10, 3)
        expected = scoringrules.es_ensemble(
            truth.numpy(), members.movedim(0, 1).numpy(), estimator=theirs, backend="numpy"
        )
        ours = ensemble.energy_score(members, truth, estimator=estimator)
        np.testing.assert_allclose(ours, expected, atol=1e-12)

    def test_one_component_is_the_crps(self, draw):
        members, truth = draw(7, 10, 1), draw(10, 1)
        for estimator in ("biased", "almost_fair", "fair"):
            torch.testing.assert_close(
                ensemble.energy_score(members, truth, estimator=estimator),
                crps_ensemble(members[..., 0], truth[..., 0], estimator=estimator),
            )

    @settings(max_examples=25, deadline=None)
    @given(st.integers(2, 8), st.integers(1, 4), st.integers(0, 10**6))
    def test_invariances(self, count, size, seed):
        generator = torch.Generator().manual_seed(seed)
        members, truth, shift = (
            torch.randn(*shape, generator=generator, dtype=torch.float64)
            for shape in ((count, 5, size), (5, size), (size,))
        )
        rotation = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
        score = ensemble.energy_score(members, truth)
        for other in (
            ensemble.energy_score(members.flip(0), truth),
            ensemble.energy_score(members @ rotation + shift, truth @ rotation + shift),
            ensemble.energy_score(3 * members, 3 * truth) / 3,
        ):
            torch.testing.assert_close(other, score)

    def test_dimensions_and_dask(self, draw):
        members, truth = draw(4, 6, 5, 3), draw(6, 5, 3)
        expected = ensemble.energy_score(members, truth)
        for member_dim, event_dim in ((0, 1), (2, 0), (3, -2), (-1, 0)):
            member, event = member_dim % 4, event_dim % 4
            others = [axis for axis in range(4) if axis not in (member, event)]
            moved = members.permute(np.argsort([member, *others, event]).tolist()).contiguous()
            observed = truth.movedim(-1, event - (event > member)).contiguous()
            dims = {"member_dim": member_dim, "event_dim": event_dim}
            torch.testing.assert_close(ensemble.energy_score(moved, observed, **dims), expected)
            lazy = ensemble.energy_score(
                da.from_array(moved.numpy(), chunks=2), da.from_array(observed.numpy(), chunks=2), **dims
            )
            np.testing.assert_allclose(lazy.compute(), expected, atol=1e-14)
        with pytest.raises(ValueError, match="same dimension"):
            ensemble.energy_score(members, truth, member_dim=-1)

    def test_omit(self, draw):
        members, truth = draw(5, 2, 3), draw(2, 3)
        members[1, 0, 2] = math.nan
        kept = members[[0, 2, 3, 4]]
        score = ensemble.energy_score(members, truth, nan_policy="omit")
        torch.testing.assert_close(score[0], ensemble.energy_score(kept, truth)[0])
        torch.testing.assert_close(score[1], ensemble.energy_score(members, truth)[1])
        assert ensemble.energy_score(members, truth).isnan().tolist() == [True, False]

    def test_gradient(self, draw):
        inputs = (draw(4, 2, 3).requires_grad_(), draw(2, 3).requires_grad_())
        assert torch.autograd.gradcheck(ensemble.energy_score, inputs)
        same = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
        ensemble.energy_score(same, torch.zeros(2, dtype=torch.float64)).backward()
        assert same.grad.abs().sum() == 0


class TestVariogramScore:
    def test_against_scoringrules(self, draw):
        members, truth, weights = draw(7, 10, 4), draw(10, 4), draw(4, 4).exp()
        weights = weights + weights.T
        for p in (0.5, 1.0, 2.0):
            expected = scoringrules.vs_ensemble(
                truth.numpy(), members.movedim(0, 1).numpy(), p=p, estimator="nrg", backend="numpy"
            )
            np.testing.assert_allclose(ensemble.variogram_score(members, truth, p=p), expected, rtol=1e-10)
            pairs = (truth[:, :, None] - truth[:, None]).abs() ** p
            forecast = ((members[..., :, None] - members[..., None, :]).abs() ** p).mean(0)
            ours = ensemble.variogram_score(members, truth, p=p, weights=weights)
            torch.testing.assert_close(ours, (weights * (pairs - forecast) ** 2).sum((1, 2)))

    def test_blind_to_a_common_shift(self, draw):
        members, truth = draw(7, 10, 4), draw(10, 4)
        torch.testing.assert_close(
            ensemble.variogram_score(members + 3, truth), ensemble.variogram_score(members, truth)
        )

    def test_errors_and_gradient(self, draw):
        with pytest.raises(ValueError, match="p must be positive"):
            ensemble.variogram_score(draw(3, 2), draw(2), p=0)
        with pytest.raises(ValueError, match=r"weights must be \(2, 2\)"):
            ensemble.variogram_score(draw(3, 2), draw(2), weights=torch.ones(3, 3))
        inputs = (draw(4, 2, 3).requires_grad_(), draw(2, 3).requires_grad_())
        assert torch.autograd.gradcheck(ensemble.variogram_score, inputs)


class TestSpreadAndSkill:
    members = torch.tensor([[0.0, 1], [2, 1], [4, 4]], dtype=torch.float64)
    truth = torch.tensor([1.0, 3], dtype=torch.float64)

    def test_hand_computed(self):
        assert ensemble.spread(self.members).item() == pytest.approx(1.8708286934)
        assert ensemble.ensemble_mean_rmse(self.members, self.truth).item() == pytest.approx(1)
        assert ensemble.spread_skill_ratio(self.members, self.truth).item() == pytest.approx(2.1602468995)
        assert ensemble.bias(self.members, self.truth).item() == pytest.approx(0)
        assert ensemble.ensemble_mean_mae(self.members, self.truth).item() == pytest.approx(1)

    def test_root_after_all_averaging(self):
        """Two times with RMSE 1 and 3: √5, not 2."""
        members = torch.tensor([[[1.0, 1], [3, 3]]], dtype=torch.float64)
        rmse = ensemble.ensemble_mean_rmse(members, torch.zeros(2, 2, dtype=torch.float64))
        assert rmse.item() == pytest.approx(2.2360679775)

    @pytest.mark.parametrize("count", [2, 5, 20])
    def test_one_for_calibrated_ensembles_of_any_size(self, count, draw):
        ratio = ensemble.spread_skill_ratio(draw(count, 100_000), draw(100_000))
        assert ratio.item() == pytest.approx(1, abs=0.012)

    def test_against_xskillscore(self, draw):
        members, truth = draw(5, 60), draw(60)
        forecast, observed = (
            xr.DataArray(members.numpy(), dims=("member", "x")),
            xr.DataArray(truth.numpy(), dims="x"),
        )
        rmse = xskillscore.rmse(forecast.mean("member"), observed, dim="x")
        assert ensemble.ensemble_mean_rmse(members, truth).item() == pytest.approx(float(rmse))
        assert ensemble.ensemble_mean_mae(members, truth).item() == pytest.approx(
            float(xskillscore.mae(forecast.mean("member"), observed, dim="x"))
        )

    def test_weights_and_nan(self, draw):
        members, truth, weights = draw(5, 30), draw(30), draw(30).exp()
        truth[3], members[2, 7], members[1:, 8], members[:, 9] = (math.nan,) * 4
        ratio = ensemble.spread_skill_ratio(members, truth, weights, nan_policy="omit")
        expected, actual, mass = 0.0, 0.0, 0.0
        for k in range(30):
            present = members[:, k][~members[:, k].isnan()]
            if len(present) >= 2 and not truth[k].isnan():
                expected += weights[k] * present.var() * (len(present) + 1) / len(present)
                actual += weights[k] * (present.mean() - truth[k]) ** 2
                mass += weights[k]
        assert ratio.item() == pytest.approx(math.sqrt(expected / actual))
        assert ensemble.spread_skill_ratio(members, truth).isnan()
        assert ensemble.ensemble_variance(members, nan_policy="omit").isnan().nonzero().flatten().tolist() == [8, 9]
        assert ensemble.ensemble_mean(members, nan_policy="omit").isnan().nonzero().flatten().tolist() == [9]
        with pytest.raises(ValueError, match="two members"):
            ensemble.spread(members[:1])


class TestRankHistogram:
    def test_against_xskillscore(self, draw):
        members, truth = draw(6, 200), draw(200)
        counts = ensemble.rank_histogram(members, truth)
        theirs = xskillscore.rank_histogram(
            xr.DataArray(truth.numpy(), dims="x"), xr.DataArray(members.numpy(), dims=("member", "x"))
        )
        assert counts.tolist() == theirs.values.tolist()

    def test_ties(self):
        members, truth = torch.tensor([[0.0], [0.0], [1.0]]).expand(3, 3000), torch.zeros(3000)
        uniform = ensemble.rank_histogram(members, truth, ties="uniform")
        torch.testing.assert_close(uniform, torch.tensor([1000.0, 1000, 1000, 0]))
        generator = torch.Generator().manual_seed(0)
        random = ensemble.rank_histogram(members, truth, generator=generator)
        assert random.sum() == 3000
        assert random[3] == 0
        assert ((random[:3] - 1000).abs() < 5 * math.sqrt(3000 * 2 / 9)).all()

    def test_uniform_for_calibrated_and_not_otherwise(self, draw):
        members, truth = draw(9, 20_000), draw(20_000)
        assert ensemble.rank_histogram_test(ensemble.rank_histogram(members, truth)).p_value > 0.001
        assert ensemble.rank_histogram_test(ensemble.rank_histogram(0.8 * members, truth)).p_value < 1e-6

    def test_p_values_are_uniform_under_the_null(self, draw):
        """Kolmogorov–Smirnov over 400 calibrated experiments."""
        members, truth = draw(4, 400, 500), draw(400, 500)
        values = [
            ensemble.rank_histogram_test(ensemble.rank_histogram(members[:, k], truth[k])).p_value for k in range(400)
        ]
        assert stats.kstest(values, "uniform").pvalue > 1e-3

    def test_against_scipy(self):
        counts = torch.tensor([10.0, 12, 30, 7])
        ours, theirs = ensemble.rank_histogram_test(counts), stats.chisquare(counts.numpy())
        assert (ours.statistic, ours.p_value) == (pytest.approx(theirs.statistic), pytest.approx(theirs.pvalue))
        assert ours.degrees == 3

    def test_nan_weights_errors(self, draw):
        members, truth = draw(4, 10), draw(10)
        members[1, 2], truth[5] = math.nan, math.nan
        assert ensemble.rank_histogram(members, truth).isnan().all()
        assert ensemble.rank_histogram(members, truth, nan_policy="omit").sum() == 8
        weights = torch.arange(10, dtype=torch.float64)
        assert ensemble.rank_histogram(members, truth, weights, nan_policy="omit").sum() == 45 - 2 - 5
        with pytest.raises(ValueError, match="ties must be"):
            ensemble.rank_histogram(members, truth, ties="first")
        with pytest.raises(ValueError, match="five cases"):
            ensemble.rank_histogram_test(torch.ones(4))


@pytest.mark.parametrize("policy", ["propagate", "omit"])
def test_variogram_score_of_one_component_keeps_its_gaps(policy):
    members, truth = torch.zeros(3, 2, 1, dtype=torch.float64), torch.tensor([[math.nan], [1.0]], dtype=torch.float64)
    assert ensemble.variogram_score(members, truth, nan_policy=policy).isnan().tolist() == [True, False]
    members[:, 1] = math.nan
    assert ensemble.variogram_score(members, truth, nan_policy=policy).isnan().all()
