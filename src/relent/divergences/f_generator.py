r"""What an f-divergence is: one object a divergence, from which every form that methods use is derived.

Convention, used without exception: P is the *target* (teacher, reference policy, distribution to match), Q the
*approximation* (student, policy, model), and

.. math:: D_f(P\|Q) = \mathbb{E}_{Q}[f(r)], \qquad r = p/q, \qquad f \text{ convex}, \; f(1) = 0.

So ``forward_kl`` (f = r log r) is KL(target‖approx) here, in ``discrete`` and in every method. Papers on alignment
write the model first, :math:`D_{f^\circ}(\pi\|\pi_\mathrm{ref}) = \mathbb{E}_\mathrm{ref}[f^\circ(t)]` with
:math:`t = \pi/\pi_\mathrm{ref} = 1/r`; the two generators are dual, :math:`f^\circ(t) = t f(1/t)`, and describe the
same divergence. What a method needs follows from f:

==========================  ============================================  ============================================
quantity                    formula                                       argument
==========================  ============================================  ============================================
:meth:`~FDivergence.score`  :math:`f^{\circ\prime}(e^u) - f^{\circ\prime}(1)`  u = log model − log reference (f-DPO)
``pseudo_reward``           :math:`-f^{\circ\prime}(e^u)`                 u = log model − log target (f-DPG)
``density_weight``          :math:`f''(e^\ell)\, e^{2\ell}`               ℓ = log teacher − log student (f-distill)
``sample_term``             :math:`f^\circ(e^u) - f^{\circ\prime}(1)(e^u - 1)`  u = log model − log reference (DPH-RL)
==========================  ============================================  ============================================

They are tied by :math:`\mathrm{score}'(u) = \mathrm{density\_weight}(-u)`. Sources: f-DPO arXiv 2309.16240, f-DPG arXiv
2302.08215, f-distill arXiv 2502.15681, DPH-RL arXiv 2509.07430.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from relent.divergences.logits import log_sum_exp
from relent.divergences.reduction import Reduction, as_mask, reduce, upcast

TensorFunction = Callable[[Tensor], Tensor]
StepFunction = Callable[[Tensor, Tensor], Tensor]
ValueFunction = Callable[[Tensor, Tensor], Tensor]

__all__ = ["FDivergence"]

# The range of log r over which numerical limits and the conjugate are searched: r^4 still fits float64.
_LOG_RANGE = 150.0
# How often the interval is doubled in which a log-ratio of lower score is searched.
_DOUBLINGS = 10


@dataclass(frozen=True)
class FDivergence:
    r"""An f-divergence :math:`D_f(P\|Q) = \mathbb{E}_Q[f(p/q)]`.

    Only ``name`` and ``generator`` are needed. What is left out is derived: f′ and f″ by automatic differentiation, the
    conjugate by solving f′(r) = y, the other forms from the table in the module's docstring. Derived forms go through
    r = exp(±u) in float64 and lose about :math:`10^{-16} e^{|u|}` to cancellation; the built-in entries give closed
    forms in u that hold for |u| = 1e4 wherever the result itself is representable.

    Attributes:
        name: what the registry, configurations and results call it.
        generator: f on r > 0, elementwise.
        derivative: f′; the right one to give where f has a kink.
        second_derivative: f″.
        conjugate_form: f*(y) = sup over r ≥ 0 of r y − f(r).
        at_zero: f(0+), possibly inf: what mass of Q outside the support of P costs.
        slope_at_infinity: lim f(r)/r, possibly inf: what mass of P outside the support of Q costs.
        model_derivative: :math:`f^{\circ\prime}(e^u)` as a function of u = log(model/reference).
        weight: :math:`f''(e^\ell) e^{2\ell}` as a function of ℓ = log(target/approx).
        model_generator: ``sample_term`` as a function of u.
        values: D_f from log-probabilities, [..., C] each, giving [...].
        score_form: the score as a function of u, where f°′(e^u) − f°′(1) would lose digits near u = 0.
        score_exponent: s where the score contains exp(s·u) that can overflow (−1 for the forward KL), else None.
        dual_slope_at_zero: :math:`f^{\circ\prime}(0+)`; −inf is the admissibility condition of f-DPO.
        lower_form: ``lower_log_ratio`` as a function of u and the gap.
    """

    name: str
    generator: TensorFunction
    derivative: TensorFunction | None = None
    second_derivative: TensorFunction | None = None
    conjugate_form: TensorFunction | None = None
    at_zero: float | None = None
    slope_at_infinity: float | None = None
    model_derivative: TensorFunction | None = None
    weight: TensorFunction | None = None
    model_generator: TensorFunction | None = None
    values: ValueFunction | None = None
    score_form: TensorFunction | None = None
    score_exponent: float | None = None
    dual_slope_at_zero: float | None = None
    lower_form: StepFunction | None = None

    def f(self, ratio: Tensor) -> Tensor:
        """f(r) for r > 0, elementwise."""
        return self.generator(ratio)

    def f_prime(self, ratio: Tensor) -> Tensor:
        """f′(r), given or by automatic differentiation (differentiable again)."""
        if self.derivative is not None:
            return self.derivative(ratio)
        return torch.func.grad(lambda r: self.generator(r).sum())(ratio)

    def f_second(self, ratio: Tensor) -> Tensor:
        """f″(r) ≥ 0, given or by automatic differentiation."""
        if self.second_derivative is not None:
            return self.second_derivative(ratio)
        return torch.func.grad(lambda r: self.f_prime(r).sum())(ratio)

    def dual_derivative(self, log_ratio: Tensor) -> Tensor:
        r""":math:`f^{\circ\prime}(e^u) = f(r) - r f'(r)` at r = exp(−u), u = log(model/reference)."""
        if self.model_derivative is not None:
            return self.model_derivative(upcast(log_ratio))
        ratio = (-log_ratio).to(torch.float64).exp()
        return (self.generator(ratio) - ratio * self.f_prime(ratio)).to(upcast(log_ratio).dtype)

    def pseudo_reward(self, log_ratio: Tensor) -> Tensor:
        r"""f-DPG pseudo-reward, :math:`-f^{\circ\prime}(e^u)`, u = log π(x) − log p(x).

        :math:`\nabla D = -\mathbb{E}_\pi[R\,\nabla \log \pi]`. u = +inf (a hard constraint, p(x) = 0) gives the finite
        limit where there is one.

        Source: Go et al., arXiv 2302.08215, theorem 1.
        """
        return -self.dual_derivative(log_ratio)

    def score(self, log_ratio: Tensor, *, exponent_ceiling: float | None = None) -> Tensor:
        r"""f-DPO score, :math:`f^{\circ\prime}(e^u) - f^{\circ\prime}(1)`: increasing, 0 at u = 0.

        The constant cancels between the chosen and the rejected answer; this choice gives exactly u for the reverse KL
        (DPO), so that no rounding is added, and a reward of 0 to whatever the reference thinks of the model.

        Args:
            log_ratio: u = log π(y|x) − log π_ref(y|x), **summed** over the tokens of an answer.
            exponent_ceiling: upper bound of the exponent in scores that contain exp(s·u); beyond it the score is
                constant and its gradient 0. Entries without such an exponent ignore it.

        Raises:
            ValueError: if the divergence is not admissible (see :attr:`admissible`).

        Source: Wang et al., *Beyond Reverse KL*, arXiv 2309.16240, theorem 1 and table 1.
        """
        if not self.admissible:
            raise ValueError(
                f"{self.name} has no f-DPO score: 0 lies in the domain of f' (or f' cannot be inverted), so the "
                "optimal policy may give probability 0 to an answer and its reward cannot be read off"
            )
        log_ratio = upcast(log_ratio)
        if exponent_ceiling is not None and self.score_exponent is not None:
            bound = exponent_ceiling / self.score_exponent
            log_ratio = log_ratio.clamp(min=bound) if bound < 0 else log_ratio.clamp(max=bound)
        if self.score_form is not None:
            return self.score_form(log_ratio)
        return self.dual_derivative(log_ratio) - self.dual_derivative(torch.zeros_like(log_ratio))

    def lower_log_ratio(self, log_ratio: Tensor, gap: Tensor) -> Tensor:
        r"""The v ≤ u with score(u) − score(v) = gap: where an answer stands whose reward is lower by β·gap.

        The inverse of the score, from a point of it: near the end of the score's range (1 for the forward KL) a score
        has lost the digits of its log-ratio, and a difference of scores has not. Without a closed form it is sought in
        u − v < 1024 by bisection.

        Args:
            log_ratio: u.
            gap: ≥ 0; shapes that broadcast.

        Raises:
            ValueError: if the divergence is not admissible (see :attr:`admissible`).
        """
        if self.admissible and self.lower_form is not None:
            return self.lower_form(log_ratio, gap)
        wanted = self.score(log_ratio) - gap
        high = log_ratio.expand_as(wanted)
        low = high - 1.0
        for _ in range(_DOUBLINGS):
            low = torch.where(self.score(low) > wanted, 2.0 * low - high, low)
        for _ in range(64):
            middle = 0.5 * (low + high)
            below = self.score(middle) < wanted
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 0.5 * (low + high)

    @property
    def admissible(self) -> bool:
        r"""Whether :math:`f^{\circ\prime}(0+) = -\infty`, the condition of f-DPO (arXiv 2309.16240, theorem 1)."""
        if self.dual_slope_at_zero is not None:
            return self.dual_slope_at_zero == -math.inf
        far, near = self.dual_derivative(torch.tensor([-30.0, -15.0], dtype=torch.float64)).tolist()
        return bool(near - far > 1.0)

    def density_weight(self, log_ratio: Tensor) -> Tensor:
        r"""f-distill weight, :math:`h = f''(r) r^2` at r = exp(ℓ), ℓ = log teacher density − log student density.

        :math:`\nabla_\theta D_f = -\mathbb{E}[h(r)\,(s_p - s_q)\cdot\partial x/\partial\theta]`, s the scores of the
        densities. Source: Xu, Nie, Vahdat, arXiv 2502.15681, theorem 1.
        """
        if self.weight is not None:
            return self.weight(upcast(log_ratio))
        ratio = log_ratio.to(torch.float64).exp()
        return (self.f_second(ratio) * ratio.square()).to(upcast(log_ratio).dtype)

    def sample_term(self, log_ratio: Tensor) -> Tensor:
        r"""Non-negative term whose mean over samples of the **target** is :math:`D_f(P\|Q)`.

        :math:`f^\circ(e^u) - f^{\circ\prime}(1)(e^u - 1)` with u = log model − log target: the generator with its
        tangent at 1 removed, zero with zero gradient at u = 0. For the forward KL this is k3, sampled
        from the target.

        Source: arXiv 2509.07430 (rehearsal loss on samples of the initial policy).
        """
        if self.model_generator is not None:
            return self.model_generator(upcast(log_ratio))
        ratio = (-log_ratio).to(torch.float64).exp()
        slope = self.dual_derivative(torch.zeros_like(ratio))
        return (self.generator(ratio) / ratio - slope * (1.0 / ratio - 1.0)).to(upcast(log_ratio).dtype)

    def conjugate(self, dual: Tensor) -> Tensor:
        r"""Convex conjugate, :math:`f^*(y) = \sup_{r \ge 0} (r y - f(r))`; +inf above the slope of f at infinity.

        Without a closed form f′(r) = y is solved by bisection in log r; the first derivative,
        :math:`f^{*\prime}(y) = r`, is exact (envelope theorem), second derivatives are not available. r is sought in
        exp(±150).
        """
        if self.conjugate_form is not None:
            return self.conjugate_form(dual)
        target = dual.detach().to(torch.float64)
        low, high = torch.full_like(target, -_LOG_RANGE), torch.full_like(target, _LOG_RANGE)
        for _ in range(80):
            middle = 0.5 * (low + high)
            below = self.f_prime(middle.exp()) < target
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        ratio = (0.5 * (low + high)).exp().detach()
        interior = (ratio * dual - self.generator(ratio)).to(dual.dtype)
        _, slope = self.limits()
        boundary = self.f_prime(torch.full_like(target, _LOG_RANGE).exp()) if math.isfinite(slope) else math.inf
        return torch.where(target > boundary, math.inf, interior)

    def limits(self) -> tuple[float, float]:
        """(f(0+), lim f(r)/r as r → ∞): given, or read off the trend at exp(±150), which misses very slow growth."""
        ends = torch.tensor([-_LOG_RANGE, -_LOG_RANGE / 2, _LOG_RANGE / 2, _LOG_RANGE], dtype=torch.float64).exp()
        values = self.generator(ends)
        slopes = values / ends
        zero = math.inf if float(values[0] - values[1]) > 1.0 else float(values[0])
        slope = math.inf if float(slopes[3] - slopes[2]) > 1.0 else float(slopes[3])
        return (
            zero if self.at_zero is None else self.at_zero,
            slope if self.slope_at_infinity is None else self.slope_at_infinity,
        )

    def divergence(
        self,
        target_log_probs: Tensor,
        approx_log_probs: Tensor,
        *,
        mask: Tensor | None = None,
        reduction: Reduction = "none",
    ) -> Tensor:
        r""":math:`D_f(P\|Q) = \sum_i q_i f(p_i/q_i)` from log-probabilities over the last dimension, in [0, ∞].

        Classes outside one support cost q f(0+) or p·lim f(r)/r. Shapes, mask and reduction as in ``discrete``.

        Raises:
            ValueError: if the shapes differ.
        """
        if target_log_probs.shape != approx_log_probs.shape:
            raise ValueError(f"shapes differ: {tuple(target_log_probs.shape)}, {tuple(approx_log_probs.shape)}")
        lp, lq = upcast(target_log_probs), upcast(approx_log_probs)
        if mask is not None:
            keep = as_mask(mask, lp.shape[:-1]).unsqueeze(-1)
            lp, lq = torch.where(keep, lp, 0.0), torch.where(keep, lq, 0.0)
        items = self.values(lp, lq) if self.values is not None else self._sum_terms(lp, lq)
        return reduce(items, mask, reduction)

    def _sum_terms(self, lp: Tensor, lq: Tensor) -> Tensor:
        p_zero, q_zero = lp == -math.inf, lq == -math.inf
        ratio = (lp - lq).masked_fill(p_zero | q_zero, 0.0).exp()
        terms = (lq.exp() * self.generator(ratio)).masked_fill(p_zero | q_zero, 0.0).sum(dim=-1)
        # Mass outside the other's support, as one number a distribution: 0 · inf must not appear when there is none.
        for log_mass, cost in zip(
            (log_sum_exp(lq.masked_fill(~p_zero, -math.inf)), log_sum_exp(lp.masked_fill(~q_zero, -math.inf))),
            self.limits(),
        ):
            extra = log_mass.exp() * cost if math.isfinite(cost) else torch.full_like(log_mass, math.inf)
            terms = terms + torch.where(log_mass == -math.inf, 0.0, extra)
        return terms

    def scaled(self, factor: float, name: str) -> FDivergence:
        """Return the divergence times a positive factor under a name of its own (papers differ by factors of 2).

        Raises:
            ValueError: if the factor is not positive.
        """
        if not factor > 0:
            raise ValueError(f"the factor must be positive, got {factor}")

        def times(function: TensorFunction | None) -> TensorFunction | None:
            return None if function is None else lambda x: factor * function(x)

        def number(value: float | None) -> float | None:
            return None if value is None else factor * value

        values, conjugate, lower = self.values, self.conjugate_form, self.lower_form
        return FDivergence(
            name=name,
            generator=lambda r: factor * self.generator(r),
            derivative=times(self.derivative),
            second_derivative=times(self.second_derivative),
            conjugate_form=None if conjugate is None else lambda y: factor * conjugate(y / factor),
            at_zero=number(self.at_zero),
            slope_at_infinity=number(self.slope_at_infinity),
            model_derivative=times(self.model_derivative),
            weight=times(self.weight),
            model_generator=times(self.model_generator),
            values=None if values is None else lambda lp, lq: factor * values(lp, lq),
            score_form=times(self.score_form),
            score_exponent=self.score_exponent,
            dual_slope_at_zero=number(self.dual_slope_at_zero),
            lower_form=None if lower is None else lambda u, gap: lower(u, gap / factor),
        )
