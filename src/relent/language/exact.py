r"""All sequences of a small space, their exact probabilities, and the exact optimum of a regularised reward.

For a prompt x, the space holds every completion y of at most L tokens: those that end with the end-of-text token, and
those of L tokens that do not. With a vocabulary of a few dozen tokens and L = 4 or 5 these are 10⁵ to 10⁶, and

    π*(y|x) ∝ π_ref(y|x) · exp(r(x, y) / β)      maximises  E_π[r] − β·KL(π ‖ π_ref)

(Korbak, Perez, Buckley, "RL with KL penalties is better viewed as Bayesian inference", arXiv 2205.11275, equation 5) is
a table of numbers, and so are the divergences of any policy from it. Tables are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.optimize import brentq
from torch import Tensor

from relent.divergences.discrete import entropy, forward_kl
from relent.divergences.f_generator import FDivergence
from relent.divergences.logits import log_sum_exp, renormalised, tempered_log_probs
from relent.language.batches import TokenBatch
from relent.language.log_probs import LMOutput

__all__ = [
    "FrontierPoint",
    "RegularisedOptimum",
    "SequenceSpace",
    "expected_distinct",
    "expected_reward",
    "frontier",
    "log_normaliser",
    "optimal_log_probs",
    "regularised_optimum",
    "reward_at_kl",
    "token_level_optimum",
]

LIMIT = 2_000_000
"""Sequences above which a space is not enumerated."""


@dataclass(frozen=True)
class SequenceSpace:
    """Every completion of at most `length` tokens.

    Sequences are in this order: those of 0, 1, … `length` − 1 words and the end, then those of `length` words without
    an end; within a group as counted in base (V − 1), words ascending. Without an end token: all V^length.

    Args:
        vocabulary: V.
        length: L, at least 1.
        end: End-of-text token, or None.

    Raises:
        ValueError: The space is empty or has more than two million sequences.
    """

    vocabulary: int
    length: int
    end: int | None = None

    def __post_init__(self) -> None:
        if self.length < 1 or self.vocabulary < 2 or (self.end is not None and not 0 <= self.end < self.vocabulary):
            raise ValueError(f"there is no such space: {self}")
        if self.size > LIMIT:
            raise ValueError(f"{self.size} sequences are too many to enumerate (at most {LIMIT}); estimate instead")

    @property
    def words(self) -> Tensor:
        """Tokens that are not the end, ascending."""
        return torch.tensor([token for token in range(self.vocabulary) if token != self.end])

    @property
    def size(self) -> int:
        """Number of sequences."""
        words = self.vocabulary - (self.end is not None)
        ended = 0 if self.end is None else sum(words**depth for depth in range(self.length))
        return int(ended + words**self.length)

    def prefixes(self, depth: int) -> Tensor:
        """All rows of `depth` words, ((V − 1)^depth, depth)."""
        if not depth:
            return torch.empty(1, 0, dtype=torch.int64)
        return torch.cartesian_prod(*[self.words] * depth).reshape(-1, depth)

    def sequences(self, padding: int = 0) -> tuple[Tensor, Tensor]:
        """Tokens (N, L), padded on the right, and lengths (N,), the end counted."""
        rows, lengths = [], []
        for depth in range(self.length + 1):
            prefix = self.prefixes(depth)
            ended = depth < self.length
            if ended and self.end is None:
                continue
            row = torch.full((len(prefix), self.length), padding)
            row[:, :depth] = prefix
            if ended and self.end is not None:
                row[:, depth] = self.end
            rows.append(row)
            lengths.append(torch.full((len(prefix),), depth + ended))
        return torch.cat(rows), torch.cat(lengths)

    def join(self, next_log_probs: Sequence[Tensor]) -> Tensor:
        """Log-probabilities of all sequences from those of the next token after every prefix.

        Args:
            next_log_probs: L tables; table d is (..., (V − 1)^d, V), in the order of `prefixes(d)`.

        Returns:
            (..., N); they sum to one where each row of the tables does.
        """
        words = self.words.to(next_log_probs[0].device)
        reached = torch.zeros_like(next_log_probs[0][..., 0])
        parts = []
        for table in next_log_probs:
            if self.end is not None:
                parts.append(reached + table[..., self.end])
            reached = (reached.unsqueeze(-1) + table[..., words]).flatten(-2)
        return torch.cat([*parts, reached], -1)

    def split(self, values: Tensor) -> list[Tensor]:
        """Values of all sequences (..., N) by their words: L + 1 tables, table d (..., (V − 1)^d) of those of d words.

        Without an end token only the last table has entries.
        """
        base = len(self.words)
        ended = self.end is not None
        sizes = [base**depth if ended or depth == self.length else 0 for depth in range(self.length + 1)]
        return list(values.split(sizes, -1))

    def index(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Number of given sequences, (B, L) and (B,) → (B,); `tokens` after the length may be anything."""
        rank = torch.zeros(self.vocabulary, dtype=torch.int64)
        rank[self.words] = torch.arange(len(self.words))
        base, found, before = len(self.words), torch.zeros(len(tokens), dtype=torch.int64), 0
        for depth in range(self.length + 1):
            ended = depth < self.length
            if ended and self.end is None:
                continue
            last = tokens[torch.arange(len(tokens)), (lengths - 1).clamp_min(0)]
            chosen = lengths == depth + ended
            chosen &= (last == self.end) == ended if self.end is not None else torch.ones_like(chosen)
            number = torch.zeros_like(found)
            for column in range(depth):
                number = number * base + rank[tokens[:, column]]
            found = torch.where(chosen, before + number, found)
            before += base**depth
        return found

    @torch.no_grad()
    def log_probs(
        self, model: Callable[[TokenBatch], LMOutput], prompt: Sequence[int], *, rows: int = 4096, device: str = "cpu"
    ) -> Tensor:
        """log π(y|x) of a model for all y.

        Args:
            model: Gives hidden states and output layer of a batch.
            prompt: x, at least one token.
            rows: Prefixes whose hidden states are held at a time.
            device: The model's.

        Returns:
            (N,) float64, on the CPU: log-probabilities are normalised in float64 from the model's own logits.

        Raises:
            ValueError: The model's vocabulary is another one.
        """
        longest = self.prefixes(self.length - 1)
        start = torch.tensor(prompt, dtype=torch.int64).expand(len(longest), -1)
        ids = torch.cat([start, longest], 1)
        shape = [len(self.words) ** depth for depth in range(self.length)]
        tables = [torch.empty(count, self.vocabulary, dtype=torch.float64) for count in shape]
        for first in range(0, len(ids), rows):
            part = ids[first : first + rows].to(device)
            here = torch.ones_like(part, dtype=torch.bool)
            output = model(TokenBatch.of(part, here, torch.zeros_like(here)))
            if output.layer.out_features != self.vocabulary:
                raise ValueError(
                    f"the model has {output.layer.out_features} logits, the space a vocabulary of {self.vocabulary}"
                )
            number = torch.arange(first, first + len(part))
            for depth, table in enumerate(tables):
                repeats = len(longest) // len(table)
                chosen = number % repeats == 0
                hidden = output.hidden[chosen.to(device), len(prompt) - 1 + depth]
                logits = output.layer(hidden)
                table[number[chosen] // repeats] = tempered_log_probs(logits.double().cpu())
        return self.join(tables)


# ------------------------------------------------------------------------------------------------ the optimum


def _log_weights(reference_log_probs: Tensor, rewards: Tensor, beta: float) -> Tensor:
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}; without a penalty the optimum is the best sequence alone")
    if reference_log_probs.shape != rewards.shape:
        shapes = f"{tuple(reference_log_probs.shape)} and {tuple(rewards.shape)}"
        raise ValueError(f"reference and rewards must have one shape, got {shapes}")
    return reference_log_probs.double() + rewards.double() / beta


def optimal_log_probs(reference_log_probs: Tensor, rewards: Tensor, beta: float) -> Tensor:
    r"""log π*(y|x), with :math:`\pi^* \propto \pi_{ref} e^{r/\beta}`.

    Args:
        reference_log_probs: (..., N), all sequences.
        rewards: (..., N).
        beta: β > 0, in the unit of the reward.

    Returns:
        (..., N) float64.

    Raises:
        ValueError: β is not positive, or shapes differ.
    """
    return tempered_log_probs(_log_weights(reference_log_probs, rewards, beta))


class RegularisedOptimum(NamedTuple):
    """π* (log-probabilities, (…, N)) and V (…): r = β g(log π*/π_ref) + V of every answer."""

    log_probs: Tensor
    value: Tensor


@torch.no_grad()
def regularised_optimum(
    reference_log_probs: Tensor, rewards: Tensor, beta: float, divergence: FDivergence, *, steps: int = 100
) -> RegularisedOptimum:
    r"""The policy that maximises E_π r − β D_f(π‖π_ref), for any f-divergence that is admissible for f-DPO.

    By the conditions of Karush, Kuhn and Tucker r = β g(ρ) + V with ρ = log π*/π_ref and g(ρ) = f′(e^ρ) − f′(1). The
    ρ of the best answer is sought between 0 and −log π_ref of the best ones, by safeguarded Newton steps on the sum of
    the probabilities, and all others stand (max r − r)/β below it: V itself may be nearer to max r than float64 tells.

    Args:
        reference_log_probs: (…, N), normalised; −inf stays −inf.
        rewards: (…, N).
        beta: β > 0.
        divergence: Admissible, with the reference as the target: `reverse_kl` is KL(π‖π_ref), for which the result is
            :func:`optimal_log_probs` and V = β log Z.
        steps: Most steps; about ten are used.

    Returns:
        Float64.

    Raises:
        ValueError: A divergence that is not admissible, β ≤ 0, shapes that differ, or no convergence.

    Source: Wang et al., arXiv 2309.16240, theorem 1.
    """
    _log_weights(reference_log_probs, rewards, beta)
    r, reference = rewards.double(), reference_log_probs.double()
    top = r.masked_fill(reference == -math.inf, -math.inf).amax(-1, keepdim=True)
    gaps = ((top - r) / beta).clamp(min=0.0)
    high = -log_sum_exp(reference.masked_fill(r < top, -math.inf)).unsqueeze(-1)
    low, gain = torch.zeros_like(high), high
    for _ in range(steps):
        log_ratios = divergence.lower_log_ratio(gain, gaps)
        log_mass = log_sum_exp(reference + log_ratios).unsqueeze(-1)
        if bool(((log_mass.abs() < 1e-13) | (high - low <= 1e-15 * high)).all()):
            break
        low, high = torch.where(log_mass < 0, gain, low), torch.where(log_mass > 0, gain, high)
        # dv/du = g′(u)/g′(v), and g′(ρ) = density_weight(−ρ).
        slopes = divergence.density_weight(-gain) / divergence.density_weight(-log_ratios)
        step = gain - log_mass / (renormalised(reference + log_ratios).exp() * slopes).nansum(-1, True)
        gain = torch.where((step > low) & (step < high), step, 0.5 * (low + high))
    if not bool((log_mass.abs() < 1e-9).all()):
        raise ValueError(
            f"the optimum under {divergence.name} did not converge; are rewards and log-probabilities finite?"
        )
    value = top - beta * divergence.score(gain)
    return RegularisedOptimum(renormalised(reference + log_ratios), value.squeeze(-1))


def token_level_optimum(reference_log_probs: Tensor, rewards: Tensor, beta: float, space: SequenceSpace) -> Tensor:
    r"""The policy that improves the reference one token at a time, of which TDPO's loss is derived; log π*(y|x).

    π*(z|h) ∝ π_ref(z|h) exp( Q(h, z)/β ), Q(h, z) = E_ref[ r(x, y) | y begins with h, z ]: the token of most advantage
    over the reference, less β·KL at this token, the rest of the completion being the reference's. With one token a
    completion it is :func:`optimal_log_probs`. r = β Σ_t [ log π*/π_ref + KL(π_ref‖π*) ] + V(x), V(x) = E_ref r.

    Args:
        reference_log_probs: (…, N), all sequences of `space`, normalised.
        rewards: (…, N).
        beta: β > 0.
        space: The sequences.

    Returns:
        (…, N) float64.

    Raises:
        ValueError: β is not positive, or shapes differ.

    Source: Zeng et al., arXiv 2404.11999, section 4: the optimum of one token's advantage less its KL.
    """
    _log_weights(reference_log_probs, rewards, beta)
    (*ended, mass), (*ended_rewards, value) = (space.split(x.double()) for x in (reference_log_probs, rewards))
    tables = []
    for depth in reversed(range(space.length)):
        # The next token after each prefix of `depth` words: what follows a word is known, and so is the end.
        next_mass, gains = (
            torch.full((*x.shape[:-1], len(space.words) ** depth, space.vocabulary), empty, dtype=x.dtype)
            for x, empty in ((mass, -math.inf), (value, 0.0))
        )
        next_mass[..., space.words] = mass.unflatten(-1, (-1, len(space.words)))
        gains[..., space.words] = value.unflatten(-1, (-1, len(space.words)))
        if space.end is not None:
            next_mass[..., space.end], gains[..., space.end] = ended[depth], ended_rewards[depth]
        mass = log_sum_exp(next_mass)
        following = renormalised(next_mass)
        value = (following.exp() * gains).sum(-1)
        tables.append(renormalised(following + gains / beta))
    return space.join(tables[::-1])


def log_normaliser(reference_log_probs: Tensor, rewards: Tensor, beta: float) -> Tensor:
    r"""log Z(x) = :math:`\log \sum_y \pi_{ref}(y|x) e^{r(x,y)/\beta}`, (...); max_π of E_π[r]/β − KL(π‖π_ref)."""
    return log_sum_exp(_log_weights(reference_log_probs, rewards, beta))


def expected_reward(log_probs: Tensor, rewards: Tensor) -> Tensor:
    """E_π[r], (..., N), (..., N) → (...)."""
    return (log_probs.double().exp() * rewards.double()).sum(-1)


def expected_distinct(log_probs: Tensor, samples: int) -> Tensor:
    r"""Expected number of different sequences among independent samples, :math:`\sum_y 1 - (1 - \pi(y))^n`.

    Args:
        log_probs: (..., N).
        samples: n, at least 1.

    Returns:
        (...), between 1 and n.
    """
    probs = log_probs.double().exp().clamp(max=1.0)
    return -torch.expm1(samples * torch.log1p(-probs)).sum(-1)


class FrontierPoint(NamedTuple):
    """The optimum at one β: means over prompts, in nats and in the unit of the reward."""

    beta: float
    reward: float
    kl: float
    entropy: float


def frontier(reference_log_probs: Tensor, rewards: Tensor, betas: Sequence[float]) -> list[FrontierPoint]:
    """Reward, KL to the reference and entropy of π* over β: no policy has more reward at the same KL.

    Args:
        reference_log_probs: (P, N).
        rewards: (P, N).
        betas: Values of β.
    """
    points = []
    for beta in betas:
        best = optimal_log_probs(reference_log_probs, rewards, beta)
        kl = forward_kl(best, reference_log_probs.double()).mean()
        points.append(
            FrontierPoint(beta, float(expected_reward(best, rewards).mean()), float(kl), float(entropy(best).mean()))
        )
    return points


def reward_at_kl(reference_log_probs: Tensor, rewards: Tensor, kl: float) -> float:
    """The largest mean reward of any policy whose mean KL(π ‖ π_ref) over the prompts is at most `kl`.

    The bound is on the mean over prompts, so that the best policy is π* of one β for all of them.

    Args:
        reference_log_probs: (P, N).
        rewards: (P, N).
        kl: Nats, at least 0.

    Raises:
        ValueError: `kl` is negative.
    """
    if kl < 0:
        raise ValueError(f"a KL divergence is not negative, got {kl}")

    def excess(log_beta: float) -> float:
        best = optimal_log_probs(reference_log_probs, rewards, math.exp(log_beta))
        return float(forward_kl(best, reference_log_probs.double()).mean()) - kl

    lowest, highest = -12.0, 12.0
    if excess(highest) >= 0:
        return float(expected_reward(reference_log_probs, rewards).mean())
    if excess(lowest) <= 0:
        possible = rewards.double().masked_fill(reference_log_probs == -torch.inf, -torch.inf)
        return float(possible.max(-1).values.mean())
    log_beta = brentq(excess, lowest, highest, xtol=1e-10)
    best = optimal_log_probs(reference_log_probs, rewards, math.exp(log_beta))
    return float(expected_reward(best, rewards).mean())
