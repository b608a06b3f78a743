"""Transport against linear programs, POT, geomloss, scipy and closed forms; marginals, limits, and both gradients."""

import itertools
import math

import geomloss
import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment, linprog
from scipy.stats import wasserstein_distance

from relent.divergences.transport import (
    batch_wise_cost,
    pairwise_cost,
    sample_wise_cost,
    sinkhorn,
    sinkhorn_divergence,
    sinkhorn_loss,
    wasserstein_1d,
    wasserstein_ordered,
)

EXACT = {"max_iterations": 20_000, "tolerance": 1e-12}


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def masses(*shape, seed=0):
    return (0.7 * draw(*shape, seed=seed)).softmax(-1)


def squared(n=7, m=5, *, seed=0, batch=()):
    return pairwise_cost(draw(*batch, n, 2, seed=seed), draw(*batch, m, 2, seed=seed + 1), metric="squared_euclidean")


def linear_program(cost, a, b):
    n, m = cost.shape
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    return linprog(cost.numpy().ravel(), A_eq=np.vstack((rows, columns)), b_eq=np.concatenate((a, b))).fun


def test_marginals_and_the_form_of_the_plan():
    cost, a, b = squared(batch=(3,)), masses(3, 7, seed=2), masses(3, 5, seed=3)
    found = sinkhorn(cost, a, b, epsilon=1.0, **EXACT)
    torch.testing.assert_close(found.plan.sum(-1), a, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.plan.sum(-2), b, rtol=0, atol=1e-14)
    exponent = (found.source_potential[..., None] + found.target_potential[..., None, :] - cost) / 1.0
    torch.testing.assert_close(found.plan, a[..., None] * b[..., None, :] * exponent.exp())
    assert (found.marginal_error <= 1e-12).all()
    assert found.iterations < 20_000


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 5.0])
def test_against_pot(epsilon):
    cost, a, b = squared(), masses(7, seed=2), masses(5, seed=3)
    peer, log = ot.bregman.sinkhorn_log(
        a.numpy(), b.numpy(), cost.numpy(), epsilon, numItermax=20_000, stopThr=1e-14, log=True
    )
    found = sinkhorn(cost, a, b, epsilon=epsilon, **EXACT)
    torch.testing.assert_close(found.plan, torch.from_numpy(peer), rtol=1e-8, atol=1e-12)
    value = sinkhorn_loss(cost, a, b, epsilon=epsilon, value="objective", gradient="envelope", **EXACT)
    relative = (peer * np.log(peer / np.outer(a, b))).sum()
    assert value.item() == pytest.approx((peer * cost.numpy()).sum() + epsilon * relative, rel=1e-9)
    # POT's potentials are log scalings of exp(−C/ε), without the reference measure.
    shift = found.source_potential / epsilon + a.log() - torch.from_numpy(log["log_u"])
    assert (shift - shift[0]).abs().max() < 1e-7


@pytest.mark.parametrize(("p", "scale"), [(1, 1.0), (2, 0.5)])
def test_divergence_against_geomloss(p, scale):
    x, y, a, b = draw(9, 2), draw(8, 2, seed=1) + 0.5, masses(9, seed=2), masses(8, seed=3)
    blur = 0.4
    peer = geomloss.SamplesLoss("sinkhorn", p=p, blur=blur, scaling=0.995, debias=True, backend="tensorized")(
        a, x, b, y
    )
    metric = "euclidean" if p == 1 else "squared_euclidean"
    costs = [scale * pairwise_cost(u, v, metric=metric) for u, v in ((x, y), (x, x), (y, y))]
    mine = sinkhorn_divergence(
        *costs, a, b, epsilon=blur**p, value="objective", gradient="envelope", max_iterations=20_000, tolerance=1e-10
    )
    assert mine.item() == pytest.approx(peer.item(), rel=2e-3)


@pytest.mark.parametrize("seed", range(3))
def test_small_epsilon_is_the_linear_program(seed):
    cost, a, b = squared(12, 9, seed=seed), masses(12, seed=seed + 5), masses(9, seed=seed + 6)
    want = linear_program(cost, a, b)
    options = {"epsilon": 1e-3, "gradient": "envelope", "anneal": True, "max_iterations": 10_000, "tolerance": 1e-4}
    value = sinkhorn_loss(cost, a, b, value="cost", **options)
    objective = sinkhorn_loss(cost, a, b, value="objective", **options)
    assert value.item() == pytest.approx(want, abs=2e-3)
    # The regularised minimum exceeds the program by at most ε times the largest relative entropy of a plan.
    assert want - 1e-3 <= objective.item() <= want + 1e-3 * (-a.log().min() - b.log().min()).item()


def test_assignment_limit():
    cost = batch_wise_cost((3 * draw(6, 5)).softmax(-1), (3 * draw(6, 5, seed=1)).softmax(-1))
    rows, columns = linear_sum_assignment(cost.numpy())
    ones = torch.ones(6).double()
    value = sinkhorn_loss(
        cost, ones, ones, epsilon=2e-3, value="cost", gradient="envelope", anneal=True, max_iterations=50_000
    )
    assert value.item() == pytest.approx(cost.numpy()[rows, columns].sum(), abs=1e-2)


def test_infinite_epsilon_is_the_product_of_the_marginals():
    cost, a, b = squared(), masses(7, seed=2), masses(5, seed=3)
    found = sinkhorn(cost, a, b, epsilon=1e7, **EXACT)
    torch.testing.assert_close(found.plan, torch.outer(a, b), rtol=1e-5, atol=0)


def test_two_points_in_closed_form():
    """Uniform 2 × 2 with cost 0 on the diagonal and c off it: P₁₁ = σ(c/ε)/2."""
    cost = torch.tensor([[0.0, 0.7], [0.7, 0.0]], dtype=torch.float64)
    found = sinkhorn(cost, epsilon=0.2, **EXACT)
    stay = torch.tensor(0.7 / 0.2).double().sigmoid()
    torch.testing.assert_close(found.plan.diagonal(), stay.expand(2) / 2)
    value = sinkhorn_loss(cost, epsilon=0.2, value="cost", gradient="envelope", **EXACT)
    torch.testing.assert_close(value, 0.7 * (1 - stay))


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(1, 8), st.floats(0.1, 10.0))
@settings(max_examples=25, deadline=None)
def test_symmetry_translation_scaling_and_permutation(seed, n, m, epsilon):
    cost, a, b = squared(n, m, seed=seed), masses(n, seed=seed + 2), masses(m, seed=seed + 3)
    options = {"gradient": "envelope", "max_iterations": 5000, "tolerance": 1e-11}
    for value in ("cost", "objective"):
        loss = sinkhorn_loss(cost, a, b, epsilon=epsilon, value=value, **options)
        close = {"rtol": 1e-6, "atol": 1e-8}
        turned = sinkhorn_loss(cost.T, b, a, epsilon=epsilon, value=value, **options)
        torch.testing.assert_close(turned, loss, **close)
        shifted = sinkhorn_loss(cost + 3.0, a, b, epsilon=epsilon, value=value, **options)
        torch.testing.assert_close(shifted, loss + 3.0, **close)
        scaled = sinkhorn_loss(2 * cost, a, b, epsilon=2 * epsilon, value=value, **options)
        torch.testing.assert_close(scaled, 2 * loss, **close)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(
            sinkhorn_loss(cost[order], a[order], b, epsilon=epsilon, value=value, **options), loss, **close
        )
    assert loss <= (cost * torch.outer(a, b)).sum() + 1e-9  # the product of the marginals is one of the plans


@given(st.integers(0, 10_000), st.floats(0.1, 3.0))
@settings(max_examples=25, deadline=None)
def test_divergence_is_zero_iff_equal_and_not_negative(seed, epsilon):
    x, y, a, b = draw(6, 2, seed=seed), draw(5, 2, seed=seed + 1), masses(6, seed=seed + 2), masses(5, seed=seed + 3)
    costs = [pairwise_cost(u, v, metric="squared_euclidean") for u, v in ((x, y), (x, x), (y, y))]
    options = {"value": "objective", "gradient": "envelope", "max_iterations": 20_000, "tolerance": 1e-9}
    assert sinkhorn_divergence(*costs, a, b, epsilon=epsilon, **options) > 0
    same = sinkhorn_divergence(costs[1], costs[1], costs[1], a, a, epsilon=epsilon, **options)
    assert abs(same.item()) < 1e-7


@pytest.mark.parametrize("value", ["cost", "objective"])
@pytest.mark.parametrize("iterations", [1, 7, 25])
def test_scaling_and_log_domain_give_the_same_iterates(value, iterations):
    """The envelope's solver scales plans, the unrolled one stays in the log domain: the same iterates."""
    cost, a, b = squared(9, 6, batch=(4,)), masses(4, 9, seed=2), masses(4, 6, seed=3)
    fixed = {"epsilon": 0.05, "value": value, "max_iterations": iterations, "tolerance": 0.0}
    cost.requires_grad_()
    values = [sinkhorn_loss(cost, a, b, gradient=gradient, **fixed) for gradient in ("envelope", "unrolled")]
    torch.testing.assert_close(*values, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("gradient", ["envelope", "unrolled"])
def test_averaged_updates_find_the_same_symmetric_solution_sooner(gradient):
    points, a = draw(8, 2), masses(8, seed=2)
    cost = pairwise_cost(points, points, metric="squared_euclidean").requires_grad_()
    options = {"epsilon": 0.1, "gradient": gradient, "max_iterations": 3000, "tolerance": 1e-10}
    averaged, alternating = sinkhorn(cost, a, symmetric=True, **options), sinkhorn(cost, a, a, **options)
    assert (averaged.marginal_error <= 1e-10).all()
    assert averaged.iterations * 5 < alternating.iterations
    torch.testing.assert_close(averaged.plan, alternating.plan, rtol=0, atol=1e-8)
    torch.testing.assert_close(averaged.source_potential, averaged.target_potential, rtol=0, atol=1e-8)
    if gradient == "unrolled":
        value = sinkhorn_loss(cost, a, symmetric=True, value="objective", **options)
        torch.testing.assert_close(torch.autograd.grad(value, cost)[0], averaged.plan.detach(), rtol=0, atol=1e-8)


def test_symmetric_scaling_gives_the_iterates_of_the_log_domain():
    cost, a = batch_wise_cost(draw(3, 6, 2), draw(3, 6, 2)), masses(3, 6, seed=2)
    cost = cost.requires_grad_()
    fixed = {"epsilon": 0.2, "symmetric": True, "max_iterations": 17, "tolerance": 0.0}
    plans = [sinkhorn(cost, a, gradient=gradient, **fixed).plan for gradient in ("envelope", "unrolled")]
    torch.testing.assert_close(*plans, rtol=1e-10, atol=1e-14)


def test_objective_rises_to_its_maximum():
    cost, a, b = squared(), masses(7, seed=2), masses(5, seed=3)
    fixed = {"epsilon": 0.05, "value": "objective", "gradient": "envelope", "tolerance": 0.0}
    values = [sinkhorn_loss(cost, a, b, max_iterations=k, **fixed).item() for k in (1, 2, 5, 20, 100, 1000)]
    assert all(later >= earlier - 1e-13 for earlier, later in itertools.pairwise(values))


@pytest.mark.parametrize("value", ["cost", "objective"])
def test_gradcheck_unrolled(value):
    cost, a, b = squared(4, 3).requires_grad_(), masses(4, seed=2).requires_grad_(), masses(3, seed=3).requires_grad_()
    options = {"epsilon": 0.5, "value": value, "gradient": "unrolled", "max_iterations": 5, "tolerance": 0.0}
    # Only directions that keep the masses equal are allowed, hence the normalisation.
    assert torch.autograd.gradcheck(lambda c, a, b: sinkhorn_loss(c, a / a.sum(), b / b.sum(), **options), (cost, a, b))


def test_gradcheck_envelope_of_the_objective():
    cost, a, b = squared(4, 3).requires_grad_(), masses(4, seed=2).requires_grad_(), masses(3, seed=3).requires_grad_()
    options = {"epsilon": 0.5, "value": "objective", "gradient": "envelope", **EXACT}
    normalised = lambda c, a, b: sinkhorn_loss(c, a / a.sum(), b / b.sum(), **options)  # noqa: E731
    assert torch.autograd.gradcheck(normalised, (cost, a, b), atol=1e-7)


def test_gradients_agree_at_convergence_for_the_objective_only():
    cost, a, b = squared().requires_grad_(), masses(7, seed=2), masses(5, seed=3)
    grads = {}
    for value in ("cost", "objective"):
        for gradient in ("envelope", "unrolled"):
            options = {"epsilon": 0.5, "max_iterations": 300, "tolerance": 0.0}
            loss = sinkhorn_loss(cost, a, b, value=value, gradient=gradient, **options)
            (grads[value, gradient],) = torch.autograd.grad(loss, cost)
    plan = sinkhorn(cost, a, b, epsilon=0.5, max_iterations=300, tolerance=0.0).plan
    torch.testing.assert_close(grads["objective", "unrolled"], plan, rtol=0, atol=1e-10)
    torch.testing.assert_close(grads["objective", "envelope"], plan)
    torch.testing.assert_close(grads["cost", "envelope"], plan)
    assert (grads["cost", "unrolled"] - plan).norm() > 0.05 * plan.norm()


def test_potentials_are_the_gradient_for_the_marginals():
    cost, b = squared(), masses(5, seed=3)
    logits = (0.7 * draw(7, seed=2)).requires_grad_()
    options = {"epsilon": 0.5, "value": "objective", "max_iterations": 500, "tolerance": 0.0}
    grads = [
        torch.autograd.grad(sinkhorn_loss(cost, logits.softmax(-1), b, gradient=g, **options), logits)[0]
        for g in ("envelope", "unrolled")
    ]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-10)


def test_second_order_of_unrolled_objective():
    cost = squared(3, 3).requires_grad_()
    options = {"epsilon": 0.5, "value": "objective", "gradient": "unrolled", "max_iterations": 4, "tolerance": 0.0}
    assert torch.autograd.gradgradcheck(lambda c: sinkhorn_loss(c, **options), cost)


@pytest.mark.parametrize("gradient", ["envelope", "unrolled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [1e-4, 1e-2, 1.0])
def test_large_costs_and_small_epsilon_stay_finite(epsilon, dtype, gradient):
    cost = (1e4 * torch.rand(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).to(dtype)
    cost.requires_grad_()
    for value in ("cost", "objective"):
        loss = sinkhorn_loss(cost, epsilon=epsilon, value=value, gradient=gradient, max_iterations=60)
        (grad,) = torch.autograd.grad(loss, cost)
        assert loss.isfinite()
        assert grad.isfinite().all()
    with torch.no_grad():
        found = sinkhorn(cost, epsilon=epsilon, max_iterations=60)
    assert found.plan.isfinite().all()


def test_annealing_converges_where_plain_iterations_do_not():
    cost, a, b = 1e4 * squared(15, 15), masses(15, seed=2), masses(15, seed=3)
    options = {"epsilon": 1.0, "max_iterations": 3000, "tolerance": 1e-6}
    plain, annealed = (sinkhorn(cost, a, b, anneal=anneal, **options) for anneal in (False, True))
    assert annealed.marginal_error <= 1e-6 or annealed.marginal_error < 0.1 * plain.marginal_error
    value = (annealed.plan * cost).sum()
    assert value.item() == pytest.approx(linear_program(cost, a, b), rel=1e-3)


@pytest.mark.parametrize("gradient", ["envelope", "unrolled"])
def test_points_without_mass_are_as_if_absent(gradient):
    cost, a, b = squared(), masses(7, seed=2), masses(5, seed=3)
    a[[1, 4]], b[2] = 0.0, 0.0
    a, b = a / a.sum(), b / b.sum()
    options = {"epsilon": 0.3, "value": "objective", "gradient": gradient, "max_iterations": 400, "tolerance": 1e-10}
    padded = cost.clone().requires_grad_()
    small = cost[a > 0][:, b > 0].clone().requires_grad_()
    values = sinkhorn_loss(padded, a, b, **options), sinkhorn_loss(small, a[a > 0], b[b > 0], **options)
    torch.testing.assert_close(*values, rtol=0, atol=1e-9)
    grads = torch.autograd.grad(values[0], padded)[0], torch.autograd.grad(values[1], small)[0]
    torch.testing.assert_close(grads[0][a > 0][:, b > 0], grads[1], rtol=0, atol=1e-9)
    assert grads[0][a == 0].abs().max() == 0


def test_batch_equals_its_items():
    cost, a, b = squared(batch=(2, 3)), masses(2, 3, 7, seed=2), masses(5, seed=3)
    options = {"epsilon": 0.2, "value": "cost", "gradient": "envelope", **EXACT}
    values = sinkhorn_loss(cost, a, b, **options)
    assert values.shape == (2, 3)
    one = torch.stack([sinkhorn_loss(c, w, b, **options) for c, w in zip(cost.flatten(0, 1), a.flatten(0, 1))])
    torch.testing.assert_close(values.flatten(), one, rtol=1e-9, atol=1e-10)


def test_half_precision_is_computed_in_float32():
    cost = squared().to(torch.bfloat16)
    options = {"epsilon": 0.5, "value": "cost", "gradient": "envelope", "max_iterations": 50, "tolerance": 0.0}
    value = sinkhorn_loss(cost, **options)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), sinkhorn_loss(cost.double(), **options), rtol=1e-5, atol=1e-6)


# The Sinkhorn distillation loss of arXiv 2402.17110: unit marginals, ε = 0.1, 20 iterations, gradient through them.


def sinkd(student, teacher, *, iterations=20, epsilon=0.1, gradient="unrolled", cost=batch_wise_cost):
    costs = cost((student / 2).softmax(-1), (teacher / 2).softmax(-1))
    ones = costs.new_ones(costs.shape[-1])
    return sinkhorn_loss(
        costs, ones, ones, epsilon=epsilon, value="cost", gradient=gradient, max_iterations=iterations, tolerance=0.0
    )


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_batch_wise_distillation_numbers():
    one = sinkd(rows([1, 0, -1]), rows([2, 0, -2]))
    assert one.item() == pytest.approx(0.3175211294, abs=1e-9)
    student, teacher = rows([2, 0], [0, 2]), rows([4, 0], [0, 4])
    cost = batch_wise_cost((student / 2).softmax(-1), (teacher / 2).softmax(-1))
    torch.testing.assert_close(
        cost, rows([0.2994769987, 1.2237113132], [1.2237113132, 0.2994769987]), rtol=0, atol=1e-9
    )
    ones = torch.ones(2).double()
    plan = sinkhorn(cost, ones, ones, epsilon=0.1, max_iterations=20, tolerance=0.0).plan
    assert plan[0, 0].item() == pytest.approx(0.9999031590, abs=1e-9)
    assert plan[0, 1].item() == pytest.approx(9.6841e-5, abs=1e-9)
    assert sinkd(student, teacher).item() == pytest.approx(0.5991330050, abs=1e-9)
    assert sinkd(student, teacher.flip(0)).item() == pytest.approx(0.5991330050, abs=1e-9)
    # The blur of a plan that is not debiased.
    assert sinkd(teacher, teacher).item() == pytest.approx(7.39e-7, rel=1e-3)


def test_batch_wise_distillation_properties():
    student, teacher = 3 * draw(6, 5), 3 * draw(6, 5, seed=1)
    loss = sinkd(student, teacher)
    assert 0 <= loss <= 12
    torch.testing.assert_close(sinkd(student + 4, teacher - 3), loss)
    twice = sinkd(student.repeat(2, 1), teacher.repeat(2, 1), iterations=3)
    torch.testing.assert_close(twice, 2 * sinkd(student, teacher, iterations=3))
    assert sinkd(rows([1, 2], [1, 2]), rows([1, 2], [1, 2])).item() == pytest.approx(0.0, abs=1e-15)
    cost = batch_wise_cost((student / 2).softmax(-1), (teacher / 2).softmax(-1))
    ones = torch.ones(6).double()
    plan = sinkhorn(cost, ones, ones, epsilon=0.1, max_iterations=20, tolerance=0.0).plan
    torch.testing.assert_close(plan.sum(0), ones, rtol=0, atol=1e-12)
    assert 1e-12 < (plan.sum(1) - 1).abs().max() < 0.1


@pytest.mark.parametrize(("a", "norm"), [(4, 0.159), (8, 3.19e-2), (16, 6.27e-4)])
def test_batch_wise_distillation_gradient_under_little_overlap(a, norm):
    student = rows([a, 0, 0]).requires_grad_()
    sinkd(student, rows([0, a, 0])).backward()
    assert student.grad.norm().item() == pytest.approx(norm, rel=5e-3)


def test_sample_wise_distillation_number():
    value = sinkd(rows([1, 0, -1]), rows([2, 0, -2]), cost=sample_wise_cost)
    assert value.shape == (1,)
    assert value.item() == pytest.approx(0.4147259804, abs=1e-9)


def test_detached_plan_changes_the_gradient_and_not_the_value():
    student, teacher = (3 * draw(6, 5)).requires_grad_(), 3 * draw(6, 5, seed=1)
    values = [sinkd(student, teacher, gradient=g) for g in ("unrolled", "envelope")]
    torch.testing.assert_close(*values)
    through, detached = (torch.autograd.grad(v, student)[0] for v in values)
    assert 0.02 < (through - detached).norm() / through.norm() < 0.5


@pytest.mark.parametrize("metric", ["l1", "euclidean", "squared_euclidean"])
def test_pairwise_costs(metric):
    x, y = draw(2, 4, 3).requires_grad_(), draw(2, 5, 3, seed=1)
    gap = x[:, :, None] - y[:, None]
    want = {"l1": gap.abs().sum(-1), "euclidean": gap.norm(dim=-1), "squared_euclidean": gap.square().sum(-1)}[metric]
    torch.testing.assert_close(pairwise_cost(x, y, metric=metric), want)
    assert torch.autograd.gradcheck(lambda x: pairwise_cost(x, y, metric=metric), x)
    (grad,) = torch.autograd.grad(pairwise_cost(x, x.detach(), metric=metric).diagonal(dim1=1, dim2=2).sum(), x)
    assert (grad == 0).all()
    close = torch.full((1, 3), 1e4).double()
    near = pairwise_cost(close, close + 1e-4, metric=metric).item()
    assert near == pytest.approx(
        {"l1": 3e-4, "euclidean": math.sqrt(3) * 1e-4, "squared_euclidean": 3e-8}[metric], rel=1e-6
    )


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 2]))
@settings(max_examples=40, deadline=None)
def test_wasserstein_on_the_line_against_pot_and_scipy(seed, n, m, p):
    x, y, a, b = draw(n, seed=seed), draw(m, seed=seed + 1), masses(n, seed=seed + 2), masses(m, seed=seed + 3)
    for weights in ((None, None), (a, b)):
        value = wasserstein_1d(x, y, *weights, p=p)
        peer = ot.wasserstein_1d(x.numpy(), y.numpy(), *(None if w is None else w.numpy() for w in weights), p=p)
        assert value.item() == pytest.approx(float(np.squeeze(peer)), rel=1e-9, abs=1e-12)
    if p == 1:
        assert value.item() == pytest.approx(wasserstein_distance(x, y, a, b), rel=1e-9, abs=1e-12)
    torch.testing.assert_close(wasserstein_1d(y, x, b, a, p=p), value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(wasserstein_1d(x + 2, y + 2, 3 * a, 5 * b, p=p), value, rtol=1e-9, atol=1e-12)
    same = wasserstein_1d(x, x.flip(-1), a, a.flip(-1), p=p)
    assert same.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("p", [1, 2])
def test_wasserstein_on_the_line_is_the_linear_program(p):
    x, y, a, b = draw(6), draw(4, seed=1), masses(6, seed=2), masses(4, seed=3)
    a[2] = 0.0
    a = a / a.sum()
    cost = (x[:, None] - y).abs() ** p
    assert wasserstein_1d(x, y, a, b, p=p).item() == pytest.approx(linear_program(cost, a, b), rel=1e-9)


@pytest.mark.parametrize("p", [1, 2])
def test_wasserstein_on_the_line_gradients_and_batch(p):
    x, y = draw(2, 5).requires_grad_(), draw(2, 4, seed=1).requires_grad_()
    a, b = masses(2, 5, seed=2).requires_grad_(), masses(2, 4, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda *args: wasserstein_1d(*args, p=p), (x, y, a, b))
    assert torch.autograd.gradcheck(lambda x, y: wasserstein_1d(x, y[:, :1].expand(2, 5), p=p), (x, y))
    value = wasserstein_1d(x, y, a, b, p=p)
    for i in range(2):
        torch.testing.assert_close(value[i], wasserstein_1d(x[i], y[i], a[i], b[i], p=p))


def test_wasserstein_of_normal_samples():
    """Quantiles of two normal laws: W₂² = (μ − ν)² + (σ − τ)²."""
    quantiles = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
    assert wasserstein_1d(quantiles, 1.5 + 2 * quantiles, p=2).item() == pytest.approx(1.5**2 + 1.0, rel=1e-3)


@given(st.integers(0, 10_000), st.integers(1, 10))
@settings(max_examples=25, deadline=None)
def test_wasserstein_of_ordered_classes(seed, classes):
    p, q = masses(2, classes, seed=seed), masses(2, classes, seed=seed + 1)
    support = masses(classes, seed=seed + 2).cumsum(-1)
    for power in (1, 2):
        value = wasserstein_ordered(p.log(), q.log(), support=support, p=power)
        peer = [
            ot.wasserstein_1d(support.numpy(), support.numpy(), u.numpy(), w.numpy(), p=power) for u, w in zip(p, q)
        ]
        torch.testing.assert_close(value, torch.tensor(np.array(peer).reshape(2)), rtol=1e-8, atol=1e-12)


def test_wasserstein_of_ordered_classes_counts_steps():
    sure = torch.full((5,), -math.inf).double()
    first, last = sure.clone(), sure.clone()
    first[0] = last[-1] = 0.0
    assert wasserstein_ordered(first, last, p=1).item() == 4.0
    assert wasserstein_ordered(first, last, p=2).item() == 16.0
    logits, target = draw(3, 5).requires_grad_(), draw(3, 5, seed=1).log_softmax(-1)
    assert torch.autograd.gradcheck(lambda z: wasserstein_ordered(target, z.log_softmax(-1), p=1), logits)
    assert torch.autograd.gradcheck(lambda z: wasserstein_ordered(target, z.log_softmax(-1), p=2), logits)


def test_torch_compile_and_vmap():
    cost = squared(4, 3).requires_grad_()
    options = {"epsilon": 0.3, "value": "cost", "gradient": "unrolled", "max_iterations": 5, "tolerance": 0.0}
    compiled = torch.compile(lambda c: sinkhorn_loss(c, **options), backend="eager")
    torch.testing.assert_close(compiled(cost), sinkhorn_loss(cost, **options))
    x, y = draw(4, 6), draw(4, 6, seed=1)
    mapped = torch.func.vmap(lambda u, v: wasserstein_1d(u, v, p=2))(x, y)
    torch.testing.assert_close(mapped, wasserstein_1d(x, y, p=2))


COST = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sinkhorn(COST, epsilon=0.0), "epsilon must be a positive"),
        (lambda: sinkhorn(torch.ones(3), epsilon=1.0), "cost must have shape"),
        (lambda: sinkhorn(COST, torch.ones(4), epsilon=1.0), "source has shape"),
        (lambda: sinkhorn(COST, torch.ones(3), torch.ones(4), epsilon=1.0), "equal mass"),
        (lambda: sinkhorn(COST, torch.tensor([1.0, -1.0, 1.0]), epsilon=1.0), "must not be negative"),
        (lambda: sinkhorn(COST, torch.zeros(3), torch.zeros(4), epsilon=1.0), "must have mass"),
        (lambda: sinkhorn(COST, epsilon=1.0, max_iterations=0), "max_iterations >= 1"),
        (lambda: sinkhorn(COST, epsilon=1.0, tolerance=-1.0), "tolerance >= 0"),
        (lambda: sinkhorn(COST, torch.ones(3), torch.ones(4), epsilon=1.0, symmetric=True), "one marginal"),
        (lambda: sinkhorn(COST, epsilon=1.0, gradient="implicit"), "gradient='implicit' is unknown"),
        (lambda: sinkhorn_loss(COST, epsilon=1.0, value="plan", gradient="envelope"), "value='plan' is unknown"),
        (lambda: pairwise_cost(COST, torch.ones(2, 3), metric="l1"), "expected points"),
        (lambda: pairwise_cost(COST, COST, metric="cosine"), "metric='cosine' is unknown"),
        (lambda: wasserstein_1d(torch.ones(3), torch.ones(3), p=3), "p must be 1 or 2"),
        (lambda: wasserstein_1d(torch.ones(3), torch.ones(2, 3), p=1), "expected points"),
        (lambda: wasserstein_1d(torch.ones(3), torch.ones(3), torch.ones(2), p=1), "source_weights has shape"),
        (lambda: wasserstein_1d(torch.ones(3), torch.ones(3), -torch.ones(3), p=1), "must not be negative"),
        (lambda: wasserstein_ordered(torch.ones(3), torch.ones(4), p=1), "of one shape"),
        (lambda: wasserstein_ordered(torch.ones(3), torch.ones(3), support=torch.ones(3), p=1), "and increase"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
