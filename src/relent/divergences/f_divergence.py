r"""The registry of f-divergences, with the built-in ones: each has every form in closed form and in log space.

.. math:: D_f(P\|Q) = \mathbb{E}_{Q}[f(p/q)], \qquad P = \text{target}, \; Q = \text{approximation}.

In the entries r = p/q is target over approximation, t = 1/r the model over the reference, u = log t; f is the generator
of the papers (constants included), so that pseudo-rewards are the published ones. See ``f_generator`` for what can be
asked of an entry; a user adds one with ``register_f_divergence(FDivergence("mine", lambda r: ...))``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import wrightomega
from torch import Tensor

from relent.divergences import discrete
from relent.divergences.f_generator import FDivergence
from relent.divergences.logits import log_mixture

__all__ = [
    "FDivergence",
    "alpha_divergence",
    "f_divergence_names",
    "get_f_divergence",
    "register_f_divergence",
]

_INF = math.inf
_LOG2 = math.log(2.0)


_REGISTRY: dict[str, Callable[..., FDivergence]] = {}


def register_f_divergence(divergence: FDivergence | Callable[..., FDivergence], name: str | None = None) -> None:
    """Add a divergence, or a family (a function of named parameters that returns one), to the registry.

    A single divergence is checked on a grid of r in [1e−3, 1e3]: f(1) = 0 and f convex.

    Raises:
        ValueError: if the name is taken or missing, f(1) ≠ 0, or f is not convex.
    """
    name = divergence.name if isinstance(divergence, FDivergence) else name
    if not name:
        raise ValueError("a family of divergences needs a name: register_f_divergence(family, name=...)")
    if name in _REGISTRY:
        raise ValueError(f"an f-divergence called {name!r} is already registered")
    if isinstance(divergence, FDivergence):
        entry = divergence
        _check_generator(entry)
        _REGISTRY[name] = lambda: entry
    else:
        _REGISTRY[name] = divergence


def _check_generator(entry: FDivergence) -> None:
    one = float(entry.generator(torch.ones((), dtype=torch.float64)))
    if not abs(one) < 1e-9:
        raise ValueError(f"the generator of {entry.name} must vanish at 1, got f(1) = {one:.6g}; subtract f(1)")
    ratio = torch.logspace(-3, 3, 121, dtype=torch.float64)
    values = entry.generator(ratio)
    slopes = values.diff() / ratio.diff()
    if not bool((slopes.diff() >= -1e-9 * (1.0 + slopes[1:].abs())).all()):
        raise ValueError(f"the generator of {entry.name} is not convex on [1e-3, 1e3] (or not finite there)")


def get_f_divergence(name: str, **parameters: float) -> FDivergence:
    """Return a registered divergence: ``get_f_divergence("forward_kl")``, ``get_f_divergence("alpha", alpha=0.5)``.

    Raises:
        ValueError: if the name is unknown (the message lists all).
        TypeError: if the parameters are not those of the entry.
    """
    if name not in _REGISTRY:
        raise ValueError(f"no f-divergence called {name!r}; there are {', '.join(f_divergence_names())}")
    return _REGISTRY[name](**parameters)


def f_divergence_names() -> list[str]:
    """Names of all registered divergences and families, sorted."""
    return sorted(_REGISTRY)


def _above(bound: float, dual: Tensor, inside: Tensor) -> Tensor:
    """A conjugate is +inf above the slope of f at infinity."""
    return torch.where(dual > bound, _INF, inside)


def _softplus(values: Tensor) -> Tensor:
    # F.softplus is linear above 20, wrong in the tenth digit.
    return -F.logsigmoid(-values)


def _lower(exponent: float, factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    """`lower_log_ratio` of a score factor·(1 − exp(−exponent·u))."""
    return lambda u, gap: u - (gap / factor * (exponent * u).exp()).log1p() / exponent


def _forward_kl() -> FDivergence:
    return FDivergence(
        name="forward_kl",
        generator=lambda r: torch.special.xlogy(r, r),
        derivative=lambda r: r.log() + 1.0,
        second_derivative=lambda r: 1.0 / r,
        conjugate_form=lambda y: (y - 1.0).exp(),
        at_zero=0.0,
        slope_at_infinity=_INF,
        model_derivative=lambda u: -(-u).exp(),
        weight=torch.exp,
        model_generator=lambda u: u.expm1() - u,
        values=discrete.forward_kl,
        score_form=lambda u: -(-u).expm1(),
        score_exponent=-1.0,
        dual_slope_at_zero=-_INF,
        lower_form=_lower(1.0, 1.0),
    )


def _reverse_kl() -> FDivergence:
    return FDivergence(
        name="reverse_kl",
        generator=lambda r: -r.log(),
        derivative=lambda r: -1.0 / r,
        second_derivative=lambda r: r**-2,
        conjugate_form=lambda y: _above(0.0, y, -1.0 - (-y.clamp(max=0.0)).log()),
        at_zero=_INF,
        slope_at_infinity=0.0,
        model_derivative=lambda u: u + 1.0,
        weight=torch.ones_like,
        # t log t − t + 1, written so that it stays exact near u = 0.
        model_generator=lambda u: u.exp() * ((-u).expm1() + u),
        values=discrete.reverse_kl,
        score_form=lambda u: u,
        dual_slope_at_zero=-_INF,
        lower_form=lambda u, gap: u - gap,
    )


def _jensen_shannon() -> FDivergence:
    def model_generator(u: Tensor) -> Tensor:
        # ½ [t log t − (t + 1) log((t + 1)/2)] with log((t+1)/2) = softplus(u) − log 2.
        half = _softplus(u) - _LOG2
        return 0.5 * (u.exp() * (u - half) - half)

    def lower(u: Tensor, gap: Tensor) -> Tensor:
        # −log σ grows by twice the gap: z = softplus(−v), v = −log(e^z − 1).
        z = _softplus(-u) + 2.0 * gap
        return -(z + (-(-z).expm1()).log())

    return FDivergence(
        name="jensen_shannon",
        generator=lambda r: 0.5 * (torch.special.xlogy(r, r) - (r + 1.0) * ((r + 1.0) / 2.0).log()),
        derivative=lambda r: 0.5 * (2.0 * r / (1.0 + r)).log(),
        second_derivative=lambda r: 0.5 / (r * (1.0 + r)),
        conjugate_form=lambda y: _above(0.5 * _LOG2, y, -0.5 * (2.0 - (2.0 * y.clamp(max=0.5 * _LOG2)).exp()).log()),
        at_zero=0.5 * _LOG2,
        slope_at_infinity=0.5 * _LOG2,
        model_derivative=lambda u: 0.5 * (F.logsigmoid(u) + _LOG2),
        weight=lambda ell: 0.5 * ell.sigmoid(),
        model_generator=model_generator,
        values=discrete.jensen_shannon,
        dual_slope_at_zero=-_INF,
        lower_form=lower,
    )


def _jeffreys() -> FDivergence:
    def lower(u: Tensor, gap: Tensor) -> Tensor:
        # v − e^{−v} = c: w = e^{−v} solves w + log w = −c, which is Wright's omega function.
        c = u - (-u).exp() - gap
        w = torch.from_numpy(np.asarray(wrightomega(-c.detach().cpu().double().numpy()))).to(c)
        return torch.where(w > 1.0, -w.log(), c + w)

    return FDivergence(
        name="jeffreys",
        generator=lambda r: (r - 1.0) * r.log(),
        derivative=lambda r: r.log() + 1.0 - 1.0 / r,
        second_derivative=lambda r: 1.0 / r + r**-2,
        at_zero=_INF,
        slope_at_infinity=_INF,
        model_derivative=lambda u: u - (-u).expm1(),
        weight=lambda ell: 1.0 + ell.exp(),
        model_generator=lambda u: u * u.expm1(),
        values=discrete.jeffreys,
        score_exponent=-1.0,
        dual_slope_at_zero=-_INF,
        lower_form=lower,
    )


def _total_variation() -> FDivergence:
    return FDivergence(
        name="total_variation",
        generator=lambda r: 0.5 * (r - 1.0).abs(),
        derivative=lambda r: 0.5 * (r - 1.0).sign(),
        second_derivative=torch.zeros_like,
        conjugate_form=lambda y: _above(0.5, y, y.clamp(min=-0.5)),
        at_zero=0.5,
        slope_at_infinity=0.5,
        model_derivative=lambda u: 0.5 * u.sign(),
        weight=torch.zeros_like,
        model_generator=lambda u: 0.5 * u.expm1().abs(),
        values=discrete.total_variation,
        dual_slope_at_zero=-0.5,
    )


def _squared_hellinger() -> FDivergence:
    return FDivergence(
        name="squared_hellinger",
        generator=lambda r: 0.5 * (r.sqrt() - 1.0).square(),
        derivative=lambda r: 0.5 - 0.5 * r.rsqrt(),
        second_derivative=lambda r: 0.25 * r**-1.5,
        conjugate_form=lambda y: _above(0.5, y, y / (1.0 - 2.0 * y.clamp(max=0.5))),
        at_zero=0.5,
        slope_at_infinity=0.5,
        model_derivative=lambda u: -0.5 * (-0.5 * u).expm1(),
        weight=lambda ell: 0.25 * (0.5 * ell).exp(),
        model_generator=lambda u: 0.5 * (0.5 * u).expm1().square(),
        values=discrete.squared_hellinger,
        score_exponent=-0.5,
        dual_slope_at_zero=-_INF,
        lower_form=_lower(0.5, 0.5),
    )


def _pearson_chi2(name: str, on_reals: bool) -> FDivergence:
    def conjugate(y: Tensor) -> Tensor:
        inside = y + 0.25 * y.square()
        return inside if on_reals else torch.where(y < -2.0, -1.0, inside)

    return FDivergence(
        name=name,
        generator=lambda r: (r - 1.0).square(),
        derivative=lambda r: 2.0 * (r - 1.0),
        second_derivative=lambda r: torch.full_like(r, 2.0),
        conjugate_form=conjugate,
        at_zero=1.0,
        slope_at_infinity=_INF,
        model_derivative=lambda u: -(-2.0 * u).expm1(),
        weight=lambda ell: 2.0 * (2.0 * ell).exp(),
        model_generator=lambda u: u.expm1() * -(-u).expm1(),
        values=discrete.pearson_chi2,
        score_exponent=-2.0,
        dual_slope_at_zero=-_INF,
        lower_form=_lower(2.0, 1.0),
    )


def _neyman_chi2() -> FDivergence:
    return FDivergence(
        name="neyman_chi2",
        generator=lambda r: (r - 1.0).square() / r,
        derivative=lambda r: 1.0 - r**-2,
        second_derivative=lambda r: 2.0 * r**-3,
        conjugate_form=lambda y: _above(1.0, y, 2.0 - 2.0 * (1.0 - y.clamp(max=1.0)).sqrt()),
        at_zero=_INF,
        slope_at_infinity=1.0,
        model_derivative=lambda u: 2.0 * u.expm1(),
        weight=lambda ell: 2.0 * (-ell).exp(),
        model_generator=lambda u: u.expm1().square(),
        values=discrete.neyman_chi2,
        dual_slope_at_zero=-2.0,
    )


def _softened_reverse_kl() -> FDivergence:
    """2 KL((P + Q)/2 ‖ P); the paper's (r + 1) log((r + 1)/r) less its value 2 log 2 at P = Q."""
    return FDivergence(
        name="softened_reverse_kl",
        generator=lambda r: (r + 1.0) * ((r + 1.0) / (2.0 * r)).log(),
        derivative=lambda r: ((r + 1.0) / (2.0 * r)).log() - 1.0 / r,
        second_derivative=lambda r: 1.0 / (r.square() * (1.0 + r)),
        at_zero=_INF,
        slope_at_infinity=-_LOG2,
        model_derivative=lambda u: _softplus(u) - _LOG2 + 1.0,
        weight=lambda ell: (-ell).sigmoid(),
        model_generator=lambda u: (1.0 + u.exp()) * (_softplus(u) - _LOG2) - u.expm1(),
        values=lambda lp, lq: 2.0 * discrete.forward_kl(log_mixture(lp, lq, 0.5), lp),
        dual_slope_at_zero=1.0 - _LOG2,
    )


def alpha_divergence(alpha: float) -> FDivergence:
    r"""Amari's α-divergence, :math:`f(r) = \frac{r^\alpha - 1 - \alpha(r - 1)}{\alpha(\alpha - 1)}`.

    α → 1 is the forward and α → 0 the reverse KL (the ends themselves are those, tangent at 1 removed), so α is
    the α of f-DPO (arXiv 2309.16240) and DPH-RL (arXiv 2509.07430) and 1 − α that of TRL's ``f_alpha_divergence_coef``.
    Admissible for f-DPO iff α ≥ 0.

    Raises:
        ValueError: if α is not finite.
    """
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be finite, got {alpha}")
    beta = 1.0 - alpha

    def power(u: Tensor, exponent: float) -> Tensor:
        return u if exponent == 0.0 else (exponent * u).expm1() / exponent

    def box_cox(r: Tensor, exponent: float) -> Tensor:
        # expm1 only where r^e − 1 would cancel: its gradient in torch, result + 1, is 0 for r^e < 1e−16.
        return power(r.log(), exponent) if abs(exponent) < 0.05 else (r**exponent - 1.0) / exponent

    def generator(r: Tensor) -> Tensor:
        # Two ways to write f, the second free of 0/0 at α = 1, the first at α = 0.
        if alpha > 0.5:
            return (r * box_cox(r, alpha - 1.0) - (r - 1.0)) / alpha
        return (box_cox(r, alpha) - (r - 1.0)) / -beta

    def conjugate(y: Tensor) -> Tensor:
        # r = (1 + (α−1) y)^{1/(α−1)} solves f'(r) = y; f* = (r^α − 1)/α.
        if alpha == 1.0:
            return y.expm1()
        below = -beta * y
        inside = power(below.clamp(min=-1.0).log1p() / -beta, alpha)
        return torch.where(below > -1.0, inside, torch.full_like(y, _INF if alpha < 1.0 else -1.0 / alpha))

    def model_generator(u: Tensor) -> Tensor:
        # f°_α = f_{1−α}
        if alpha < 0.5:
            return (u.exp() * power(u, -alpha) - u.expm1()) / beta
        return (power(u, beta) - u.expm1()) / -alpha

    return FDivergence(
        name=f"alpha({alpha:g})",
        generator=generator,
        derivative=lambda r: power(r.log(), alpha - 1.0),
        second_derivative=lambda r: r ** (alpha - 2.0),
        conjugate_form=conjugate,
        at_zero=1.0 / alpha if alpha > 0 else _INF,
        slope_at_infinity=1.0 / beta if alpha < 1 else _INF,
        model_derivative=lambda u: -power(-u, alpha),
        weight=lambda ell: (alpha * ell).exp(),
        model_generator=model_generator,
        values=lambda lp, lq: discrete.amari_alpha(lp, lq, alpha=alpha),
        score_exponent=-alpha if alpha != 0.0 else None,
        dual_slope_at_zero=-_INF if alpha >= 0 else 1.0 / alpha,
        lower_form=_lower(alpha, 1.0 / alpha) if alpha > 0 else lambda u, gap: u - gap,
    )


def _register_built_in() -> None:
    for entry in (
        _forward_kl(),
        _reverse_kl(),
        _jensen_shannon(),
        # KL(P‖M) + KL(Q‖M) = 2 JS: the generator of f-DPO, f-DPG and DPH-RL.
        _jensen_shannon().scaled(2.0, "jensen_shannon_unhalved"),
        _jeffreys(),
        _total_variation(),
        _squared_hellinger(),
        _pearson_chi2("pearson_chi2", on_reals=False),
        # The same divergence with f continued to r < 0, as in imitation learning: f*(y) = y + y²/4 for every y.
        _pearson_chi2("pearson_chi2_on_reals", on_reals=True),
        _neyman_chi2(),
        _softened_reverse_kl(),
    ):
        register_f_divergence(entry)
    register_f_divergence(alpha_divergence, name="alpha")


_register_built_in()
