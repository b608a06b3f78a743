from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from relent.divergences import discrete
from relent.divergences.f_divergence import (
    FDivergence,
    alpha_divergence,
    f_divergence_names,
    get_f_divergence,
)

INF = math.inf
ENTRIES: dict[str, FDivergence] = {
    **{name: get_f_divergence(name) for name in f_divergence_names() if name != "alpha"},
    **{f"alpha({a})": alpha_divergence(a) for a in (-1.0, 0.0, 1e-9, 0.2, 0.5, 0.7, 1.0 - 1e-9, 1.0, 2.0)},
}
PLAIN: dict[str, Callable[..., Tensor]] = {
    "forward_kl": discrete.forward_kl,
    "reverse_kl": discrete.reverse_kl,
    "jensen_shannon": discrete.jensen_shannon,
    "jeffreys": discrete.jeffreys,
    "total_variation": discrete.total_variation,
    "squared_hellinger": discrete.squared_hellinger,
    "pearson_chi2": discrete.pearson_chi2,
    "neyman_chi2": discrete.neyman_chi2,
}
SMOOTH = [name for name in ENTRIES if name != "total_variation"]
ADMISSIBLE = [name for name, entry in ENTRIES.items() if entry.admissible]
each = pytest.mark.parametrize("name", list(ENTRIES))
RATIO = torch.logspace(-1.5, 1.5, 31, dtype=torch.float64)
U = torch.linspace(-4.0, 4.0, 33, dtype=torch.float64)
P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
PI = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def bare(entry: FDivergence) -> FDivergence:
    """The same divergence from its generator alone: everything else is derived."""
    return FDivergence(f"bare {entry.name}", entry.generator)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# --- each form against the generator --------------------------------------------------------------------------------


@each
def test_derivatives_equal_those_of_the_generator(name: str) -> None:
    entry, derived = ENTRIES[name], bare(ENTRIES[name])
    assert entry.f(torch.ones((), dtype=torch.float64)).abs() < 1e-14
    close(entry.f_prime(RATIO), derived.f_prime(RATIO), 1e-9)
    close(entry.f_second(RATIO), derived.f_second(RATIO), 1e-7)
    assert (entry.f_second(RATIO) >= 0).all()


@each
def test_log_space_forms_equal_those_derived_from_the_generator(name: str) -> None:
    entry, derived = ENTRIES[name], bare(ENTRIES[name])
    close(entry.dual_derivative(U), derived.dual_derivative(U), 1e-9)
    close(entry.pseudo_reward(U), -derived.dual_derivative(U), 1e-9)
    close(entry.density_weight(U), derived.density_weight(U), 1e-7)
    close(entry.sample_term(U), derived.sample_term(U), 1e-9)
    assert (entry.sample_term(U) >= -1e-12).all()
    assert entry.admissible == derived.admissible


@each
def test_dual_derivative_is_the_derivative_of_the_dual_generator(name: str) -> None:
    entry = ENTRIES[name]
    t = U.exp()
    if name == "total_variation":
        t = t[t != 1]
    slope = torch.func.grad(lambda x: (x * entry.f(1 / x)).sum())(t)
    close(entry.dual_derivative(t.log()), slope, 1e-9)


@pytest.mark.parametrize("name", ADMISSIBLE)
def test_slope_of_the_score_is_the_density_weight_at_the_inverse_ratio(name: str) -> None:
    entry = ENTRIES[name]
    slope = torch.func.grad(lambda u: entry.score(u).sum())(U)
    close(slope, entry.density_weight(-U), 1e-9)
    assert (slope > 0).all()
    assert entry.score(torch.zeros(3)).abs().max() == 0


@each
def test_conjugate_against_its_definition(name: str) -> None:
    entry, derived = ENTRIES[name], bare(ENTRIES[name])
    grid = torch.logspace(-6, 6, 400_001, dtype=torch.float64)
    values = entry.f(grid)
    slopes = entry.f_prime(torch.tensor([0.05, 0.4, 1.0, 2.5, 12.0], dtype=torch.float64))
    if name == "total_variation":
        slopes = torch.tensor([-2.0, -0.5, 0.0, 0.3, 0.5], dtype=torch.float64)
    supremum = torch.stack([(grid * y - values).max() for y in slopes])
    close(entry.conjugate(slopes), supremum, 1e-5)
    if name != "total_variation":
        close(derived.conjugate(slopes), entry.conjugate(slopes), 1e-9)
        y = slopes.clone().requires_grad_()
        (ratio,) = torch.autograd.grad(entry.conjugate(y).sum(), y)
        close(entry.f_prime(ratio), slopes, 1e-8)  # f*' inverts f'
        (ratio,) = torch.autograd.grad(derived.conjugate(y).sum(), y)
        close(entry.f_prime(ratio), slopes, 1e-8)


@each
def test_fenchel_young(name: str) -> None:
    entry = ENTRIES[name]
    y = entry.f_prime(RATIO)[:, None]
    gap = entry.f(RATIO) + entry.conjugate(y) - RATIO * y
    assert (gap >= -1e-8 * (1 + entry.f(RATIO).abs())).all()


@pytest.mark.parametrize("name", [name for name in ENTRIES if "1e-09" not in name and "0.99" not in name])
def test_conjugate_above_the_slope_at_infinity_and_below_the_slope_at_zero(name: str) -> None:
    entry = ENTRIES[name]
    zero, slope = entry.limits()
    if math.isfinite(slope):
        above = torch.tensor([slope + 0.01], dtype=torch.float64)
        assert entry.conjugate(above).item() == INF
        assert bare(entry).conjugate(above).item() == INF
    if math.isfinite(zero) and name not in ("forward_kl", "pearson_chi2_on_reals"):
        low = torch.tensor([-1e30], dtype=torch.float64)
        assert entry.conjugate(low).item() == pytest.approx(-zero, abs=1e-6)


@each
def test_limits_given_agree_with_limits_found(name: str) -> None:
    entry = ENTRIES[name]
    if name in ("alpha(1e-09)", f"alpha({1 - 1e-9})"):
        assert max(entry.limits()) == pytest.approx(1e9, rel=1e-6)  # finite, far beyond what a trend can show
        return
    assert bare(entry).limits() == pytest.approx(entry.limits(), abs=1e-9)


# --- values ---------------------------------------------------------------------------------------------------------


@each
def test_value_from_log_probabilities(name: str, rng: torch.Generator) -> None:
    entry = ENTRIES[name]
    p, q = torch.log_softmax(2 * torch.randn(2, 6, 5, generator=rng, dtype=torch.float64), -1)
    expected = (q.exp() * entry.f((p - q).exp())).sum(-1)
    close(entry.divergence(p, q), expected, 1e-9)
    close(bare(entry).divergence(p, q), expected, 1e-9)
    if name in PLAIN:
        close(entry.divergence(p, q), PLAIN[name](p, q), 1e-12)
    target_mean = (p.exp() * entry.sample_term(q - p)).sum(-1)
    close(target_mean, expected, 1e-9)


@each
def test_supports(name: str) -> None:
    entry = ENTRIES[name]
    p = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64).log()
    q = torch.tensor([0.25, 0.0, 0.75, 0.0], dtype=torch.float64).log()
    zero, slope = entry.limits()
    expected = 0.25 * entry.f(torch.tensor(2.0, dtype=torch.float64)).item() + 0.75 * zero + 0.5 * slope
    assert entry.divergence(p, q).item() == pytest.approx(expected, rel=1e-9)
    generic = FDivergence("generic", entry.generator, at_zero=zero, slope_at_infinity=slope)
    both = p.clone().requires_grad_()
    value = generic.divergence(both, q)
    assert value.item() == pytest.approx(expected, rel=1e-9)
    assert torch.isfinite(torch.autograd.grad(value, both)[0]).all()
    same = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).log()
    assert generic.divergence(same, same).item() == pytest.approx(0.0, abs=1e-12)


def test_masks_and_reduction_of_a_users_divergence() -> None:
    entry = FDivergence("user", lambda r: (r - 1).square())
    p, q = torch.log_softmax(torch.randn(2, 3, 4, dtype=torch.float64), -1)
    mask = torch.tensor([True, False, True])
    dirty = p.masked_fill(~mask[:, None], math.nan)
    expected = discrete.pearson_chi2(p, q)[mask].mean()
    close(entry.divergence(dirty, q, mask=mask, reduction="mean"), expected, 1e-12)
    with pytest.raises(ValueError, match="shapes differ"):
        entry.divergence(p, q[:, :2])


# --- published numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "loss", "slope"),
    [
        ("reverse_kl", 0.6563501408, -0.0481258784),
        ("forward_kl", 0.6598460819, -0.0292996224),
        ("jensen_shannon_unhalved", 0.6757088098, -0.0185449618),
        ("alpha(0.3)", 0.6576060848, -0.0414783682),
        ("alpha(0.5)", 0.6583400936, -0.0375607852),
        ("alpha(0.7)", 0.6589968326, -0.0340103554),
    ],
)
def test_preference_loss(name: str, loss: float, slope: float) -> None:
    entry = alpha_divergence(float(name[6:-1])) if name.startswith("alpha") else get_f_divergence(name)
    chosen = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    value = -F.logsigmoid(0.1 * (entry.score(chosen) - entry.score(torch.tensor(-0.25, dtype=torch.float64))))
    value.backward()
    assert value.item() == pytest.approx(loss, abs=1e-10)
    assert chosen.grad.item() == pytest.approx(slope, abs=1e-10)


def test_reverse_kl_score_is_the_log_ratio_bit_for_bit() -> None:
    u = torch.randn(100, dtype=torch.float64) * 1e3
    assert torch.equal(get_f_divergence("reverse_kl").score(u), u)
    assert torch.equal(alpha_divergence(0.0).score(u), u)
    assert torch.equal(alpha_divergence(1.0).score(U), get_f_divergence("forward_kl").score(U)) or torch.allclose(
        alpha_divergence(1.0).score(U), get_f_divergence("forward_kl").score(U), rtol=1e-14
    )


def test_scores_keep_their_digits_where_the_model_is_the_reference() -> None:
    u = torch.tensor([-1e-12, 1e-20, 1e-9], dtype=torch.float64)
    assert torch.equal(get_f_divergence("reverse_kl").scaled(2.0, "twice").score(u), 2.0 * u)
    assert torch.allclose(get_f_divergence("forward_kl").score(u), u - 0.5 * u**2, rtol=1e-15, atol=0)


@pytest.mark.parametrize("name", ADMISSIBLE)
def test_a_log_ratio_is_lowered_by_a_difference_of_scores(name: str) -> None:
    """Against scores, and against bisection of them; a gap of 0 changes nothing."""
    entry, gaps = ENTRIES[name], torch.linspace(0.0, 3.0, 7, dtype=torch.float64).unsqueeze(-1)
    lowered = entry.lower_log_ratio(U, gaps)
    close(entry.score(U) - entry.score(lowered), gaps.expand_as(lowered))
    close(lowered[0], U, 1e-12)
    close(lowered, bare(entry).lower_log_ratio(U, gaps), 1e-7)
    twice = entry.scaled(2.0, "twice")
    close(twice.lower_log_ratio(U, gaps), entry.lower_log_ratio(U, gaps / 2), 1e-14)


@pytest.mark.parametrize("name", ["forward_kl", "jensen_shannon", "alpha(0.5)"])
def test_a_log_ratio_at_the_end_of_the_range_of_scores_is_lowered_exactly(name: str) -> None:
    """At u = 60 the score is its supremum in float64; that of the lowered one is as far below it as was asked for."""
    entry = ENTRIES[name]
    gap = torch.logspace(-20, 1, 22, dtype=torch.float64)
    lowered = entry.lower_log_ratio(torch.tensor(60.0, dtype=torch.float64), gap)
    assert (lowered.diff() < 0).all()
    if name == "forward_kl":
        close(lowered, -(gap + math.exp(-60.0)).log(), 1e-13)


def test_what_has_no_score_cannot_be_lowered() -> None:
    with pytest.raises(ValueError, match="no f-DPO score"):
        get_f_divergence("total_variation").lower_log_ratio(U, U)


@pytest.mark.parametrize(
    ("name", "optimum"),
    [
        ("reverse_kl", (0.179000, 0.291944, 0.529056)),
        ("forward_kl", (0.212456, 0.221659, 0.565885)),
        ("jensen_shannon_unhalved", (0.060931, 0.125698, 0.813371)),
        ("alpha(0.5)", (0.195427, 0.248146, 0.556427)),
    ],
)
def test_score_of_the_regularised_optimum_is_the_reward(name: str, optimum: tuple[float, float, float]) -> None:
    """KKT: score(log π*/π_ref) = r + constant for r = (0, 1, 2), β = 1; and π* maximises E r − D_f(ref‖π)."""
    entry = ENTRIES[name]
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    best = torch.tensor(optimum, dtype=torch.float64)
    score = entry.score((best / best.sum()).log() - reference)
    assert (score.diff() - 1.0).abs().max() < 1e-4
    logits = best.log().requires_grad_()
    policy = torch.log_softmax(logits, -1)
    reward = (policy.exp() * torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)).sum()
    objective = reward - entry.divergence(reference, policy)
    assert torch.autograd.grad(objective, logits)[0].abs().max() < 1e-5


@pytest.mark.parametrize(
    ("name", "value", "gradient", "first"),
    [
        ("forward_kl", 0.223805, (-0.3, 0.2, 0.1), (-2.5, -0.6, -0.666667)),
        ("reverse_kl", 0.193794, (-0.222017, 0.158516, 0.063501), (0.083709, 1.510826, 1.405465)),
        ("total_variation", 0.3, (-0.16, 0.10, 0.06), (-0.5, 0.5, 0.5)),
        ("jensen_shannon_unhalved", 0.101749, (-0.122792, 0.084399, 0.038393), (-0.559616, 0.223144, 0.182322)),
        ("pearson_chi2", 0.563333, (-0.937333, 0.601667, 0.335667), None),
        ("neyman_chi2", 0.363333, (-0.385333, 0.303333, 0.082), None),
    ],
)
def test_policy_gradient_with_the_pseudo_reward(
    name: str, value: float, gradient: tuple[float, ...], first: tuple[float, ...] | None
) -> None:
    """Go et al., theorem 1, by enumeration: ∇D = −E_π[R ∇ log π]; target p, policy π."""
    entry = get_f_divergence(name)
    logits = PI.log().requires_grad_()
    policy = torch.log_softmax(logits, -1)
    divergence = entry.divergence(P.log(), policy)
    assert divergence.item() == pytest.approx(value, abs=1e-6)
    (exact,) = torch.autograd.grad(divergence, logits, retain_graph=True)
    reward = entry.pseudo_reward(policy.detach() - P.log())
    (sampled,) = torch.autograd.grad(-(policy.exp().detach() * reward * policy).sum(), logits)
    close(sampled, exact, 1e-12)
    assert exact.tolist() == pytest.approx(gradient, abs=1e-6)
    if first is not None:
        assert (-reward).tolist() == pytest.approx(first, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("forward_kl", 0.0),
        ("jensen_shannon_unhalved", -math.log(2)),
        ("total_variation", -0.5),
        ("pearson_chi2", -1.0),
        ("reverse_kl", -INF),
        ("neyman_chi2", -INF),
    ],
)
def test_pseudo_reward_of_an_impossible_sample(name: str, limit: float) -> None:
    assert get_f_divergence(name).pseudo_reward(torch.tensor(INF)).item() == pytest.approx(limit, abs=1e-7)


RATIOS = torch.tensor([0.25, 1.0, 4.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "normalised"),
    [
        ("jensen_shannon", (0.4, 1.0, 1.6)),
        ("forward_kl", (0.142857, 0.571429, 2.285714)),
        ("squared_hellinger", (0.428571, 0.857143, 1.714286)),
        ("softened_reverse_kl", (1.6, 1.0, 0.4)),
        ("jeffreys", (0.454545, 0.727273, 1.818182)),
        ("reverse_kl", (1.0, 1.0, 1.0)),
    ],
)
def test_density_weights(name: str, normalised: tuple[float, ...]) -> None:
    weight = get_f_divergence(name).density_weight(RATIOS.log())
    assert (weight / weight.mean()).tolist() == pytest.approx(normalised, abs=5e-6)


@pytest.mark.parametrize(
    ("name", "spread", "expected"),
    [
        ("reverse_kl", 0.9, -1.2345679),
        ("forward_kl", 0.9, -1.0),
        ("jensen_shannon", 0.9, -0.2137709),
        ("squared_hellinger", 0.9, -0.2399402),
        ("jeffreys", 0.9, -2.2345679),
        ("softened_reverse_kl", 0.9, -0.8070261),
        ("neyman_chi2", 1.1, -2.8921714),
    ],
)
def test_density_weight_gives_the_gradient_of_the_divergence(name: str, spread: float, expected: float) -> None:
    """Xu et al., theorem 1 in one dimension: q = N(θ, 1) at θ = 0 (student), p = N(1, spread²) (teacher)."""
    entry = get_f_divergence(name)
    x = torch.linspace(-25.0, 25.0, 100_001, dtype=torch.float64)
    teacher = torch.distributions.Normal(torch.tensor(1.0, dtype=torch.float64), spread).log_prob(x)
    theta = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    student = torch.distributions.Normal(theta, torch.ones((), dtype=torch.float64)).log_prob(x)
    fixed = student.detach()
    score_gap = -(x - 1.0) / spread**2 + x
    by_weight = -torch.trapezoid(fixed.exp() * entry.density_weight(teacher - fixed) * score_gap, x)
    assert by_weight.item() == pytest.approx(expected, abs=1e-6)
    inside = x.abs() < 12  # beyond, exp(u) of the sample term alone is out of range for the chi-squares
    terms = torch.where(inside, teacher.exp() * entry.sample_term(torch.where(inside, student - teacher, 0.0)), 0.0)
    (direct,) = torch.autograd.grad(torch.trapezoid(terms, x), theta)
    assert direct.item() == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(
    ("entry", "at_half", "at_two", "at_four"),
    [
        (get_f_divergence("forward_kl"), 0.1931472, 0.3068528, 1.6137056),
        (get_f_divergence("jensen_shannon_unhalved"), 0.0849495, 0.1698990, 0.9637238),
        (alpha_divergence(0.2), 0.1603176, 0.3681180, 2.3035429),
        (alpha_divergence(0.5), 0.1715729, 0.3431458, 2.0),
    ],
    ids=lambda x: x.name if isinstance(x, FDivergence) else str(x),
)
def test_sample_terms(entry: FDivergence, at_half: float, at_two: float, at_four: float) -> None:
    u = torch.tensor([0.5, 2.0, 4.0, 1.0], dtype=torch.float64).log()
    assert entry.sample_term(u).tolist() == pytest.approx([at_half, at_two, at_four, 0.0], abs=1e-7)


@pytest.mark.parametrize(
    ("name", "conjugate", "slope"),
    [
        # Imitation-learning form: φ(x) = −f*(−x) at x = ½ and −½.
        ("pearson_chi2_on_reals", (0.4375, -0.5625), (0.75, 1.25)),
        ("squared_hellinger_unhalved", (0.3333333333, -1.0), (0.4444444444, 4.0)),
        ("forward_kl", (-math.exp(-1.5), -math.exp(-0.5)), (math.exp(-1.5), math.exp(-0.5))),
    ],
)
def test_conjugates_of_imitation_losses(name: str, conjugate: tuple[float, float], slope: tuple[float, float]) -> None:
    if name == "squared_hellinger_unhalved":
        entry = get_f_divergence("squared_hellinger").scaled(2.0, name)
    else:
        entry = get_f_divergence(name)
    x = torch.tensor([0.5, -0.5], dtype=torch.float64, requires_grad=True)
    phi = -entry.conjugate(-x)
    assert phi.tolist() == pytest.approx(conjugate, abs=1e-9)
    assert torch.autograd.grad(phi.sum(), x)[0].tolist() == pytest.approx(slope, abs=1e-9)


# --- admissibility, stability ---------------------------------------------------------------------------------------


def test_admissible_entries() -> None:
    refused = {name for name, entry in ENTRIES.items() if not entry.admissible}
    assert refused == {"total_variation", "neyman_chi2", "softened_reverse_kl", "alpha(-1.0)"}
    for name in refused:
        with pytest.raises(ValueError, match=r"no f-DPO score"):
            ENTRIES[name].score(U)
    # Here P is the reference: the model's own chi-square, E_ref[(t − 1)²], is the Neyman entry.
    dual = get_f_divergence("neyman_chi2").dual_derivative(U)
    close(dual, 2 * (U.exp() - 1))


@pytest.mark.parametrize("name", ADMISSIBLE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_of_extreme_log_ratios(name: str, dtype: torch.dtype) -> None:
    entry = ENTRIES[name]
    u = torch.tensor([-1e4, 1e4], dtype=dtype, requires_grad=True)
    score = entry.score(u, exponent_ceiling=20.0)
    (slope,) = torch.autograd.grad(score.sum(), u)
    assert torch.isfinite(score).all()
    assert torch.isfinite(slope).all()
    if entry.score_exponent is not None and abs(entry.score_exponent) > 1e-3:
        assert slope[0] == 0.0
    free = entry.score(u)
    assert not torch.isnan(free).any()
    assert torch.isfinite(free[1])
    if name in ("reverse_kl", "jensen_shannon", "jensen_shannon_unhalved", "alpha(0.0)"):
        assert torch.isfinite(free).all()


def test_exponent_ceiling_leaves_smaller_exponents_alone() -> None:
    entry = alpha_divergence(0.5)
    u = torch.tensor([-10.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(entry.score(u, exponent_ceiling=20.0), entry.score(u), rtol=0, atol=0)
    edge = entry.score(torch.tensor([-40.0, -50.0], dtype=torch.float64), exponent_ceiling=20.0)
    assert edge[0] == edge[1]


@pytest.mark.parametrize("a", [0.3, 1e-3, 1e-6, 1e-9, -1e-6])
def test_alpha_is_continuous_at_its_limits(a: float) -> None:
    near, limit = alpha_divergence(a), alpha_divergence(0.0)
    bound = 40 * abs(a)
    for form in ("score", "sample_term", "density_weight"):
        if form == "score" and a < 0:
            continue
        gap = getattr(near, form)(U / 4) - getattr(limit, form)(U / 4)
        assert gap.abs().max() < bound
    near, limit = alpha_divergence(1 - a), alpha_divergence(1.0)
    for form in ("score", "sample_term", "density_weight"):
        gap = getattr(near, form)(U / 4) - getattr(limit, form)(U / 4)
        assert gap.abs().max() < bound


def test_half_precision_and_vmap() -> None:
    for name in ADMISSIBLE:
        entry = ENTRIES[name]
        u = torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float16)
        assert entry.score(u).dtype == torch.float32
        torch.testing.assert_close(entry.score(u).double(), entry.score(u.double()), rtol=1e-5, atol=1e-6)
        mapped = torch.func.vmap(torch.func.grad(entry.score))(U)
        close(mapped, entry.density_weight(-U), 1e-9)


@each
def test_gradients_of_values(name: str, rng: torch.Generator) -> None:
    first, second = torch.randn(2, 4, generator=rng, dtype=torch.float64)
    entry = ENTRIES[name]

    def function(a: Tensor, b: Tensor) -> Tensor:
        return entry.divergence(torch.log_softmax(a, -1), torch.log_softmax(b, -1))

    inputs = (first.requires_grad_(), second.requires_grad_())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("name", SMOOTH)
def test_scaling_scales_every_form(name: str) -> None:
    entry, double = ENTRIES[name], ENTRIES[name].scaled(2.0, "double")
    for form in ("f", "f_prime", "f_second"):
        close(getattr(double, form)(RATIO), 2 * getattr(entry, form)(RATIO))
    for form in ("dual_derivative", "density_weight", "sample_term"):
        close(getattr(double, form)(U), 2 * getattr(entry, form)(U))
    y = entry.f_prime(RATIO)
    close(double.conjugate(2 * y), 2 * entry.conjugate(y), 1e-8)
    assert double.admissible == entry.admissible
    assert double.limits() == tuple(2 * x for x in entry.limits())
