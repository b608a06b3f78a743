"""Ranking models against enumeration, closed forms and published definitions."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relent.divergences.discrete import forward_kl
from relent.divergences.logits import tempered_log_probs
from relent.divergences.ranking import (
    list_mle,
    list_net,
    plackett_luce_log_prob,
    plackett_luce_loss,
    plackett_luce_steps,
    rank_net,
    ranking_of,
    sample_plackett_luce,
)

# The worked example of a list-wise distillation loss (arXiv 2506.12542), computed independently in float64.
STUDENT = torch.tensor([1.0, 2.0, 0.0, -1.0], dtype=torch.float64)
TEACHER = torch.tensor([2.0, 1.0, 3.0, 0.0], dtype=torch.float64)
LABEL = torch.tensor(1)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def naive_log_prob(scores, ranking):
    """Choice by choice, in probability space."""
    weights, total, left = scores.exp(), 0.0, scores.exp().sum()
    for item in ranking:
        total = total + math.log(weights[item] / left)
        left = left - weights[item]
    return total


def distil(scores, teacher, label, temperature=1.0):
    ranking = ranking_of(teacher, first=label)
    weights = (teacher / temperature).softmax(-1).gather(-1, ranking)
    return plackett_luce_loss(scores, ranking, weights=weights)


def test_worked_example_of_weighted_likelihood():
    ranking = ranking_of(TEACHER, first=LABEL)
    assert ranking.tolist() == [1, 2, 0, 3]
    steps = plackett_luce_steps(STUDENT, ranking)
    expected = torch.tensor([0.4401896986, 1.4076059644, 0.1269280110, 0.0], dtype=torch.float64)
    torch.testing.assert_close(steps, expected, rtol=0, atol=1e-9)
    assert steps.sum().item() == pytest.approx(1.9747236740, abs=1e-9)
    student = STUDENT.clone().requires_grad_()
    loss = distil(student, TEACHER, LABEL)
    assert loss.item() == pytest.approx(0.9748046492, abs=1e-9)
    loss.backward()
    expected = torch.tensor([0.4207640054, -0.0310308492, -0.4787359753, 0.0890028191], dtype=torch.float64)
    torch.testing.assert_close(student.grad, expected, rtol=0, atol=1e-9)
    assert abs(student.grad.sum().item()) < 1e-14


def test_closed_forms_of_weighted_likelihood():
    ranking = ranking_of(TEACHER, first=LABEL)
    alpha = TEACHER.softmax(-1).gather(-1, ranking)
    assert distil(torch.zeros(4).double(), TEACHER, LABEL).item() == pytest.approx(0.9924144539, abs=1e-9)
    flat = (alpha * torch.tensor([4.0, 3.0, 2.0, 1.0]).double().log()).sum()
    torch.testing.assert_close(distil(torch.zeros(4).double(), TEACHER, LABEL), flat)
    two = distil(torch.tensor([0.5, -0.5]).double(), torch.tensor([1.0, -1.0]).double(), torch.tensor(1))
    assert two.item() == pytest.approx(0.1565446305, abs=1e-9)
    first_only = plackett_luce_loss(STUDENT, ranking, weights=torch.tensor([1.0, 0, 0, 0]).double())
    torch.testing.assert_close(first_only, torch.nn.functional.cross_entropy(STUDENT, LABEL))
    sure = TEACHER.clone()
    sure[1] = 60.0
    torch.testing.assert_close(distil(STUDENT, sure, LABEL), first_only, rtol=0, atol=1e-12)
    even = plackett_luce_loss(STUDENT, ranking, weights=torch.tensor(0.25).double())
    torch.testing.assert_close(even, -plackett_luce_log_prob(STUDENT, ranking) / 4)


@given(st.integers(0, 10_000), st.integers(2, 5))
@settings(max_examples=25, deadline=None)
def test_probabilities_of_all_rankings_sum_to_one(seed, items):
    scores = 3 * draw(items, seed=seed)
    for length in range(1, items + 1):
        rankings = torch.tensor(list(itertools.permutations(range(items), length)))
        log_probs = plackett_luce_log_prob(scores.expand(len(rankings), -1), rankings)
        assert log_probs.logsumexp(0).item() == pytest.approx(0.0, abs=1e-12)
        naive = [naive_log_prob(scores, ranking) for ranking in rankings.tolist()]
        torch.testing.assert_close(log_probs, torch.tensor(naive, dtype=torch.float64), rtol=0, atol=1e-8)


def test_partial_ranking_is_the_marginal_of_whole_rankings():
    scores = draw(5)
    whole = [list(p) for p in itertools.permutations(range(5)) if list(p[:2]) == [3, 1]]
    marginal = plackett_luce_log_prob(scores.expand(len(whole), -1), torch.tensor(whole)).logsumexp(0)
    torch.testing.assert_close(plackett_luce_log_prob(scores, torch.tensor([3, 1])), marginal)


@given(st.integers(0, 10_000), st.floats(-50, 50), st.integers(2, 8))
@settings(max_examples=25, deadline=None)
def test_translation_relabelling_and_convexity(seed, shift, items):
    student, teacher, other = draw(items, seed=seed), draw(items, seed=seed + 1), draw(items, seed=seed + 2)
    label = torch.tensor(seed % items)
    loss = distil(student, teacher, label)
    assert loss >= 0
    torch.testing.assert_close(distil(student + shift, teacher - shift, label), loss, rtol=0, atol=1e-10)
    order = torch.randperm(items, generator=torch.Generator().manual_seed(seed))
    renamed = distil(student[order], teacher[order], (order == label).nonzero()[0, 0])
    torch.testing.assert_close(renamed, loss, rtol=0, atol=1e-12)
    middle = distil((student + other) / 2, teacher, label)
    assert middle <= (loss + distil(other, teacher, label)) / 2 + 1e-12


def test_hessian_is_positive_semidefinite():
    hessian = torch.autograd.functional.hessian(lambda s: distil(s, TEACHER, LABEL), STUDENT)
    assert torch.linalg.eigvalsh(hessian).min() > -1e-12


def test_relevance_is_a_constant():
    relevance = draw(2, 4).requires_grad_()
    scores = draw(2, 4, seed=1).requires_grad_()
    for loss in (list_mle, list_net, lambda s, r: rank_net(s, r, targets="soft")):
        loss(scores, relevance).sum().backward()
    assert relevance.grad is None


@pytest.mark.parametrize("kind", ["whole", "partial", "masked"])
def test_gradcheck_of_steps(kind):
    scores = draw(3, 5).requires_grad_()
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0]]) if kind == "masked" else None
    ranking = ranking_of(draw(3, 5, seed=1), mask=mask)[:, : 3 if kind == "partial" else 5]
    assert torch.autograd.gradcheck(lambda s: plackett_luce_steps(s, ranking, mask=mask), scores)


@pytest.mark.parametrize("loss", ["mle", "net", "soft", "hard"])
def test_gradcheck_of_losses(loss):
    scores, relevance = draw(3, 4).requires_grad_(), draw(3, 4, seed=1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0]])
    functions = {
        "mle": lambda s: list_mle(s, relevance, mask=mask),
        "net": lambda s: list_net(s, relevance, mask=mask),
        "soft": lambda s: rank_net(s, relevance, targets="soft", mask=mask),
        "hard": lambda s: rank_net(s, relevance, targets="hard", mask=mask),
    }
    assert torch.autograd.gradcheck(functions[loss], scores)
    assert torch.autograd.gradgradcheck(functions[loss], scores)


LISTS = {
    "mle": list_mle,
    "net": list_net,
    "soft": lambda *a, **k: rank_net(*a, targets="soft", **k),
    "hard": lambda *a, **k: rank_net(*a, targets="hard", **k),
    "weighted": lambda s, r, *, mask=None, **k: plackett_luce_loss(
        s,
        ranking_of(r, mask=mask),
        weights=tempered_log_probs(r).exp().gather(-1, ranking_of(r, mask=mask)),
        mask=mask,
        **k,
    ),
}


@pytest.mark.parametrize("name", [n for n in LISTS if n != "weighted"])
def test_padded_items_and_lists_change_nothing(name):
    scores, relevance = draw(3, 4), draw(3, 4, seed=1)
    wide_scores, wide_relevance = torch.full((5, 7), math.nan).double(), torch.full((5, 7), math.inf).double()
    mask = torch.zeros(5, 7, dtype=torch.bool)
    places = torch.tensor([0, 2, 3, 6])  # padding between the items as well as behind them
    for row in range(3):
        wide_scores[row, places], wide_relevance[row, places], mask[row, places] = scores[row], relevance[row], True
    wide_scores.requires_grad_()
    want = LISTS[name](scores, relevance)
    got = LISTS[name](wide_scores, wide_relevance, mask=mask)
    torch.testing.assert_close(got[:3], want, rtol=0, atol=1e-12)
    assert (got[3:] == 0).all()
    mean = LISTS[name](wide_scores, wide_relevance, mask=mask, reduction="mean")
    torch.testing.assert_close(mean, want.mean(), rtol=0, atol=1e-12)
    mean.backward()
    assert (wide_scores.grad[~mask] == 0).all()
    assert wide_scores.grad[mask].isfinite().all()


def test_weights_at_padded_positions_are_not_read():
    mask = torch.tensor([True, True, False])
    ranking, weights = torch.tensor([1, 0, 2]), torch.tensor([0.5, 0.5, math.nan]).double()
    scores = torch.tensor([0.3, -0.2, math.nan], dtype=torch.float64, requires_grad=True)
    loss = plackett_luce_loss(scores, ranking, weights=weights, mask=mask)
    torch.testing.assert_close(loss, 0.5 * torch.nn.functional.softplus(torch.tensor(0.5).double()))
    loss.backward()
    assert scores.grad.isfinite().all()


def test_list_net_is_kl_plus_entropy():
    scores, relevance = draw(6, 5), draw(6, 5, seed=1)
    log_p = relevance.log_softmax(-1)
    entropy = torch.distributions.Categorical(logits=relevance).entropy()
    want = forward_kl(log_p, scores.log_softmax(-1)) + entropy
    torch.testing.assert_close(list_net(scores, relevance), want)


def test_rank_net_numbers():
    scores, teacher = torch.tensor([2.0, 1.0, 0.0]).double(), torch.tensor([3.0, 0.0, 0.0]).double()
    labels = torch.tensor([1.0, 0.0, 0.0]).double()
    assert rank_net(scores, teacher, targets="soft").item() == pytest.approx(0.4652430, abs=1e-6)
    assert rank_net(scores, labels, targets="soft").item() == pytest.approx(0.6867586, abs=1e-6)
    assert rank_net(teacher, teacher, targets="soft").item() == pytest.approx(0.3582924, abs=1e-6)
    # Hard: two pairs, the tie is dropped.
    want = torch.nn.functional.softplus(torch.tensor([-1.0, -2.0]).double()).mean()
    torch.testing.assert_close(rank_net(scores, labels, targets="hard"), want)
    assert rank_net(scores, torch.ones(3).double(), targets="hard", reduction="sum").item() == 0.0


def test_rank_net_of_two_items_has_the_gradient_of_the_kl():
    scores, teacher = draw(2).requires_grad_(), draw(2, seed=1)
    (mine,) = torch.autograd.grad(rank_net(scores, teacher, targets="soft"), scores)
    (kl,) = torch.autograd.grad(forward_kl(teacher.log_softmax(-1), scores.log_softmax(-1)), scores)
    torch.testing.assert_close(mine, kl)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LISTS)
def test_scores_of_ten_thousand(name, dtype):
    scores = torch.tensor([[1e4, -1e4, 0.0, 9e3], [-1e4, -1e4, -1e4, 1e4]], dtype=dtype, requires_grad=True)
    relevance = torch.tensor([[-1e4, 1e4, 3.0, 0.0], [1e4, 0.0, 1.0, -1e4]], dtype=dtype)
    value = LISTS[name](scores, relevance)
    assert value.isfinite().all()
    (grad,) = torch.autograd.grad(value.sum(), scores)
    assert grad.isfinite().all()
    assert grad.abs().max() <= 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LISTS)
def test_half_precision_is_computed_in_float32(name, dtype):
    scores, relevance = draw(3, 50, dtype=dtype), draw(3, 50, seed=1, dtype=dtype)
    value = LISTS[name](scores, relevance)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), LISTS[name](scores.double(), relevance.double()), rtol=1e-5, atol=1e-5)


def test_ties_keep_the_order_of_the_items():
    assert ranking_of(torch.tensor([1.0, 2.0, 1.0, 2.0])).tolist() == [1, 3, 0, 2]
    assert ranking_of(torch.tensor([1.0, 2.0, 1.0, 2.0]), mask=torch.tensor([1, 0, 1, 1])).tolist() == [3, 0, 2, 1]


def test_samples_follow_the_model():
    scores = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    sample = sample_plackett_luce(scores, (60_000,), generator=generator)
    for ranking in itertools.permutations(range(3)):
        expected = plackett_luce_log_prob(scores, torch.tensor(ranking)).exp().item()
        seen = (sample == torch.tensor(ranking)).all(-1).double().mean().item()
        assert abs(seen - expected) < 4 * math.sqrt(expected * (1 - expected) / 60_000)


def test_samples_put_absent_items_last_and_have_the_shape():
    mask = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0]])
    sample = sample_plackett_luce(draw(2, 4) + 50, (5, 3), mask=mask, generator=torch.Generator().manual_seed(0))
    assert sample.shape == (5, 3, 2, 4)
    assert (sample.sort(-1).values == torch.arange(4)).all()
    assert (sample[..., 0, 3] == 1).all()
    assert (sample[..., 1, 2:].sort(-1).values == torch.tensor([0, 3])).all()


def test_vmap_and_strided_input():
    scores, ranking = draw(6, 4).t(), ranking_of(draw(4, 6, seed=1))
    want = plackett_luce_log_prob(scores, ranking)
    torch.testing.assert_close(torch.func.vmap(plackett_luce_log_prob)(scores, ranking), want)
    torch.testing.assert_close(plackett_luce_log_prob(scores.contiguous(), ranking), want)
    expanded = plackett_luce_log_prob(scores[:1].expand(4, 6), ranking)
    torch.testing.assert_close(expanded[0], want[0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plackett_luce_steps(STUDENT, torch.tensor([0, 1, 2, 3, 0])), ValueError, "does not fit"),
        (lambda: plackett_luce_steps(STUDENT, torch.tensor([0.0, 1.0])), TypeError, "integer dtype"),
        (
            lambda: plackett_luce_steps(STUDENT, LABEL.expand(4), mask=torch.ones(3).bool()),
            ValueError,
            "mask has shape",
        ),
        (lambda: ranking_of(TEACHER, first=torch.tensor([1, 2])), ValueError, "first has shape"),
        (lambda: rank_net(STUDENT, TEACHER, targets="label"), ValueError, "targets='label' is unknown"),
        (lambda: rank_net(STUDENT, TEACHER[:3], targets="hard"), ValueError, "must have one shape"),
        (lambda: list_net(STUDENT, TEACHER[:3]), ValueError, "must have one shape"),
        (lambda: list_mle(torch.zeros(0), torch.zeros(0)), ValueError, "at least one item"),
        (lambda: list_mle(STUDENT, TEACHER, reduction="batchmean"), ValueError, "reduction='batchmean' is unknown"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
