import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.text import bleu_score

from relent.scores.generation import bleu, distinct_n, pass_all_k, pass_at_k, perplexity, self_bleu, win_rate
from relent.scores.inference import proportion_interval

sentences = st.lists(st.sampled_from("abc"), min_size=0, max_size=9)


# pass@k


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.data())
def test_pass_at_k_is_exact(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    miss = Fraction(math.comb(n - c, k), math.comb(n, k))
    assert pass_at_k(n, c, k).item() == pytest.approx(float(1 - miss), rel=1e-12, abs=0)
    assert pass_all_k(n, c, k).item() == pytest.approx(float(Fraction(math.comb(c, k), math.comb(n, k))), rel=1e-12)


def test_pass_at_k_is_exact_where_it_is_tiny_and_where_n_is_huge():
    assert pass_at_k(10**12, 1, 1).item() == pytest.approx(1e-12, rel=1e-14, abs=0)
    assert pass_at_k(10**9, 3, 1000).item() == pytest.approx(-math.expm1(3 * math.log1p(-1e-6)), rel=1e-8, abs=0)
    assert pass_at_k(5000, 2500, 4000).item() == 1.0


def test_pass_at_k_is_unbiased_and_the_plug_in_is_not():
    n, k, rate = 10, 4, 0.2
    draws = torch.rand(200_000, n, generator=torch.Generator().manual_seed(0)) < rate
    c = draws.sum(-1)
    truth = 1 - (1 - rate) ** k
    values, plug_in = pass_at_k(n, c, k), 1 - (1 - c / n) ** k
    error = 4 * values.std() / math.sqrt(len(c))
    assert abs(values.mean() - truth) < error
    assert plug_in.double().mean() < truth - 5 * error
    assert abs(pass_all_k(n, c, 2).mean() - rate**2) < 1e-3


def test_pass_at_k_matches_all_subsets():
    results = [1, 0, 0, 1, 0]
    subsets = list(itertools.combinations(results, 3))
    assert pass_at_k(5, 2, 3).item() == pytest.approx(np.mean([any(s) for s in subsets]))
    assert pass_all_k(5, 2, 2).item() == pytest.approx(np.mean([all(s) for s in itertools.combinations(results, 2)]))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.data())
def test_pass_at_k_grows_with_k_and_c(n, data):
    c = data.draw(st.integers(0, n))
    by_k = [pass_at_k(n, c, k).item() for k in range(1, n + 1)]
    assert by_k[0] == pytest.approx(c / n)
    assert by_k[-1] == float(c > 0)
    assert all(b >= a - 1e-15 for a, b in itertools.pairwise(by_k))
    by_c = pass_at_k(n, torch.arange(n + 1), max(1, n // 2))
    assert (by_c.diff() >= -1e-15).all()
    assert (pass_all_k(n, torch.arange(n + 1), max(1, n // 2)) <= by_c + 1e-15).all()


def test_pass_at_k_of_several_problems():
    values = pass_at_k([4, 8], [0, 8], 2)
    assert values.tolist() == [0.0, 1.0]
    assert values.dtype == torch.float64


# Diversity


def test_distinct_by_hand():
    assert distinct_n(["abab", "ab"], 1) == pytest.approx(2 / 6)
    assert distinct_n(["abab", "ab"], 2) == pytest.approx(2 / 4)
    assert distinct_n([[1, 2, 3]], 2) == 1.0
    assert distinct_n([torch.tensor([5, 5, 5]).tolist(), [5]], 3) == 1.0


@settings(max_examples=50, deadline=None)
@given(st.lists(sentences, min_size=1, max_size=5), st.integers(1, 3))
def test_distinct_against_a_plain_loop(samples, n):
    grams = [tuple(s[i : i + n]) for s in samples for i in range(len(s) - n + 1)]
    if not grams:
        with pytest.raises(ValueError, match="gram"):
            distinct_n(samples, n)
        return
    assert distinct_n(samples, n) == pytest.approx(len(set(grams)) / len(grams))
    assert distinct_n(samples * 2, n) == pytest.approx(distinct_n(samples, n) / 2)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from("abc"), min_size=4, max_size=9),
    st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), min_size=1, max_size=3),
    st.sampled_from(["add-one", "none"]),
    st.integers(1, 4),
)
def test_bleu_against_torchmetrics(hypothesis, references, smoothing, order):
    ours = bleu(hypothesis, references, order, smoothing)
    # of two equally close references torchmetrics takes the first one given: sort to make it the shorter
    given_references = [" ".join(r) for r in sorted(references, key=len)]
    theirs = bleu_score([" ".join(hypothesis)], [given_references], order, smooth=smoothing == "add-one")
    if bleu(hypothesis, references, order, "none") == 0:
        assert theirs == 0  # it gives up at the first order without a match, smoothed or not
    else:
        assert ours == pytest.approx(theirs.item(), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(sentences, min_size=2, max_size=6), st.sampled_from(["add-one", "none"]), st.integers(1, 4))
def test_self_bleu_is_bleu_against_the_others(samples, smoothing, order):
    expected = [bleu(s, samples[:i] + samples[i + 1 :], order, smoothing) for i, s in enumerate(samples)]
    value = self_bleu(samples, order, smoothing)
    assert value == pytest.approx(np.mean(expected), abs=1e-12)
    assert 0 <= value <= 1
    assert self_bleu(samples[::-1], order, smoothing) == pytest.approx(value, abs=1e-12)
    assert self_bleu([samples[0]] * 3, order, smoothing) == pytest.approx(1.0)


def test_bleu_by_hand():
    # 3 of 4 words, 1 of 3 pairs; as long as the reference
    assert bleu("abcd", ["abxd"], 2, "none") == pytest.approx(math.sqrt(3 / 4 * 1 / 3))
    assert bleu("abcd", ["abxd"], 2) == pytest.approx(math.sqrt(3 / 4 * 2 / 4))
    assert bleu("aa", ["abcd"], 1) == pytest.approx(0.5 * math.exp(1 - 4 / 2))  # clipped, and too short
    assert bleu("ab", ["a", "abc"], 1) == 1.0  # of two equally close references the shorter counts
    assert bleu("ab", ["abc"], 4, "none") == pytest.approx(math.exp(1 - 3 / 2))  # orders that exist
    assert bleu("", [""]) == 1.0
    assert bleu("", ["a"]) == bleu("a", [""]) == bleu("xyz", ["abc"]) == 0.0


def test_self_bleu_orders_sets_by_diversity():
    same = [["the", "cat", "sat", "on", "the", "mat"]] * 4
    near = [["the", word, "sat", "on", "the", "mat"] for word in ("cat", "dog", "cow", "hen")]
    far = [list("abcdef"), list("ghijkl"), list("mnopqr"), list("stuvwx")]
    assert self_bleu(same) == pytest.approx(1.0)
    assert self_bleu(same) > self_bleu(near) > self_bleu(far)
    assert self_bleu(far) == 0.0


# Perplexity and win rate


def test_perplexity_by_hand():
    log_probs = torch.tensor([[0.5, 0.25, 0.9], [0.125, 0.1, 0.1]]).log()
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    log_probs[mask == 0] = math.nan
    assert perplexity(log_probs, mask).item() == pytest.approx(2 ** ((1 + 2 + 3) / 3))
    np.testing.assert_allclose(perplexity(log_probs, mask, "sequence"), [2**1.5, 8.0], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-30, 0), min_size=1, max_size=20), st.integers(0, 5))
def test_perplexity_ignores_padding_and_is_at_least_one(values, padding):
    plain = perplexity(values)
    assert plain >= 1
    assert plain.item() == pytest.approx(math.exp(-np.mean(values)))
    padded = perplexity(values + [5.0] * padding, [True] * len(values) + [False] * padding)
    assert padded.item() == pytest.approx(plain.item(), rel=1e-12)


def test_perplexity_of_the_uniform_and_of_the_impossible():
    assert perplexity(torch.full((3, 7), -math.log(50.0), dtype=torch.float64)).item() == pytest.approx(50)
    assert perplexity([-1.0, -math.inf]) == math.inf
    assert perplexity(torch.zeros(4, dtype=torch.float16)) == 1


def test_win_rate():
    first, second = [3.0, 1.0, 2.0, 5.0], [1.0, 2.0, 2.0, 4.9]
    result, expected = win_rate(first, second), proportion_interval(2.5, 4)
    assert (result.estimate, result.low, result.high) == (0.625, expected.low, expected.high)
    assert win_rate(first, second, tie_margin=0.2).estimate == 0.5
    assert win_rate([math.inf], [-math.inf]).estimate == 1.0
    back = win_rate(second, first)
    assert (1 - back.high, 1 - back.low) == pytest.approx((result.low, result.high))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pass_at_k(4, 5, 1), "correct <= samples"),
        (lambda: pass_at_k(4, 1.5, 1), "whole numbers"),
        (lambda: pass_at_k(4, 2, 5), "k must"),
        (lambda: pass_at_k([4, 2], [1, 1], 3), "k must"),
        (lambda: pass_at_k([], [], 1), "one problem"),
        (lambda: distinct_n(["ab"], 0), "at least 1"),
        (lambda: distinct_n([], 1), "gram"),
        (lambda: bleu("a", []), "reference"),
        (lambda: bleu("a", ["a"], 0), "max_order"),
        (lambda: bleu("a", ["a"], smoothing="exp"), "smoothing"),
        (lambda: self_bleu(["a"]), "two samples"),
        (lambda: perplexity([0.5]), "log-probabilities"),
        (lambda: perplexity([math.nan]), "log-probabilities"),
        (lambda: perplexity([-1.0], per="token"), "per must"),
        (lambda: perplexity([-1.0], [False]), "nothing"),
        (lambda: perplexity([[-1.0], [-1.0]], [[True], [False]], "sequence"), "nothing"),
        (lambda: win_rate([1.0], [1.0, 2.0]), "equal"),
        (lambda: win_rate([math.nan], [1.0]), "NaN"),
        (lambda: win_rate([1.0], [1.0], tie_margin=-1.0), "tie_margin"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
