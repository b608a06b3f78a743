"""Draw docs/figures/divergences.png: every discrete divergence on one-parameter families, by the library itself.

Run ``python docs/figures/make_divergences.py``; it takes a few seconds and needs only torch and matplotlib.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from relent.divergences import discrete
from relent.divergences.f_divergence import alpha_divergence, get_f_divergence

TARGET = 0.3
DIVERGENCES: dict[str, tuple[Callable[..., Tensor], str, str]] = {
    "forward KL": (discrete.forward_kl, "C0", "-"),
    "reverse KL": (discrete.reverse_kl, "C3", "-"),
    "Jeffreys": (discrete.jeffreys, "C4", "-"),
    "skewed forward KL, α = 0.1": (partial(discrete.skewed_forward_kl, alpha=0.1), "C0", "--"),
    "skewed reverse KL, α = 0.1": (partial(discrete.skewed_reverse_kl, alpha=0.1), "C3", "--"),
    "Jensen–Shannon": (discrete.jensen_shannon, "C2", "-"),
    "total variation": (discrete.total_variation, "k", "-"),
    "squared Hellinger": (discrete.squared_hellinger, "C1", "-"),
    "Pearson χ²": (discrete.pearson_chi2, "C5", "-"),
    "Neyman χ²": (discrete.neyman_chi2, "C6", "-"),
    "Amari, α = ½": (partial(discrete.amari_alpha, alpha=0.5), "C1", ":"),
    "Rényi, order 2": (partial(discrete.renyi, order=2.0), "C5", ":"),
}
FITTED = ("forward KL", "reverse KL", "Jensen–Shannon", "total variation")


def draw_values(axis: plt.Axes, gradient_axis: plt.Axes) -> None:
    """Bernoulli family: P = (0.3, 0.7) against Q = (x, 1 − x), value and gradient in Q's logit."""
    logit = torch.linspace(-7.0, 7.0, 401, dtype=torch.float64).requires_grad_()
    approx = torch.log_softmax(torch.stack((logit, torch.zeros_like(logit)), dim=-1), dim=-1)
    target = torch.tensor([TARGET, 1 - TARGET], dtype=torch.float64).log().expand_as(approx)
    for name, (divergence, colour, style) in DIVERGENCES.items():
        value = divergence(target, approx)
        (gradient,) = torch.autograd.grad(value.sum(), logit, retain_graph=True)
        axis.plot(logit.detach().sigmoid(), value.detach(), color=colour, linestyle=style, label=name, lw=1.2)
        gradient_axis.plot(logit.detach(), gradient, color=colour, linestyle=style, lw=1.2)
    axis.set(xlabel="x, with Q = (x, 1 − x)", ylabel="D (nats)", ylim=(0, 2.0), title="Value, P = (0.3, 0.7)")
    gradient_axis.set(xlabel="logit of x", ylabel="dD / d logit", ylim=(-1.0, 1.5), title="Gradient in the logit")
    axis.legend(fontsize=6, ncol=2, loc="upper center")


def draw_scores(axis: plt.Axes) -> None:
    """What a preference loss sees of a log-ratio."""
    u = torch.linspace(-3.0, 4.0, 301, dtype=torch.float64)
    for label, entry, colour in (
        ("reverse KL (DPO)", get_f_divergence("reverse_kl"), "C3"),
        ("forward KL", get_f_divergence("forward_kl"), "C0"),
        ("2 × Jensen–Shannon", get_f_divergence("jensen_shannon_unhalved"), "C2"),
        ("α = 0.5", alpha_divergence(0.5), "C1"),
        ("Pearson χ²", get_f_divergence("pearson_chi2"), "C5"),
        ("Jeffreys", get_f_divergence("jeffreys"), "C4"),
    ):
        axis.plot(u, entry.score(u), color=colour, label=label, lw=1.2)
    axis.set(xlabel="log π/π_ref", ylabel="score", ylim=(-6, 5), title="f-DPO score of a log-ratio")
    axis.legend(fontsize=6)


def draw_fits(axis: plt.Axes) -> None:
    """The best single bump for a target with two, under each divergence: covering against seeking."""
    x = torch.linspace(-6.0, 6.0, 241, dtype=torch.float64)

    def bump(mean: Tensor, spread: Tensor) -> Tensor:
        return torch.log_softmax(-((x - mean).square()) / (2 * spread.square()), dim=-1)

    modes = [bump(torch.tensor(m), torch.tensor(s)) for m, s in ((-2.0, 0.7), (2.2, 0.5))]
    target = torch.logaddexp(modes[0] + torch.tensor(0.65).log(), modes[1] + torch.tensor(0.35).log())
    means, spreads = torch.meshgrid(torch.linspace(-4, 4, 161), torch.linspace(0.3, 4, 75), indexing="ij")
    family = bump(means.reshape(-1, 1).double(), spreads.reshape(-1, 1).double())
    axis.fill_between(x, target.exp(), color="0.85", label="target")
    for name in FITTED:
        divergence, colour, _ = DIVERGENCES[name]
        best = divergence(target.expand_as(family), family).argmin()
        dashed = "--" if name == "Jensen–Shannon" else "-"  # it lies on top of the reverse KL
        axis.plot(x, family[best].exp(), color=colour, linestyle=dashed, label=name, lw=1.2)
    axis.set(xlabel="class", ylabel="probability", title="Best one-bump approximation", yticks=[])
    axis.legend(fontsize=6)


def main() -> None:
    """Draw the four panels and write the file beside this script."""
    figure, axes = plt.subplots(2, 2, figsize=(9.0, 7.0), layout="constrained")
    draw_values(axes[0, 0], axes[0, 1])
    draw_scores(axes[1, 0])
    draw_fits(axes[1, 1])
    for axis in axes.flat:
        axis.grid(alpha=0.3, lw=0.5)
    figure.savefig(Path(__file__).with_name("divergences.png"), dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    main()
