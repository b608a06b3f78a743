r"""Optimal transport: entropic transport by Sinkhorn's algorithm in the log domain, and Wasserstein distance on a line.

With cost C (n × m), marginals a (n) and b (m) of equal mass, and ε > 0, Sinkhorn's algorithm solves

.. math:: \min_P \langle P, C \rangle + \varepsilon \sum_{ij} P_{ij} \log \frac{P_{ij}}{a_i b_j}
          \quad\text{subject to}\quad P 1 = a,\; P^\top 1 = b,

whose plan is :math:`P_{ij} = a_i b_j \exp((f_i + g_j - C_{ij}) / \varepsilon)`. One iteration sets the row potential f,
then the column potential g: columns hold exactly, rows to the tolerance. All leading dimensions are a batch. Costs are
in whatever unit the caller gives them; potentials, ε and values have the same.

Source: Cuturi, *Sinkhorn Distances*, arXiv 1306.0895; log domain and stabilisation: Schmitzer, *Stabilized Sparse
Scaling Algorithms for Entropy Regularized Transport Problems*, arXiv 1610.06519, section 3; debiasing: Feydy et al.,
*Interpolating between Optimal Transport and MMD using Sinkhorn Divergences*, arXiv 1810.08278.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from relent.divergences.reduction import upcast

SinkhornValue = Literal["cost", "objective"]
SinkhornGradient = Literal["envelope", "unrolled"]
Metric = Literal["l1", "euclidean", "squared_euclidean"]

__all__ = [
    "Metric",
    "SinkhornGradient",
    "SinkhornSolution",
    "SinkhornValue",
    "batch_wise_cost",
    "pairwise_cost",
    "sample_wise_cost",
    "sinkhorn",
    "sinkhorn_divergence",
    "sinkhorn_loss",
    "wasserstein_1d",
    "wasserstein_ordered",
]

# Iterations between two looks at the marginals.
_BLOCK = 10
# Largest |log scaling| that a kernel may take on before it is formed anew: what underflowed in it stays negligible.
_LARGEST_LOG_SCALING = {torch.float32: 15.0, torch.float64: 30.0}


def pairwise_cost(source: Tensor, target: Tensor, *, metric: Metric) -> Tensor:
    r"""Cost between all points of two clouds, (..., n, d) and (..., m, d) to (..., n, m).

    ``"l1"``: :math:`\sum_c |x_c - y_c|`; ``"euclidean"``: its 2-norm; ``"squared_euclidean"``: the square of that. The
    subgradient where points coincide is 0. Half precision is computed in float32.

    Raises:
        ValueError: an unknown metric, or shapes that do not fit.
    """
    if metric not in get_args(Metric):
        raise ValueError(f"metric={metric!r} is unknown; use one of {get_args(Metric)}")
    if source.ndim < 2 or target.ndim < 2 or source.shape[-1] != target.shape[-1]:
        shapes = f"{tuple(source.shape)} and {tuple(target.shape)}"
        raise ValueError(f"expected points (..., n, d) and (..., m, d), got {shapes}")
    source, target = upcast(source), upcast(target)
    if metric == "l1":
        return torch.cdist(source, target, p=1.0)
    # Not by |x|² − 2xy + |y|², which loses all digits of the distance of close points.
    distance = torch.cdist(source, target, p=2.0, compute_mode="donot_use_mm_for_euclid_dist")
    return distance if metric == "euclidean" else distance.square()


def batch_wise_cost(approx: Tensor, target: Tensor) -> Tensor:
    r"""L1 cost between the rows of a batch, :math:`C_{ij} = \sum_c |q_{ic} - p_{jc}|`: (..., B, C) to (..., B, B).

    In [0, 2]. Source: Cui et al., *Sinkhorn Distance Minimization for Knowledge Distillation*, arXiv 2402.17110.
    """
    return pairwise_cost(approx, target, metric="l1")


def sample_wise_cost(approx: Tensor, target: Tensor) -> Tensor:
    r"""L1 cost between the class probabilities of one sample, :math:`C_{ij} = |q_i - p_j|`: (..., C) to (..., C, C).

    In [0, 1]. Source: Cui et al., arXiv 2402.17110.
    """
    return pairwise_cost(approx.unsqueeze(-1), target.unsqueeze(-1), metric="l1")


class SinkhornSolution(NamedTuple):
    """What Sinkhorn's algorithm found.

    Attributes:
        source_potential: f, (..., n), unit of the cost.
        target_potential: g, (..., m).
        plan: P, (..., n, m).
        iterations: pairs of row and column updates done.
        marginal_error: (...) the L1 error of the rows, :math:`\\sum_i |\\sum_j P_{ij} - a_i|`.
    """

    source_potential: Tensor
    target_potential: Tensor
    plan: Tensor
    iterations: int
    marginal_error: Tensor


def _marginal(weights: Tensor | None, cost: Tensor, dim: int, name: str) -> Tensor:
    shape = cost.shape[:dim] if dim == -1 else (*cost.shape[:-2], cost.shape[-1])
    if weights is None:
        return cost.new_full(shape, 1.0 / shape[-1])
    if weights.shape[-1:] != shape[-1:] or weights.ndim > len(shape):
        raise ValueError(
            f"{name} has shape {tuple(weights.shape)}, expected {tuple(shape)} or one that broadcasts to it"
        )
    return weights.to(cost.dtype).expand(shape)


def _checked(
    cost: Tensor, source: Tensor | None, target: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon must be a positive finite number, got {epsilon}")
    if cost.ndim < 2 or 0 in cost.shape[-2:]:
        raise ValueError(f"cost must have shape (..., n, m) with n and m at least 1, got {tuple(cost.shape)}")
    cost = upcast(cost)
    a, b = _marginal(source, cost, -1, "source"), _marginal(target, cost, -2, "target")
    with torch.no_grad():
        mass_a, mass_b = a.sum(-1), b.sum(-1)
        if bool((a < 0).any() | (b < 0).any()) or not bool((mass_a > 0).all()):
            raise ValueError("marginals must not be negative, and must have mass")
        if not torch.allclose(mass_a, mass_b, rtol=1e-4, atol=0.0):
            raise ValueError(
                f"marginals must have equal mass, got sums {mass_a.flatten()[0]} and {mass_b.flatten()[0]}"
            )
    return cost, a, b


def _log(weights: Tensor) -> Tensor:
    """log a, −inf with zero gradient where a = 0."""
    positive = weights > 0
    return torch.where(positive, torch.where(positive, weights, 1.0).log(), -math.inf)


class _Problem(NamedTuple):
    """A transport problem in units of ε: u = f/ε, v = g/ε, and kernel = −C/ε.

    Of a symmetric one the row potential becomes the mean of both, which converges in a few iterations.
    """

    kernel: Tensor
    a: Tensor
    b: Tensor
    log_a: Tensor
    log_b: Tensor
    symmetric: bool

    @classmethod
    def of(cls, cost: Tensor, a: Tensor, b: Tensor, epsilon: float, symmetric: bool) -> _Problem:
        return cls(cost / -epsilon, a, b, _log(a), _log(b), symmetric)

    def plan(self, u: Tensor, v: Tensor) -> Tensor:
        return (self.kernel + (u + self.log_a).unsqueeze(-1) + (v + self.log_b).unsqueeze(-2)).exp()

    def row_error(self, plan: Tensor) -> Tensor:
        return (plan.sum(-1) - self.a).abs().sum(-1)

    def in_log_domain(self, u: Tensor, v: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """``count`` iterations; differentiable, and safe for any cost."""
        for _ in range(count):
            if self.symmetric:
                u = (u + v) / 2
            else:
                u = -torch.logsumexp(self.kernel + (v + self.log_b).unsqueeze(-2), dim=-1)
            v = -torch.logsumexp(self.kernel + (u + self.log_a).unsqueeze(-1), dim=-2)
        return u, v

    def by_scaling(self, u: Tensor, v: Tensor, plan: Tensor, count: int) -> tuple[Tensor, Tensor] | None:
        """The same from the plan of u and v, as scalings of its rows and columns; None where those are not safe.

        An iteration is two matrix-vector products instead of two passes of exponentials.
        """
        a, b, across = self.a.unsqueeze(-1), self.b.unsqueeze(-1), plan.transpose(-1, -2)
        row, column = torch.ones_like(a), torch.ones_like(b)
        middle = ((v - u).unsqueeze(-1) / 2).exp() if self.symmetric else None
        for _ in range(count):
            row = a / (plan @ column) if middle is None else middle * (row * column).sqrt()
            column = b / (across @ row)
        log_row, log_column = row.squeeze(-1).log(), column.squeeze(-1).log()
        largest = torch.maximum(log_row.abs().amax(), log_column.abs().amax())
        # False for NaN too: a row that has underflowed, or a point without mass.
        return (u + log_row, v + log_column) if bool(largest <= _LARGEST_LOG_SCALING[plan.dtype]) else None

    def solve(self, v: Tensor, max_iterations: int, tolerance: float) -> tuple[Tensor, Tensor, int]:
        """Iterate until the rows hold; in the log domain where the gradient is recorded. Return u, v and the count."""
        u, v = self.in_log_domain(v if self.symmetric else torch.zeros_like(self.a), v, 1)
        done = 1
        while done < max_iterations:
            with torch.no_grad():
                plan = self.plan(u, v)
                if tolerance > 0 and bool((self.row_error(plan) <= tolerance).all()):
                    break
            count = min(_BLOCK, max_iterations - done)
            scaled = None if torch.is_grad_enabled() else self.by_scaling(u, v, plan, count)
            u, v = self.in_log_domain(u, v, count) if scaled is None else scaled
            done += count
        return u, v, done


def _annealed(cost: Tensor, a: Tensor, b: Tensor, epsilon: float, symmetric: bool) -> Tensor:
    """Potential v to start from: ε falls by halves from the largest cost, a block of iterations each."""
    current = float(cost.abs().amax())
    g = torch.zeros_like(b)
    while current > epsilon:
        problem = _Problem.of(cost, a, b, current, symmetric)
        g = current * problem.solve(g / current, _BLOCK, 0.0)[1]
        current /= 2
    return g / epsilon


def sinkhorn(
    cost: Tensor,
    source: Tensor | None = None,
    target: Tensor | None = None,
    *,
    epsilon: float,
    max_iterations: int = 1000,
    tolerance: float = 1e-6,
    anneal: bool = False,
    symmetric: bool = False,
    gradient: SinkhornGradient = "envelope",
) -> SinkhornSolution:
    r"""Solve an entropic transport problem; see the module for its definition.

    Stable for any finite cost and ε > 0: nothing is exponentiated that has not been balanced before. What is lost at
    small ε is speed (the error falls by a factor that tends to 1 as max C/ε grows; ``anneal`` helps most then) and, in
    float32, precision (potentials of size C have digits of 1e-7 C, and the plan an error of 1e-7 C/ε).

    Args:
        cost: C, (..., n, m), finite.
        source: a, (n) or (..., n), not negative; uniform, 1/n, by default. Zero leaves a point out.
        target: b, (m) or (..., m), of the same mass as a; uniform, 1/m, by default.
        epsilon: ε > 0, in the unit of the cost.
        max_iterations: at least 1.
        tolerance: stop once the L1 error of the rows, looked at after 1, 11, 21, … iterations, is at most this for the
            whole batch; 0 does exactly ``max_iterations``.
        anneal: start from potentials found while ε falls from max C to ε by halves.
        symmetric: C is symmetric and b is a (``target`` must be None): averaged updates, many times fewer iterations.
        gradient: ``"envelope"``: potentials and plan are constants. ``"unrolled"``: they carry the gradient through all
            iterations (not through the annealing), with respect to the cost and positive marginals.

    Returns:
        A :class:`SinkhornSolution`.

    Raises:
        ValueError: shapes that do not fit, marginals that are negative or of unequal mass, ε or an iteration
            number that is not positive, a negative tolerance, or an unknown gradient.
    """
    if gradient not in get_args(SinkhornGradient):
        raise ValueError(f"gradient={gradient!r} is unknown; use one of {get_args(SinkhornGradient)}")
    if max_iterations < 1 or not tolerance >= 0:
        raise ValueError(f"need max_iterations >= 1 and tolerance >= 0, got {max_iterations} and {tolerance}")
    if symmetric and target is not None:
        raise ValueError("a symmetric problem has one marginal: give it as source, and leave target None")
    cost, a, b = _checked(cost, source, source if symmetric else target, epsilon)
    with torch.no_grad():
        start = _annealed(cost, a, b, epsilon, symmetric) if anneal else torch.zeros_like(b)
    with torch.set_grad_enabled(torch.is_grad_enabled() and gradient == "unrolled"):
        problem = _Problem.of(cost, a, b, epsilon, symmetric)
        u, v, done = problem.solve(start, max_iterations, tolerance)
        plan = problem.plan(u, v)
        f, g = epsilon * u, epsilon * v
    return SinkhornSolution(f, g, plan, done, problem.row_error(plan).detach())


def sinkhorn_loss(
    cost: Tensor,
    source: Tensor | None = None,
    target: Tensor | None = None,
    *,
    epsilon: float,
    value: SinkhornValue,
    gradient: SinkhornGradient,
    max_iterations: int = 1000,
    tolerance: float = 1e-6,
    anneal: bool = False,
    symmetric: bool = False,
) -> Tensor:
    r"""Value of an entropic transport problem, (...), as a loss.

    - ``value="cost"``: :math:`\langle P, C \rangle`. ``gradient="unrolled"`` is its derivative, through all iterations.
      ``"envelope"`` is P for the cost and nothing for the marginals: not the derivative of this value, whose plan moves
      too, but that of the objective.
    - ``value="objective"``: :math:`\langle a, f\rangle + \langle b, g\rangle`. ``"envelope"`` is P for the cost, and
      f and g (up to a constant) for the marginals: the derivative, once converged. ``"unrolled"`` is the derivative of
      what the iterations computed.

    The objective is the dual value: a lower bound of the module's minimum which the iterations raise to it.

    Args:
        cost, source, target, epsilon, max_iterations, tolerance, anneal, symmetric: as :func:`sinkhorn`.
        value: as above. gradient: as above.

    Returns:
        (...), in the unit of the cost times mass.

    Raises:
        ValueError: as :func:`sinkhorn`, and for an unknown value.
    """
    if value not in get_args(SinkhornValue):
        raise ValueError(f"value={value!r} is unknown; use one of {get_args(SinkhornValue)}")
    f, g, plan, _, _ = sinkhorn(
        cost, source, target, epsilon=epsilon, max_iterations=max_iterations,
        tolerance=tolerance, anneal=anneal, symmetric=symmetric, gradient=gradient,
    )  # fmt: skip
    cost, a, b = _checked(cost, source, source if symmetric else target, epsilon)
    if value == "cost":
        return (plan * cost).sum(dim=(-2, -1))
    # The last term is zero in value; its derivative for C is the plan, all that the envelope leaves of it.
    dual = (a * f).sum(-1) + (b * g).sum(-1)
    if gradient == "unrolled":
        return dual
    return dual + (plan * (cost - cost.detach())).sum(dim=(-2, -1))


def sinkhorn_divergence(
    cost: Tensor,
    source_cost: Tensor,
    target_cost: Tensor,
    source: Tensor | None = None,
    target: Tensor | None = None,
    *,
    epsilon: float,
    value: SinkhornValue,
    gradient: SinkhornGradient,
    max_iterations: int = 1000,
    tolerance: float = 1e-6,
    anneal: bool = False,
) -> Tensor:
    r"""Debiased transport, :math:`L(a, b) - \tfrac12 L(a, a) - \tfrac12 L(b, b)`, with L the :func:`sinkhorn_loss`.

    Unlike L it is 0 for equal distributions. With ``value="objective"`` it is not negative and convex in each marginal
    for costs such as :math:`|x-y|` and :math:`|x-y|^2` (arXiv 1810.08278, theorem 1); it lies between the transport
    cost (ε → 0) and half the squared MMD of the kernel −C (ε → ∞).

    Args:
        cost: (..., n, m) between source and target. source_cost: (..., n, n). target_cost: (..., m, m).
        source, target, epsilon, value, gradient, max_iterations, tolerance, anneal: as :func:`sinkhorn_loss`.

    Returns:
        (...).

    Raises:
        ValueError: as :func:`sinkhorn_loss`.
    """
    terms = ((cost, target, 1.0, False), (source_cost, None, -0.5, True), (target_cost, None, -0.5, True))
    firsts = (source, source, target)
    values = [
        weight * sinkhorn_loss(
            c, first, second, epsilon=epsilon, value=value, gradient=gradient,
            max_iterations=max_iterations, tolerance=tolerance, anneal=anneal, symmetric=symmetric,
        )
        for first, (c, second, weight, symmetric) in zip(firsts, terms, strict=True)
    ]  # fmt: skip
    return values[0] + values[1] + values[2]


def _normalised(weights: Tensor | None, points: Tensor, name: str) -> Tensor:
    if weights is None:
        return torch.full_like(points, 1.0 / points.shape[-1])
    if weights.shape != points.shape:
        raise ValueError(f"{name} has shape {tuple(weights.shape)}, expected that of its points, {tuple(points.shape)}")
    if bool((weights < 0).any()) or bool((weights.sum(-1) <= 0).any()):
        raise ValueError(f"{name} must not be negative, and must have mass")
    weights = weights.to(points.dtype)
    return weights / weights.sum(-1, keepdim=True)


def _check_power(p: int) -> None:
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2, got {p}")


def wasserstein_1d(
    source: Tensor,
    target: Tensor,
    source_weights: Tensor | None = None,
    target_weights: Tensor | None = None,
    *,
    p: int,
) -> Tensor:
    r"""p-th power of the Wasserstein distance of samples on the line, :math:`\int_0^1 |F^{-1}(t) - G^{-1}(t)|^p\,dt`.

    The power and not its root: the root has an infinite gradient at 0 for p = 2. Exact, by sorting; gradients flow
    into points and weights.

    Args:
        source: (..., n) points. target: (..., m) points; the batch is the same.
        source_weights: (..., n), not negative, normalised here; uniform by default. target_weights: (..., m).
        p: 1 or 2.

    Returns:
        (...), in the p-th power of the unit of the points.

    Raises:
        ValueError: shapes that do not fit, weights that are negative or without mass, or another p.

    Source: Peyré, Cuturi, *Computational Optimal Transport*, arXiv 1803.00567, equation 2.36 (remark 2.30).
    """
    _check_power(p)
    if source.ndim == 0 or source.shape[:-1] != target.shape[:-1] or 0 in (source.shape[-1], target.shape[-1]):
        raise ValueError(f"expected points (..., n) and (..., m), got {tuple(source.shape)} and {tuple(target.shape)}")
    source, target = upcast(source), upcast(target)
    a, b = _normalised(source_weights, source, "source_weights"), _normalised(target_weights, target, "target_weights")
    x, order_x = source.sort(dim=-1)
    y, order_y = target.sort(dim=-1)
    if source_weights is None and target_weights is None and x.shape == y.shape:
        return (x - y).abs().pow(p).mean(dim=-1)
    levels_x, levels_y = a.gather(-1, order_x).cumsum(-1), b.gather(-1, order_y).cumsum(-1)
    levels = torch.cat((levels_x, levels_y), dim=-1).sort(dim=-1).values
    widths = torch.diff(levels, dim=-1, prepend=torch.zeros_like(levels[..., :1]))
    gaps = _quantiles(x, levels_x, levels) - _quantiles(y, levels_y, levels)
    return (widths * gaps.abs().pow(p)).sum(dim=-1)


def _quantiles(points: Tensor, own_levels: Tensor, levels: Tensor) -> Tensor:
    """Value of the quantile function of sorted points just below each level."""
    index = torch.searchsorted(own_levels.detach().contiguous(), levels.detach().contiguous())
    # The last levels of both may differ from one by rounding.
    return points.gather(-1, index.clamp(max=points.shape[-1] - 1))


def wasserstein_ordered(
    target_log_probs: Tensor, approx_log_probs: Tensor, *, support: Tensor | None = None, p: int
) -> Tensor:
    r"""p-th power of the Wasserstein distance of two distributions over the same ordered classes.

    For p = 1 it is the area between the distribution functions, :math:`\sum_c |F_c - G_c| (x_{c+1} - x_c)`.

    Args:
        target_log_probs, approx_log_probs: (..., C), normalised, nats.
        support: (C) positions of the classes, increasing; 0, 1, …, C − 1 by default.
        p: 1 or 2.

    Returns:
        (...), in the p-th power of the unit of the support.

    Raises:
        ValueError: shapes that differ, a support that does not increase, or another p.

    Source: Peyré, Cuturi, *Computational Optimal Transport*, arXiv 1803.00567, equation 2.37 (remark 2.30).
    """
    _check_power(p)
    if target_log_probs.shape != approx_log_probs.shape or target_log_probs.ndim == 0:
        shapes = f"{tuple(target_log_probs.shape)} and {tuple(approx_log_probs.shape)}"
        raise ValueError(f"expected log-probabilities of one shape (..., C), got {shapes}")
    target, approx = upcast(target_log_probs).exp(), upcast(approx_log_probs).exp()
    classes = target.shape[-1]
    support = torch.arange(classes, device=target.device) if support is None else support
    if support.shape != (classes,) or bool((support.diff() <= 0).any()):
        raise ValueError(f"support must have shape ({classes},) and increase")
    support = support.to(target.dtype)
    if p == 1:
        return ((target - approx).cumsum(-1)[..., :-1].abs() * support.diff()).sum(dim=-1)
    points = support.expand_as(target)
    return wasserstein_1d(points, points, target, approx, p=p)
