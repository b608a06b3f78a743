"""CRPS: hand-computed values, closed forms by quadrature, peers, invariances, expectations, gradients, NaN, devices."""

import math

import dask.array as da
import numpy as np
import properscoring
import pytest
import scoringrules
import torch
import xskillscore
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from relent.scores import crps
from relent.scores._sorting import odd_even_merge_runs, sort_members
from relent.scores.crps import crps_ensemble, crps_threshold_weighted

ESTIMATORS = ("biased", "almost_fair", "fair")
ALPHA = {"biased": 0.0, "almost_fair": 0.95, "fair": 1.0}

HAND_COMPUTED = [
    ((0.0, 1.0), 0.5, (0.25, 0.0125, 0.0)),
    ((0.0, 1.0), 2.0, (1.25, 1.0125, 1.0)),
    ((0.0, 1.0, 3.0), 2.0, (2 / 3, 0.35, 1 / 3)),
    ((0.0, 1.0, 3.0, 6.0), 2.5, (0.75, 0.3541666667, 1 / 3)),
    ((1.0, 1.0, 1.0), 2.0, (1.0, 1.0, 1.0)),
    ((-5.0, 9.0), 0.5, (3.5, 0.175, 0.0)),  # fair is blind to two members around the truth
]

ensembles = st.integers(2, 24).flatmap(
    lambda count: st.tuples(
        st.lists(st.floats(-50, 50, width=32), min_size=count, max_size=count), st.floats(-50, 50, width=32)
    )
)


def tensors(case):
    members, truth = case
    return torch.tensor(members, dtype=torch.float64), torch.tensor(truth, dtype=torch.float64)


@pytest.mark.parametrize(("members", "truth", "expected"), HAND_COMPUTED)
def test_hand_computed(members, truth, expected):
    scores = [crps_ensemble(*tensors((members, truth)), estimator=name).item() for name in ESTIMATORS]
    assert scores == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("count", [2, 3, 8, 12, 13, 50, 200])
def test_sorted_form_equals_pairs(estimator, count, draw, reference_crps):
    members, truth = draw(count, 5, 7), draw(5, 7)
    expected = reference_crps(members, truth, ALPHA[estimator])
    torch.testing.assert_close(crps_ensemble(members, truth, estimator=estimator), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", range(1, 34))
def test_sorting_network_sorts(count):
    """By the 0–1 principle (Knuth 5.3.4, theorem Z) up to 12 members, by random columns beyond; NaN fills its
    column.
    """
    runs = odd_even_merge_runs(count)
    columns = (np.arange(2**count)[None] >> np.arange(count)[:, None] & 1) if count <= 12 else None
    values = (columns if columns is not None else np.random.default_rng(count).normal(size=(count, 500))).astype(float)
    rows = values.copy()
    for start, groups, length, distance in runs:
        for row in (start + 2 * length * g + k for g in range(groups) for k in range(length)):
            pair = rows[[row, row + distance]]
            rows[row], rows[row + distance] = pair.min(0), pair.max(0)
    np.testing.assert_array_equal(rows, np.sort(values, axis=0))
    np.testing.assert_array_equal(sort_members(values), rows)


@settings(max_examples=40, deadline=None)
@given(ensembles, st.floats(-20, 20), st.floats(0.1, 10), st.randoms(use_true_random=False))
def test_invariances(case, shift, scale, random):
    members, truth = tensors(case)
    order = list(range(len(members)))
    random.shuffle(order)
    for estimator in ESTIMATORS:
        score = crps_ensemble(members, truth, estimator=estimator)
        permuted = crps_ensemble(members[order], truth, estimator=estimator)
        shifted = crps_ensemble(members + shift, truth + shift, estimator=estimator)
        scaled = crps_ensemble(members * scale, truth * scale, estimator=estimator)
        for other, expected in ((permuted, score), (shifted, score), (scaled, scale * score)):
            torch.testing.assert_close(other, expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(ensembles, st.floats(0.01, 1))
def test_estimators_are_one_family(case, alpha):
    members, truth = tensors(case)
    biased, fair = (crps_ensemble(members, truth, estimator=name) for name in ("biased", "fair"))
    almost = crps_ensemble(members, truth, estimator="almost_fair", alpha=alpha)
    torch.testing.assert_close(almost, alpha * fair + (1 - alpha) * biased, rtol=1e-10, atol=1e-10)
    distance = (members[:, None] - members).abs().sum() / (len(members) * (len(members) - 1))
    torch.testing.assert_close(biased - fair, distance / (2 * len(members)), rtol=1e-10, atol=1e-10)
    assert biased >= -1e-10


@settings(max_examples=25, deadline=None)
@given(ensembles)
def test_biased_is_the_integral_of_the_step_function(case):
    members, truth = tensors(case)
    knots = torch.cat([members, truth[None]]).sort().values
    cdf = (members[:, None] <= knots[:-1]).double().mean(0)
    expected = ((cdf - (knots[:-1] >= truth).double()).square() * knots.diff()).sum()
    torch.testing.assert_close(crps_ensemble(members, truth, estimator="biased"), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("count", [2, 4, 10, 50])
def test_expectation_over_calibrated_ensembles(count, draw):
    """Fair: 1/√π whatever M. Biased: (1 + 1/M)/√π. Five standard errors of the simulation."""
    members, truth = draw(count, 200_000), draw(200_000)
    for estimator, expected in (("fair", 1.0), ("biased", 1 + 1 / count)):
        scores = crps_ensemble(members, truth, estimator=estimator)
        error = scores.std() / math.sqrt(len(scores))
        assert abs(scores.mean() - expected / math.sqrt(math.pi)) < 5 * error


class TestPeers:
    def test_scoringrules(self, draw):
        members, truth = draw(11, 40).numpy(), draw(40).numpy()
        fair = scoringrules.crps_ensemble(truth, members.T, estimator="fair", backend="numpy")
        biased = scoringrules.crps_ensemble(truth, members.T, estimator="nrg", backend="numpy")
        np.testing.assert_allclose(crps_ensemble(members, truth), fair, atol=1e-12)
        np.testing.assert_allclose(crps_ensemble(members, truth, estimator="biased"), biased, atol=1e-12)
        # "pwm" is the fair estimator and "qd" the biased one, though neither says so in its name.
        pwm = scoringrules.crps_ensemble(truth, members.T, estimator="pwm", backend="numpy")
        default = scoringrules.crps_ensemble(truth, members.T, backend="numpy")
        np.testing.assert_allclose(pwm, fair, atol=1e-12)
        np.testing.assert_allclose(default, biased, atol=1e-12)

    def test_properscoring_and_xskillscore_are_biased(self, draw):
        """Both give the biased estimator, without a choice of name: incomparable between ensembles of different
        size.
        """
        import xarray as xr

        members, truth = draw(11, 40).numpy(), draw(40).numpy()
        ours = crps_ensemble(members, truth, estimator="biased")
        np.testing.assert_allclose(properscoring.crps_ensemble(truth, members.T), ours, atol=1e-12)
        theirs = xskillscore.crps_ensemble(
            xr.DataArray(truth, dims="point"), xr.DataArray(members, dims=("member", "point")), dim=[]
        )
        np.testing.assert_allclose(theirs, ours, atol=1e-12)

    def test_threshold_weighted(self, draw):
        members, truth = draw(9, 30), draw(30)
        for a, b, chaining in (
            (0.3, math.inf, crps.chain_above(0.3)),
            (-math.inf, 0.3, crps.chain_below(0.3)),
            (-0.5, 0.5, crps.chain_between(-0.5, 0.5)),
        ):
            ours = crps_threshold_weighted(members, truth, chaining, estimator="biased")
            theirs = scoringrules.twcrps_ensemble(
                truth.numpy(), members.T.numpy(), a=a, b=b, estimator="nrg", backend="numpy"
            )
            np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_threshold_weights_partition_the_score(draw):
    members, truth = draw(9, 30), draw(30)
    parts = [crps_threshold_weighted(members, truth, chain(0.2)) for chain in (crps.chain_above, crps.chain_below)]
    torch.testing.assert_close(parts[0] + parts[1], crps_ensemble(members, truth))


def by_quadrature(law, truth: float) -> float:
    below = integrate.quad(lambda x: law.cdf(x) ** 2, -np.inf, truth, limit=200)[0]
    return below + integrate.quad(lambda x: law.sf(x) ** 2, truth, np.inf, limit=200)[0]


class TestClosedForms:
    @pytest.mark.parametrize(
        ("mean", "std", "truth", "expected"),
        [(0, 1, 0, 0.2336949773), (0, 1, 1, 0.6024413576), (1, 2, -1, 1.2048827153)],
    )
    def test_gaussian_values(self, mean, std, truth, expected):
        score = crps.crps_gaussian(*(torch.tensor(float(v), dtype=torch.float64) for v in (truth, mean, std)))
        assert score.item() == pytest.approx(expected, abs=1e-10)

    @pytest.mark.parametrize("truth", [-3.0, 0.2, 1.7, 6.0])
    def test_against_quadrature(self, truth):
        y, mean, std = (torch.tensor(v, dtype=torch.float64) for v in (truth, 0.5, 1.3))
        upper = mean + std
        for ours, law in (
            (crps.crps_gaussian(y, mean, std), stats.norm(0.5, 1.3)),
            (crps.crps_logistic(y, mean, std), stats.logistic(0.5, 1.3)),
            (crps.crps_uniform(y, mean, upper), stats.uniform(0.5, 1.3)),
        ):
            assert ours.item() == pytest.approx(by_quadrature(law, truth), abs=1e-7)

    def test_mixture_against_quadrature(self):
        mean, std, weight = np.array([-1.0, 0.5, 3.0]), np.array([0.5, 1.0, 2.0]), np.array([1.0, 2.0, 1.0])

        class Mixture:
            def cdf(self, x):
                return (weight / 4 * stats.norm.cdf((x - mean) / std)).sum()

            def sf(self, x):
                return (weight / 4 * stats.norm.sf((x - mean) / std)).sum()

        for truth in (-2.0, 0.7, 5.0):
            ours = crps.crps_gaussian_mixture(np.array(truth), mean, std, weight)
            assert float(ours) == pytest.approx(by_quadrature(Mixture(), truth), abs=1e-7)

    def test_mixture_limits(self, draw):
        truth, mean = draw(6), draw(6)
        std = draw(6).exp()
        one = crps.crps_gaussian_mixture(truth, mean[None], std[None], torch.ones(1, 6, dtype=torch.float64))
        torch.testing.assert_close(one, crps.crps_gaussian(truth, mean, std))
        members = draw(7, 6)
        narrow = torch.full_like(members, 1e-9)
        spikes = crps.crps_gaussian_mixture(truth, members, narrow, torch.ones_like(members))
        torch.testing.assert_close(spikes, crps_ensemble(members, truth, estimator="biased"), rtol=0, atol=1e-8)

    def test_invalid_scale_is_nan(self):
        truth = torch.zeros(3)
        assert crps.crps_gaussian(truth, truth, torch.tensor([1.0, 0.0, -1.0])).isnan().tolist() == [False, True, True]

    def test_gradients(self, draw):
        inputs = [draw(5).requires_grad_(), draw(5).requires_grad_(), draw(5).exp().requires_grad_()]
        assert torch.autograd.gradcheck(crps.crps_gaussian, inputs)
        assert torch.autograd.gradgradcheck(crps.crps_gaussian, inputs)
        assert torch.autograd.gradcheck(crps.crps_logistic, inputs)
        mixture = [draw(5).requires_grad_()] + [draw(3, 5).exp().requires_grad_() for _ in range(3)]
        assert torch.autograd.gradcheck(crps.crps_gaussian_mixture, mixture)


class TestGradient:
    @pytest.mark.parametrize("estimator", ESTIMATORS)
    @pytest.mark.parametrize("count", [2, 5, 20])
    def test_gradcheck(self, estimator, count, draw):
        inputs = (draw(count, 4).requires_grad_(), draw(4).requires_grad_())
        assert torch.autograd.gradcheck(lambda x, y: crps_ensemble(x, y, estimator=estimator), inputs)

    def test_ties_get_the_gradient_of_the_pair_form(self, reference_crps):
        """sign(0) = 0: equal members move together. Ranks from an argsort would pull them apart."""
        members = torch.tensor([[0.0, 0, 1, 1, 1, 2], [3.0] * 6], dtype=torch.float64).T.clone().requires_grad_()
        truth = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
        ours = torch.autograd.grad(crps_ensemble(members, truth).sum(), (members, truth))
        theirs = torch.autograd.grad(reference_crps(members, truth, 1.0).sum(), (members, truth))
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a, b)

    @pytest.mark.parametrize("policy", ["propagate", "omit"])
    def test_nan_points_leave_other_gradients_alone(self, policy, draw):
        members, truth = draw(6, 10), draw(10)
        clean = members.clone().requires_grad_()
        crps_ensemble(clean, truth)[1:].sum().backward()
        truth[0] = math.nan
        dirty = members.clone().requires_grad_()
        score = crps_ensemble(dirty, truth, nan_policy=policy)
        score[~score.isnan()].sum().backward()
        torch.testing.assert_close(dirty.grad, clean.grad)

    def test_whole_form_equals_blocks(self, draw):
        """What accelerators and torch.compile run against what the CPU runs: scores and derivatives, with and without
        NaN.
        """
        members, truth = draw(7, 50), draw(50)
        members[2, :9], members[:, 20], members[1:, 30] = math.nan, math.nan, math.nan
        members[3, 40:] = members[4, 40:]
        for omit in (False, True):
            whole = crps._crps_whole(members, truth, 0.95, omit, True)
            blocks = crps.crps_blocks(members.numpy(), truth.numpy(), 0.95, omit, True)
            for a, b in zip(whole, blocks):
                np.testing.assert_allclose(a, b, atol=1e-13)

    def test_compile_and_vmap(self, draw):
        members, truth = draw(5, 30), draw(30)
        expected = crps_ensemble(members, truth)
        compiled = torch.compile(crps_ensemble, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(members, truth), expected)
        torch.testing.assert_close(torch.func.vmap(crps_ensemble, in_dims=(1, 0))(members, truth), expected)
        slope = torch.func.vmap(torch.func.grad(crps_ensemble), in_dims=(1, 0))(members, truth)
        leaf = members.clone().requires_grad_()
        crps_ensemble(leaf, truth).sum().backward()
        torch.testing.assert_close(slope.T, leaf.grad)


class TestNan:
    def test_propagate_and_raise(self, draw):
        members, truth = draw(6, 4), draw(4)
        members[2, 1], truth[3] = math.nan, math.nan
        assert crps_ensemble(members, truth).isnan().tolist() == [False, True, False, True]
        with pytest.raises(ValueError, match=r"members holds 1 NaN of 24 values"):
            crps_ensemble(members, truth, nan_policy="raise")

    @pytest.mark.parametrize("count", [6, 20])
    def test_omit_is_the_score_of_the_members_present(self, count, draw):
        members, truth = draw(count, 40), draw(40)
        members[torch.rand(count, 40, generator=torch.Generator().manual_seed(1)) < 0.4] = math.nan
        members[:, 0], members[1:, 1], truth[2] = math.nan, math.nan, math.nan
        members[0, 1] = 1.0
        for estimator in ESTIMATORS:
            ours = crps_ensemble(members, truth, estimator=estimator, nan_policy="omit")
            for point in range(40):
                present = members[:, point][~members[:, point].isnan()]
                enough = len(present) >= (1 if estimator == "biased" else 2) and not truth[point].isnan()
                if enough:
                    expected = crps_ensemble(present, truth[point], estimator=estimator)
                    torch.testing.assert_close(ours[point], expected)
                else:
                    assert ours[point].isnan()


class TestInput:
    @pytest.mark.parametrize("estimator", ["fair", "almost_fair"])
    def test_one_member(self, estimator):
        members, truth = torch.tensor([[1.0, 2.0]]), torch.tensor([3.0, 3.0])
        with pytest.raises(ValueError, match="needs two members at least, got 1"):
            crps_ensemble(members, truth, estimator=estimator)
        assert crps_ensemble(members, truth, estimator="biased").tolist() == [2.0, 1.0]

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"estimator": "kernel"}, ValueError, "estimator must be"),
            ({"estimator": "almost_fair", "alpha": 1.5}, ValueError, "alpha must lie"),
            ({"nan_policy": "skip"}, ValueError, "nan_policy must be"),
            ({"truth": torch.zeros(4)}, ValueError, "truth must have the shape"),
            ({"members": torch.zeros(0, 3)}, ValueError, "no members"),
            ({"members": torch.zeros(2, 3, dtype=torch.long)}, TypeError, "floating dtype"),
            ({"member_dim": 2}, ValueError, "out of range"),
        ],
    )
    def test_errors(self, change, error, message):
        with pytest.raises(error, match=message):
            crps_ensemble(**{"members": torch.zeros(2, 3), "truth": torch.zeros(3), **change})

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_scored_in_float32(self, dtype, draw):
        members, truth = (280 + draw(30, 50)).to(dtype), (280 + draw(50)).to(dtype)
        score = crps_ensemble(members, truth)
        assert score.dtype is torch.float32
        torch.testing.assert_close(
            score.double(), crps_ensemble(members.double(), truth.double()), rtol=1e-5, atol=1e-5
        )

    def test_layouts_agree(self, draw):
        """Members last, strided, expanded, empty; many blocks against one."""
        members, truth = draw(20, 9000), draw(9000)
        expected = crps_ensemble(members, truth)
        torch.testing.assert_close(crps_ensemble(members.T.contiguous(), truth, member_dim=-1), expected)
        torch.testing.assert_close(crps_ensemble(members[:, ::2], truth[::2]), expected[::2])
        shared = members[:, :1].expand(20, 50)
        torch.testing.assert_close(crps_ensemble(shared, truth[:1].expand(50)), expected[:1].expand(50))
        middle = members.reshape(20, 90, 100).movedim(0, 1)
        torch.testing.assert_close(crps_ensemble(middle, truth.reshape(90, 100), member_dim=1).flatten(), expected)
        assert crps_ensemble(torch.zeros(3, 0), torch.zeros(0)).shape == (0,)

    def test_input_is_not_written_to(self, draw):
        members, truth = draw(20, 30), draw(30)
        members[3, 4] = math.nan
        before = members.clone()
        crps_ensemble(members, truth, nan_policy="omit")
        torch.testing.assert_close(members, before, equal_nan=True, rtol=0, atol=0)

    def test_large_offsets(self, draw):
        """Float32 temperatures around 300 K: the error is that of the input's rounding, not of M² terms of its size."""
        members, truth = draw(50, 200), draw(200)
        score = crps_ensemble((members + 300).float(), (truth + 300).float())
        exact = crps_ensemble((members + 300).float().double(), (truth + 300).float().double())
        torch.testing.assert_close(score.double(), exact, rtol=0, atol=2e-6)


class TestBridge:
    def test_numpy(self, draw):
        members, truth = draw(6, 30), draw(30)
        expected = crps_ensemble(members, truth).numpy()
        arrays = members.numpy(), truth.numpy()
        frozen = arrays[0].copy()
        frozen.flags.writeable = False
        for array in (arrays[0], arrays[0].astype(">f8"), frozen, arrays[0][::-1]):
            score = crps_ensemble(array, arrays[1])
            assert isinstance(score, np.ndarray)
            np.testing.assert_allclose(score, expected, atol=1e-14)

    def test_xarray_is_refused_by_name(self):
        """Positions of dimensions mean nothing there: `.data`, or `streaming.evaluate`, which works by names."""
        import xarray as xr

        with pytest.raises(TypeError, match="got DataArray"):
            crps_ensemble(xr.DataArray(np.zeros((2, 3))), xr.DataArray(np.zeros(3)))

    def test_means_over_everything_refuse_dask(self, draw):
        from relent.scores.ensemble import spread

        with pytest.raises(TypeError, match=r"spread does not take dask arrays: use relent\.scores\.streaming"):
            spread(da.from_array(draw(3, 4).numpy()))

    @pytest.mark.parametrize("member_dim", [0, 1])
    def test_dask(self, member_dim, draw):
        members, truth = draw(6, 12, 10), draw(12, 10)
        moved = np.ascontiguousarray(np.moveaxis(members.numpy(), 0, member_dim))
        lazy = crps_ensemble(
            da.from_array(moved, chunks=4), da.from_array(truth.numpy(), chunks=5), member_dim=member_dim
        )
        assert isinstance(lazy, da.Array)
        np.testing.assert_allclose(lazy.compute(), crps_ensemble(members, truth), atol=1e-14)
        weighted = crps_threshold_weighted(
            da.from_array(members.numpy(), chunks=4), truth.numpy(), crps.chain_above(0.1)
        )
        expected = crps_threshold_weighted(members, truth, crps.chain_above(0.1))
        np.testing.assert_allclose(weighted.compute(), expected, atol=1e-14)
