"""Draw docs/figures/estimators.png and fill the measured tables of docs/estimators.md, by the library itself.

Run `python docs/figures/make_estimators.py`; it takes a few seconds. Tables stand between `<!-- name -->` marks and
are replaced.
"""

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from relent.divergences import discrete, estimators
from relent.scores.crps import crps_ensemble

HERE = Path(__file__).parent
ALPHAS = {"fair": 1.0, "almost_fair": 0.95, "biased": 0.0}
COLOURS = {"fair": "C0", "almost_fair": "C2", "biased": "C3"}
CASES = 200_000
VOCABULARY = 8


def expected_crps(std: Tensor, members: float | Tensor, alpha: float) -> Tensor:
    """E CRPS_α of M members N(0, σ²) against a truth N(0, 1): √(2(1 + σ²)/π) − (M − 1 + α)/M · σ/√π."""
    shrink = (members - 1 + alpha) / members
    return torch.sqrt(2 * (1 + std.square()) / math.pi) - shrink * std / math.sqrt(math.pi)


def best_std(members: int, alpha: float) -> float:
    """The σ that minimises `expected_crps`: k / √(2 − k²), k = (M − 1 + α)/M."""
    k = (members - 1 + alpha) / members
    return k / math.sqrt(2 - k * k)


def crps_rows() -> Iterable[str]:
    """Simulated mean and standard deviation of a single score, calibrated normal members, with the exact mean and best
    spread.
    """
    generator = torch.Generator().manual_seed(0)
    yield "| M | estimator | mean, simulated | mean, exact | std of one score | spread that it rewards (truth: 1) |"
    yield "| ---: | --- | ---: | ---: | ---: | ---: |"
    for members in (2, 4, 8, 50):
        sample = torch.randn(members + 1, CASES, generator=generator, dtype=torch.float64)
        for name, alpha in ALPHAS.items():
            score = crps_ensemble(sample[1:], sample[0], estimator=name)
            exact = expected_crps(torch.ones(()).double(), members, alpha)
            yield (
                f"| {members} | {name} | {score.mean():.4f} ± {score.std() / math.sqrt(CASES):.4f} | {exact:.4f} "
                f"| {score.std():.3f} | {best_std(members, alpha):.3f} |"
            )


def policies() -> dict[str, tuple[Tensor, Tensor]]:
    """Logits of policy and reference over a small vocabulary: near, as in training under a penalty; far; π far too
    sharp.
    """
    generator = torch.Generator().manual_seed(1)
    base, step = (torch.randn(VOCABULARY, generator=generator, dtype=torch.float64) for _ in range(2))
    return {"near": (base, base + 0.15 * step), "far": (base, base + 3 * step), "collapsed": (4 * base, base)}


KL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": estimators.kl_k1,
    "k2": estimators.kl_k2,
    "k3": estimators.kl_k3,
    "k3 value, k2 gradient": estimators.straight_through_kl,
    "w·k3, w = π/sg(π)": lambda policy, reference: estimators.importance_weighted_kl(
        policy, reference, policy.detach()
    ),
}


def expected_gradient(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, reference: Tensor) -> Tensor:
    """E_{x~π} ∇ loss(x) in the policy's logits, by summing over the vocabulary with the samples' probabilities held
    fixed.
    """
    leaf = logits.clone().requires_grad_()
    policy = leaf.log_softmax(-1)
    value = (policy.detach().exp() * loss(policy, reference.log_softmax(-1))).sum()
    return torch.autograd.grad(value, leaf)[0]


def exact_gradient(divergence: Callable[[Tensor, Tensor], Tensor], logits: Tensor, reference: Tensor) -> Tensor:
    """Gradient of a divergence of the two laws in the policy's logits."""
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(divergence(reference.log_softmax(-1), leaf.log_softmax(-1)), leaf)[0]


def relative_error(gradient: Tensor, exact: Tensor) -> float:
    """‖g − g*‖ / ‖g*‖."""
    return float((gradient - exact).norm() / exact.norm())


def kl_rows() -> Iterable[str]:
    """Bias, standard deviation and expected gradient of each estimator, exact over the vocabulary."""
    yield (
        "| policies | KL(π‖ref) | estimator | bias | std of one sample | gradient: off KL(π‖ref) "
        "| gradient: off KL(ref‖π) |"
    )
    yield "| --- | ---: | --- | ---: | ---: | ---: | ---: |"
    for case, (logits, reference) in policies().items():
        policy, fixed = logits.log_softmax(-1), reference.log_softmax(-1)
        exact = discrete.reverse_kl(fixed, policy)
        reverse = exact_gradient(discrete.reverse_kl, logits, reference)
        forward = exact_gradient(discrete.forward_kl, logits, reference)
        for name, loss in KL_LOSSES.items():
            values = loss(policy, fixed)
            mean = (policy.exp() * values).sum()
            std = (policy.exp() * (values - mean).square()).sum().sqrt()
            gradient = expected_gradient(loss, logits, reference)
            off = [f"{relative_error(gradient, truth):.1%}" for truth in (reverse, forward)]
            yield f"| {case} | {exact:.4f} | {name} | {mean - exact:+.4f} | {std:.4f} | {off[0]} | {off[1]} |"


def draw_figure() -> None:
    """Three panels: bias over M, what a loss rewards, value of the KL estimators."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), constrained_layout=True)
    members = torch.arange(2, 51, dtype=torch.float64)
    std = torch.linspace(0.02, 2, 200, dtype=torch.float64)
    for name, alpha in ALPHAS.items():
        style = {"color": COLOURS[name], "label": name, "lw": 1.5}
        axes[0].plot(members, expected_crps(torch.ones(()).double(), members, alpha), **style)
        axes[1].plot(std, expected_crps(std, 4, alpha), **style)
        best = torch.tensor(best_std(4, alpha)).double()
        axes[1].plot(best, expected_crps(best, 4, alpha), "o", color=COLOURS[name])
    axes[0].set(xlabel="members M", ylabel="E CRPS", title="Calibrated N(0, 1) ensemble")
    axes[0].axhline(1 / math.sqrt(math.pi), color="k", lw=0.6, ls=":")
    axes[1].set(xlabel="std of the members (truth: 1)", title="M = 4: what a loss rewards", ylim=(0.4, 1.0))
    axes[0].legend()
    ratio = torch.linspace(-3, 3, 301, dtype=torch.float64)
    for name, loss in list(KL_LOSSES.items())[:3]:
        axes[2].plot(ratio, loss(torch.zeros_like(ratio), ratio), label=name, lw=1.5)
    axes[2].set(xlabel="u = log ref − log π of the sample", ylabel="value (nats)", title="KL estimators", ylim=(-3, 8))
    axes[2].legend()
    figure.savefig(HERE / "estimators.png", dpi=130)


def fill_tables(tables: dict[str, Iterable[str]]) -> None:
    """Replace what stands between `<!-- name -->` and the next `<!-- end -->` of the page."""
    page = HERE.parent / "estimators.md"
    text = page.read_text()
    for name, rows in tables.items():
        pattern = re.compile(f"<!-- {name} -->\n.*?<!-- end -->", flags=re.DOTALL)
        filled = "\n".join([f"<!-- {name} -->", *rows, "<!-- end -->"])
        text, found = pattern.subn(lambda _, filled=filled: filled, text)
        if found != 1:
            raise ValueError(f"{page.name} has {found} places for the table {name!r}, should have one")
    page.write_text(text)


if __name__ == "__main__":
    draw_figure()
    fill_tables({"crps": crps_rows(), "kl": kl_rows()})
