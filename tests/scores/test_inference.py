"""Inference is proved by coverage: each interval is built thousands of times on data whose truth is known."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import integrate, signal, special, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from relent.scores import inference
from relent.scores.inference import (
    Interval,
    block_bootstrap,
    decision_p_value,
    hierarchical_bootstrap,
    holm,
    holm_confidence,
    optimal_block_length,
    paired_difference,
    proportion_interval,
    seeds_needed,
    sign_flip_test,
    t_test_power,
    verdict,
    win_rate_interval,
)

differences = hnp.arrays(np.float64, st.integers(2, 12), elements=st.floats(-10, 10, width=16))


def interval(low, high):
    return Interval(0.0, low, high, 0.5, 5, "t", 0.95)


def binomial_error(level, replicates):
    return 4 * math.sqrt(level * (1 - level) / replicates)  # four standard errors of a measured coverage


def test_loads_no_torch():
    code = "import sys, relent.scores.inference; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Student's t


@pytest.mark.parametrize("n", [2, 3, 5, 10])
@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95, 0.99])
def test_t_covers_at_the_nominal_level(n, confidence):
    replicates = 100_000
    d = np.random.default_rng(n).normal(0.3, 2.0, (replicates, n))
    low, high, p = inference._t_bounds(d, confidence, null=0.3)
    covered = (low <= 0.3) & (high >= 0.3)
    assert abs(covered.mean() - confidence) < binomial_error(confidence, replicates)
    np.testing.assert_array_equal(covered, p > 1 - confidence)


def test_t_agrees_with_scipy():
    a, b = np.random.default_rng(0).normal(size=(2, 7))
    ours, theirs = paired_difference(a, b, 0.9, null=0.1), stats.ttest_1samp(a - b, 0.1)
    low, high = theirs.confidence_interval(0.9)
    expected = [(a - b).mean(), low, high, theirs.pvalue]
    np.testing.assert_allclose([ours.estimate, ours.low, ours.high, ours.p_value], expected, rtol=1e-12)
    assert (ours.n, ours.method, ours.confidence) == (7, "t", 0.9)


def test_common_random_numbers_narrow_the_interval():
    rng = np.random.default_rng(1)
    shared, noise = rng.normal(0, 5, 8), rng.normal(0, 0.1, (2, 8))
    paired = paired_difference(shared + noise[0] + 1, shared + noise[1])
    shuffled = paired_difference(shared + noise[0] + 1, np.roll(shared + noise[1], 1))
    assert paired.high - paired.low < 0.1 * (shuffled.high - shuffled.low)


def test_one_unit_decides_nothing():
    results = [paired_difference([3.0], [1.0], method=method) for method in ("t", "bootstrap", "bca")]
    for result in (*results, hierarchical_bootstrap([[3.0, 4.0]], [[1.0, 2.0]]), block_bootstrap([2.0])):
        assert (result.estimate, result.low, result.high, result.p_value) == (2.0, -math.inf, math.inf, 1.0)
        assert verdict(result, "superiority") == "inconclusive"


def test_equal_differences_give_a_point():
    result = paired_difference([0.1] * 3, [0.0] * 3)
    assert (result.low, result.estimate, result.high, result.p_value) == (0.1, 0.1, 0.1, 0.0)
    assert paired_difference([1.0, 2.0], [1.0, 2.0]).p_value == 1.0


@settings(max_examples=50, deadline=None)
@given(differences, st.sampled_from(["t", "bootstrap", "bca"]), st.floats(-3, 3), st.floats(0.1, 5))
def test_interval_is_equivariant(d, method, shift, scale):
    zero = np.zeros_like(d)
    first = paired_difference(d, zero, method=method, resamples=199)
    moved = paired_difference(scale * d + shift, zero, method=method, null=shift, resamples=199)
    expected = [scale * x + shift for x in (first.estimate, first.low, first.high)]
    np.testing.assert_allclose([moved.estimate, moved.low, moved.high], expected, rtol=1e-9, atol=1e-8 * (1 + scale))
    swapped, straight = paired_difference(zero, d), paired_difference(d, zero)
    np.testing.assert_allclose([swapped.low, swapped.high], [-straight.high, -straight.low], atol=1e-12)


@pytest.mark.parametrize("method", ["bootstrap", "bca"])
@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
def test_bootstrap_p_value_inverts_the_interval(method, confidence):
    rng = np.random.default_rng(3)
    for _ in range(60):
        d = rng.exponential(size=rng.integers(3, 9)) - rng.uniform(0, 1)
        d = d.round() if rng.random() < 0.5 else d  # puts atoms at the null
        result = paired_difference(d, 0 * d, confidence, method, resamples=999)
        excludes = result.low > 0 or result.high < 0
        assert excludes == (result.p_value <= 1 - confidence + 1e-12)


# Bootstrap


@pytest.mark.parametrize(("n", "confidence", "expected"), [(3, 0.95, 0.75), (5, 0.9, 0.787), (10, 0.95, 0.90)])
@pytest.mark.parametrize("method", ["bootstrap", "bca"])
def test_bootstrap_undercovers_as_documented(n, confidence, expected, method):
    replicates = 800
    d = np.random.default_rng(n).normal(size=(replicates, n))
    results = [paired_difference(x, 0 * x, confidence, method, resamples=499, seed=i) for i, x in enumerate(d)]
    coverage = np.mean([r.low <= 0 <= r.high for r in results])
    assert abs(coverage - expected) < binomial_error(expected, replicates) + 0.02
    assert coverage < confidence - 0.02


def test_bootstrap_covers_with_many_seeds():
    replicates = 500
    d = np.random.default_rng(9).exponential(size=(replicates, 60))
    for method in ("bootstrap", "bca"):
        results = [paired_difference(x, 0 * x, 0.9, method, resamples=399, seed=i) for i, x in enumerate(d)]
        coverage = np.mean([r.low <= 1 <= r.high for r in results])
        assert abs(coverage - 0.9) < binomial_error(0.9, replicates) + 0.01


@pytest.mark.parametrize(("method", "peer"), [("bootstrap", "percentile"), ("bca", "BCa")])
def test_bootstrap_agrees_with_scipy(method, peer):
    d = np.random.default_rng(4).exponential(size=25)
    ours = paired_difference(d, 0 * d, 0.9, method, resamples=99_999)
    theirs = stats.bootstrap((d,), np.mean, confidence_level=0.9, method=peer, n_resamples=99_999, rng=1)
    width = ours.high - ours.low
    np.testing.assert_allclose([ours.low, ours.high], theirs.confidence_interval, atol=0.02 * width)


def test_bootstrap_matches_the_enumeration_of_three_seeds():
    d = np.array([0.0, 1.0, 5.0])
    every = np.sort([d[[i, j, k]].mean() for i in range(3) for j in range(3) for k in range(3)])
    result = paired_difference(d, 0 * d, 0.8, "bootstrap", resamples=19_999)
    assert (result.low, result.high) == pytest.approx((every[2], every[-3]))  # 10 % of 27 is the third


def test_end_points_are_order_statistics_and_infinite_beyond_them():
    means = np.arange(1.0, 100.0)
    for confidence, low, high in [(0.9, 5, 95), (0.98, 1, 99), (0.99, -math.inf, math.inf)]:
        assert inference._bootstrap_bounds(means, 9, confidence, null=0.0) == (low, high, pytest.approx(0.02))
    assert abs(inference._bca_constants(np.array([-1.0, 0.0, 1.0]), np.array([-1.0, 0, 0, 0, 1]))[0]) < 1e-12


@pytest.mark.parametrize(("seeds", "low", "high"), [(5, 0.87, 0.96), (10, 0.92, 0.98)])
def test_hierarchical_bootstrap_covers_new_seeds_and_items(seeds, low, high):
    replicates, hits, naive = 500, 0, 0
    for i in range(replicates):
        rng = np.random.default_rng(i)
        d = 0.5 * rng.normal(size=(seeds, 1)) + rng.normal(size=(1, 40)) + rng.normal(size=(seeds, 40))
        result = hierarchical_bootstrap(d, 0 * d, resamples=399, seed=i)
        hits += result.low <= 0 <= result.high
        naive += paired_difference(d.mean(0), np.zeros(40)).p_value > 0.05
    assert low < hits / replicates < high
    assert naive < hits - 0.03 * replicates  # items alone pretend that the seeds are fixed


def test_hierarchical_bootstrap_without_seed_noise_is_the_item_bootstrap():
    items = np.random.default_rng(5).normal(size=80)
    both = hierarchical_bootstrap(np.tile(items, (6, 1)), np.zeros((6, 80)), resamples=9999)
    single = paired_difference(items, np.zeros(80), method="bootstrap")
    np.testing.assert_allclose([both.low, both.high, both.n], [single.low, single.high, 6], atol=0.02)


def test_hierarchical_bootstrap_is_the_same_in_chunks(monkeypatch):
    d = np.random.default_rng(6).normal(size=(4, 30))
    whole = hierarchical_bootstrap(d, 0 * d, resamples=4000)
    monkeypatch.setattr(inference, "_CHUNK", 900)
    pieces = hierarchical_bootstrap(d, 0 * d, resamples=4000)
    np.testing.assert_allclose([pieces.low, pieces.high], [whole.low, whole.high], atol=0.05)


def autoregressive(coefficient, n, seed):
    noise = np.random.default_rng(seed).normal(size=n + 100)
    return signal.lfilter([1.0], [1.0, -coefficient], noise)[100:]


@pytest.mark.parametrize("kind", ["stationary", "circular"])
def test_block_bootstrap_covers_where_the_independent_one_does_not(kind):
    replicates, blocks, independent = 200, 0, 0
    for i in range(replicates):
        x = autoregressive(0.5, 250, i)
        result = block_bootstrap(x, kind=kind, resamples=299, seed=i)
        alone = block_bootstrap(x, kind=kind, block_length=1, resamples=299, seed=i)
        blocks += result.low <= 0 <= result.high
        independent += alone.low <= 0 <= alone.high
    assert blocks / replicates > 0.86 > 0.80 > independent / replicates


@pytest.mark.parametrize("kind", ["stationary", "circular"])
def test_block_bootstrap_variance_matches_the_formula(kind):
    x, n, length = autoregressive(0.6, 150, 0), 150, 6
    x = x - x.mean()
    ring = np.array([x @ np.roll(x, -k) for k in range(n)]) / n
    lag = np.arange(1, n)
    together = {  # probability that two steps `lag` apart share a block, times the share of pairs at that lag
        "stationary": (1 - lag / n) * (1 - 1 / length) ** lag,
        "circular": np.clip(1 - lag / length, 0, 1),
    }
    variance = (ring[0] + 2 * together[kind] @ ring[1:]) / n
    rng = np.random.default_rng(1)
    means = x[inference._block_indices(rng, 40_000, n, length, kind)].mean(-1)
    assert means.var() == pytest.approx(variance, rel=0.03)  # standard error 0.7 %


@pytest.mark.parametrize("kind", ["stationary", "circular"])
def test_block_length_near_the_theory_of_ar1(kind):
    phi, n = 0.5, 4000
    moment = 2 * phi / (1 - phi) ** 2 / (1 - phi**2)
    spectrum = (1 + phi) / (1 - phi) / (1 - phi**2)
    theory = (2 * moment**2 / ((2 if kind == "stationary" else 4 / 3) * spectrum**2) * n) ** (1 / 3)
    found = np.median([optimal_block_length(autoregressive(phi, n, i), kind) for i in range(30)])
    assert found == pytest.approx(theory, rel=0.15)


def test_block_length_extremes():
    assert optimal_block_length(np.zeros(50)) == optimal_block_length([1.0, 2.0]) == 1.0
    over_differenced = np.diff(np.random.default_rng(0).normal(size=31))  # its spectrum vanishes at frequency 0
    assert optimal_block_length(over_differenced) == 10
    noise = np.random.default_rng(1).normal(size=4004)
    seasonal = noise[4:] + 0.8 * noise[:-4]  # uncorrelated at lags 1 to 3
    assert optimal_block_length(seasonal) == pytest.approx((2 * 6.4**2 / (2 * 3.24**2) * 4000) ** (1 / 3), rel=0.25)
    assert optimal_block_length(np.random.default_rng(0).normal(size=2000)) < 6


# Permutation test


@pytest.mark.parametrize(("n", "smallest"), [(1, 1.0), (2, 0.5), (3, 0.25), (5, 0.0625), (6, 0.03125)])
def test_smallest_permutation_p_value(n, smallest):
    assert sign_flip_test(np.arange(1.0, n + 1), np.zeros(n)) == smallest


@settings(max_examples=30, deadline=None)
@given(differences)
def test_sign_flip_agrees_with_scipy(d):
    d = np.round(d)  # keeps ties exact in both
    theirs = stats.permutation_test((d,), np.sum, permutation_type="samples", n_resamples=np.inf)
    two_sided = np.mean(np.abs(theirs.null_distribution) >= abs(d.sum()))
    assert sign_flip_test(d, 0 * d) == pytest.approx(two_sided)


def test_sign_flip_by_sampling_agrees_with_t_on_normal_differences():
    d = np.random.default_rng(2).normal(0.35, 1, 40)
    p, reference = sign_flip_test(d, 0 * d), paired_difference(d, 0 * d).p_value
    assert p == pytest.approx(reference, rel=0.1)
    assert sign_flip_test(np.ones(40), np.zeros(40), resamples=999) == 0.001


def test_permutation_test_holds_its_level():
    rng = np.random.default_rng(8)
    p = np.array([sign_flip_test(x, 0 * x) for x in rng.standard_t(2, size=(3000, 8))])
    assert all(np.mean(p <= level) <= level + binomial_error(level, 3000) for level in (0.05, 0.1, 0.2))


# Multiplicity and verdicts

p_value_lists = st.lists(
    st.one_of(st.floats(0, 1), st.sampled_from([0.011, 0.023, 0.041, 1.0])), min_size=1, max_size=9
)


@pytest.mark.parametrize("p", [[0.3], [0.04, 0.01, 0.03], [0.01, 0.01, 0.5, 0.02, 1.0, 0.0]])
def test_holm_agrees_with_statsmodels(p):
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], atol=1e-15)


def step_down(p, alpha):
    """Holm's procedure as it is told: smallest first, stop at the first that is not rejected."""
    rejected = np.zeros(len(p), dtype=bool)
    for step, i in enumerate(np.argsort(p)):
        if p[i] > alpha / (len(p) - step):
            break
        rejected[i] = True
    return rejected


@settings(max_examples=50, deadline=None)
@given(p_value_lists, st.sampled_from([0.8, 0.9, 0.95]))
def test_holm_confidence_agrees_with_holm(p, confidence):
    steps = np.outer(p, np.arange(1, len(p) + 1))
    assume(np.abs(steps - (1 - confidence)).min() > 1e-9)  # no p-value on the edge of a decision
    levels, rejected = holm_confidence(p, confidence), step_down(p, 1 - confidence)
    np.testing.assert_array_equal(np.asarray(p) <= 1 - levels, rejected)
    np.testing.assert_array_equal(holm(p) <= 1 - confidence, rejected)
    assert (levels >= confidence - 1e-15).all()
    assert (levels <= 1 - (1 - confidence) / len(p) + 1e-15).all()


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03]), [0.06, 0.03, 0.06])
    np.testing.assert_allclose(holm_confidence([0.9, 0.01, 0.8]), 1 - 0.05 / np.array([2, 3, 2]))
    np.testing.assert_allclose(holm_confidence([0.001, 0.01, 0.03]), 1 - 0.05 / np.array([3, 2, 1]))
    np.testing.assert_allclose(holm_confidence([0.01, 0.01]), 1 - 0.05 / 2)


def test_family_wise_error_of_the_verdicts():
    replicates, families = 4000, 5
    d = np.random.default_rng(7).normal(size=(replicates, families, 5))
    levels = np.array([holm_confidence(p) for p in inference._t_bounds(d, 0.95, 0.0)[2]])
    low, high, _ = inference._t_bounds(d, levels, 0.0)
    wrong = ((low > 0) | (high < 0)).any(1).mean()
    expected = 1 - (1 - 0.05 / families) ** families  # of Holm with independent true nulls
    assert abs(wrong - expected) < binomial_error(expected, replicates)


@pytest.mark.parametrize("kind", ["superiority", "non-inferiority", "equivalence"])
@pytest.mark.parametrize("direction", ["higher", "lower"])
def test_a_claim_is_decided_exactly_when_its_p_value_is_small(kind, direction):
    rng, found = np.random.default_rng(0), set()
    for _ in range(300):
        d = rng.uniform(-1.5, 1.5) + rng.uniform(0.1, 0.6) * rng.normal(size=5)
        outcome = verdict(paired_difference(d, 0 * d), kind, 0.5, direction)
        assert (outcome != "inconclusive") == (decision_p_value(d, 0 * d, kind, 0.5, direction) <= 0.05)
        found.add(outcome)
    assert len(found) == 3


@pytest.mark.parametrize(
    ("kind", "margin", "low", "high", "expected"),
    [
        ("superiority", 0.0, 0.1, 0.4, "reproduced"),
        ("superiority", 0.0, -0.1, 0.4, "inconclusive"),
        ("superiority", 0.0, 0.0, 0.0, "not reproduced"),
        ("superiority", 0.2, 0.05, 0.1, "not reproduced"),
        ("non-inferiority", 0.2, -0.1, 0.4, "reproduced"),
        ("non-inferiority", 0.2, -0.3, 0.4, "inconclusive"),
        ("non-inferiority", 0.2, -0.5, -0.3, "not reproduced"),
        ("equivalence", 0.2, -0.1, 0.1, "reproduced"),
        ("equivalence", 0.2, -0.1, 0.3, "inconclusive"),
        ("equivalence", 0.2, -0.4, -0.3, "not reproduced"),
        ("equivalence", 0.2, 0.3, 0.4, "not reproduced"),
        ("superiority", 0.0, -math.inf, math.inf, "inconclusive"),
    ],
)
def test_verdicts(kind, margin, low, high, expected):
    assert verdict(interval(low, high), kind, margin) == expected
    assert verdict(interval(-high, -low), kind, margin, direction="lower") == expected


# Proportions: coverage is a finite sum over the binomial, so it is computed, not simulated


def exact_coverage(n, confidence, method, truths):
    bounds = [proportion_interval(k, n, confidence, method) for k in range(n + 1)]
    low, high = np.array([(b.low, b.high) for b in bounds]).T
    inside = (low <= truths[:, None]) & (truths[:, None] <= high)
    return (stats.binom.pmf(np.arange(n + 1), n, truths[:, None]) * inside).sum(1)


@pytest.mark.parametrize("n", [5, 10, 50, 200])
@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95])
def test_proportion_coverage(n, confidence):
    truths = np.linspace(0.05, 0.95, 181)
    wilson = exact_coverage(n, confidence, "wilson", truths)
    exact = exact_coverage(n, confidence, "clopper-pearson", truths)
    assert abs(wilson.mean() - confidence) < 0.02
    assert exact.min() >= confidence
    if confidence == 0.95:
        assert wilson.min() > 0.89


@pytest.mark.parametrize(("method", "peer"), [("wilson", "wilson"), ("clopper-pearson", "beta")])
@pytest.mark.parametrize(("k", "n"), [(0, 7), (7, 7), (3, 8), (51, 90)])
def test_proportions_agree_with_statsmodels_and_scipy(method, peer, k, n):
    ours = proportion_interval(k, n, 0.9, method)
    np.testing.assert_allclose([ours.low, ours.high], proportion_confint(k, n, 0.1, peer), atol=1e-12)
    if method == "clopper-pearson":
        one_sided = [stats.binomtest(k, n, 0.5, side).pvalue for side in ("less", "greater")]
        assert ours.p_value == pytest.approx(min(1.0, 2 * min(one_sided)))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.data(), st.sampled_from(["wilson", "clopper-pearson"]), st.floats(0.05, 0.95))
def test_proportion_p_value_inverts_the_interval(n, data, method, null):
    k = data.draw(st.integers(0, n))
    result = proportion_interval(k, n, 0.9, method, null)
    distance = min(abs(result.low - null), abs(result.high - null))
    assert distance < 1e-9 or (result.low <= null <= result.high) == (result.p_value > 0.1)
    mirrored = proportion_interval(n - k, n, 0.9, method, 1 - null)
    np.testing.assert_allclose([mirrored.low, mirrored.high], [1 - result.high, 1 - result.low], atol=1e-9)


def test_win_rate_counts_ties_as_half():
    result = win_rate_interval(6, 2, 4)
    assert result.estimate == pytest.approx(8 / 12)
    other = win_rate_interval(2, 6, 4)
    assert (1 - other.high, 1 - other.low) == pytest.approx((result.low, result.high))
    assert win_rate_interval(0, 0, 5).p_value == 1.0


def test_win_rate_with_ties_is_conservative():
    rng = np.random.default_rng(0)
    outcomes = rng.multinomial(60, [0.45, 0.35, 0.2], 4000)
    results = [win_rate_interval(*(int(x) for x in row), confidence=0.9) for row in outcomes]
    assert np.mean([r.low <= 0.55 <= r.high for r in results]) > 0.9


# Power


def exact_power(effect, n, confidence):
    """Mean over the chi distribution of the normal tail: an integral that needs no noncentral t."""
    critical = special.stdtrit(n - 1, (1 + confidence) / 2)

    def tail(u):
        return special.ndtr(effect * math.sqrt(n) - critical * np.sqrt(special.chdtri(n - 1, 1 - u) / (n - 1)))

    return integrate.quad(tail, 0, 1, epsabs=1e-11)[0]


@pytest.mark.parametrize("n", [2, 3, 5, 40])
@pytest.mark.parametrize("effect", [0.2, 1.0, 6.0])
def test_power_matches_the_integral(n, effect):
    assert t_test_power(-2 * effect, 2.0, n, 0.9) == pytest.approx(exact_power(effect, n, 0.9), abs=1e-8)


def test_power_matches_simulation():
    d = np.random.default_rng(0).normal(0.8, 1.0, (50_000, 6))
    decided = np.mean(inference._t_bounds(d, 0.95, 0.0)[0] > 0)
    assert abs(decided - t_test_power(0.8, 1.0, 6)) < binomial_error(decided, 50_000)


@pytest.mark.parametrize("effect", [0.1, 0.3, 1.0, 1.7])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_seeds_needed_is_the_smallest_number(effect, power):
    n = seeds_needed(effect, 1.0, power=power)
    assert t_test_power(effect, 1.0, n) >= power
    assert n == 2 or t_test_power(effect, 1.0, n - 1) < power
    assert n == math.ceil(TTestPower().solve_power(effect, power=power, alpha=0.05) - 1e-6)


def test_seeds_needed_extremes():
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1.0, 0.0) == 2
    assert seeds_needed(1.7, 1.0) == 5  # as the docstring says
    assert seeds_needed(1e-4, 1.0) == pytest.approx(((special.ndtri(0.975) + special.ndtri(0.8)) / 1e-4) ** 2, rel=1e-6)
    assert t_test_power(0.0, 1.0, 5) == pytest.approx(0.025)
    assert (t_test_power(0.0, 0.0, 5), t_test_power(0.1, 0.0, 5)) == (0.0, 1.0)


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_difference([1.0, 2.0], [1.0]), "paired"),
        (lambda: paired_difference([], []), "non-empty"),
        (lambda: paired_difference([1.0, math.nan], [0.0, 0.0]), "finite"),
        (lambda: paired_difference([1.0, 2.0], [0.0, 0.0], confidence=95), "confidence"),
        (lambda: paired_difference([1.0, 2.0], [0.0, 0.0], method="z"), "method"),
        (lambda: paired_difference([1.0, 2.0], [0.0, 0.0], method="bca", resamples=0), "resamples"),
        (lambda: hierarchical_bootstrap([1.0], [1.0]), "2 dimension"),
        (lambda: block_bootstrap([1.0, 2.0], block_length=3), "block_length"),
        (lambda: block_bootstrap([1.0, 2.0], kind="moving"), "kind"),
        (lambda: optimal_block_length([1.0, 2.0], "moving"), "kind"),
        (lambda: holm([0.1, 1.2]), "p_values"),
        (lambda: holm_confidence([]), "non-empty"),
        (lambda: proportion_interval(5, 4), "successes"),
        (lambda: proportion_interval(2, 4, method="wald"), "method"),
        (lambda: proportion_interval(2, 4, null=1.0), "null"),
        (lambda: win_rate_interval(0, 0), "positive sum"),
        (lambda: verdict(interval(0.0, 1.0), "non-inferiority"), "margin"),
        (lambda: verdict(interval(0.0, 1.0), "better"), "kind"),
        (lambda: verdict(interval(0.0, 1.0), "superiority", direction="up"), "direction"),
        (lambda: verdict(interval(math.nan, 1.0), "superiority"), "NaN"),
        (lambda: t_test_power(1.0, 1.0, 1), "n >= 2"),
        (lambda: seeds_needed(1.0, -1.0), "sd"),
        (lambda: seeds_needed(1.0, 1.0, power=80), "power"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
