r"""SALSA: PPO whose reference is a soup, the weight average of two SFT models of one pretrained model.

Chegini, Kazemi, Mirzadeh, Yin, Horton, Nabi, Farajtabar, Alizadeh, "SALSA: Soup-based Alignment Learning for Stronger
Adaptation in RLHF", arXiv 2411.01798:

    θ_soup = α θ_1 + (1 − α) θ_2,   J(θ) = E_π r − β KL(π_θ‖π_θ_soup),   the policy starts at θ_1, not at the soup

Everything else is PPO: give the log-probabilities of the soup as the reference to `policy_gradient.token_rewards`. With
α = 1 it is PPO bit for bit.

Where the soup is a geometric mean (linear-softmax models, or to first order around the common initialisation)
KL(π‖soup) = α KL(π‖p_1) + (1 − α) KL(π‖p_2) + log Σ p_1^α p_2^{1−α}: the penalty is then the mean of two KLs, which
:func:`mean_reference_log_probs` gives exactly for any model, as a control (ours).

[paper] the soup of two SFT models as the reference, the start at θ_1, α = ½, the best of its sweep; PPO as TRL has it.
No official code is public. Ours: both SFT models come from the base model and learn the preferred completions, in other
orders of the batches and otherwise alike; PPO is that of `ppo`; the control of two references; networks and recipe.
Soups of outputs and points of the landscape's plane are functions here, not variants.
"""

from __future__ import annotations

import copy
import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from relent.divergences.logits import log_mixture, renormalised
from relent.divergences.reduction import upcast
from relent.files import whole
from relent.language.batches import TokenBatch
from relent.language.log_probs import token_log_probs
from relent.language.regulariser import Regulariser
from relent.methods.alignment.base import Completions
from relent.methods.alignment.config import ProximalConfig
from relent.methods.alignment.proximal import ProximalMethod
from relent.methods.alignment.sft import sft_loss
from relent.methods.config import hyperparameter
from relent.models.causal_lm import CausalLM
from relent.tasks.preference_alignment.references import write_references
from relent.train.sampling import derive_seed

ALPHAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)
"""Of the paper's sweep: points between the two models at which the soup is looked at."""


class Config(ProximalConfig):
    """Hyperparameters of SALSA."""

    alpha: float = hyperparameter(
        0.5, "α, weight of the model that the policy starts from, in the soup.", source="paper", ge=0, le=1
    )
    penalty: Literal["soup", "mean_kl"] = hyperparameter(
        "soup", "KL to the soup, or the mean of the KLs to both models, the control.", source="paper; the control: ours"
    )


State = Mapping[str, Tensor]


def soup(states: Sequence[State], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    r"""Σ_i w_i θ_i over state dicts of one architecture, in float64 and rounded once to the dtype of each tensor.

    Weights of zero leave their state out, so that weights (1, 0) give θ_1 bit for bit, as does a soup of equal states.
    Floating tensors are averaged; others (integer buffers) are those of the first state of positive weight. Tensors
    that share storage in every state share it in the soup: tied weights stay tied. The states are not changed.

    Args:
        states: State dicts with the same names, shapes and dtypes, from the **same** pretrained model.
        weights: w, not negative, summing to one; equal by default.

    Returns:
        A state dict without gradients.

    Raises:
        ValueError: No state, weights that do not fit, states that differ in names, shapes or dtypes, or LoRA factors
            (the average of A and that of B is not the average of B·A: merge the adapters first).

    Source: Wortsman et al., "Model soups", arXiv 2203.05482.
    """
    kept = _weighted(states, weights)
    first = kept[0][1]
    _check_states(kept)
    made: dict[tuple[tuple[object, ...], ...], Tensor] = {}
    result = {}
    for name in first:
        tensors = [(weight, state[name].detach()) for weight, state in kept]
        key = tuple((t.data_ptr(), t.storage_offset(), tuple(t.shape), t.stride(), str(t.device)) for _, t in tensors)
        if key not in made or tensors[0][1].numel() == 0:
            made[key] = _average(tensors)
        result[name] = made[key]
    return result


def _weighted(states: Sequence[State], weights: Sequence[float] | None) -> list[tuple[float, State]]:
    if not states:
        raise ValueError("a soup needs at least one state")
    weights = [1 / len(states)] * len(states) if weights is None else list(weights)
    if len(weights) != len(states) or min(weights) < 0 or not math.isclose(math.fsum(weights), 1.0, rel_tol=1e-9):
        raise ValueError(f"{len(states)} states need as many weights, not negative and summing to one; got {weights}")
    return [(weight, state) for weight, state in zip(weights, states) if weight > 0]


def _check_states(kept: list[tuple[float, State]]) -> None:
    first = kept[0][1]
    for _, state in kept[1:]:
        if state.keys() != first.keys():
            odd = sorted(state.keys() ^ first.keys())
            raise ValueError(f"the states have different names, {', '.join(odd[:5])} among them: not one architecture")
        for name, tensor in state.items():
            if tensor.shape != first[name].shape or tensor.dtype != first[name].dtype:
                found = [f"{tuple(t.shape)} {t.dtype}" for t in (first[name], tensor)]
                raise ValueError(f"{name} is {found[0]} in one state and {found[1]} in another: not one architecture")
    factors = [name for name in first if "lora_A" in name or "lora_B" in name]
    if factors and len(kept) > 1:
        raise ValueError(
            f"{factors[0]} is a LoRA factor: averaging the factors is not averaging the weights; merge the adapters "
            "into their models first (peft: merge_and_unload) and average those"
        )


def _average(tensors: list[tuple[float, Tensor]]) -> Tensor:
    first = tensors[0][1]
    if len(tensors) == 1 or not first.dtype.is_floating_point:
        return first.clone()
    base = first.double()
    # From the first state on, so that equal states give it back whatever the rounding of the weights.
    total = base + sum(weight * (tensor.double() - base) for weight, tensor in tensors[1:])
    return total.to(first.dtype)


def mean_reference_log_probs(first: Tensor, second: Tensor, alpha: float = 0.5) -> Tensor:
    r"""α log p_1 + (1 − α) log p_2, not normalised: the reference whose k1 is the mean of two k1, token by token.

    E_π[log π − this] = α KL(π‖p_1) + (1 − α) KL(π‖p_2): the control "two references, mean KL".

    Args:
        first: log p_1 of sampled tokens, any shape.
        second: log p_2, the same shape.
        alpha: α in [0, 1].

    Raises:
        ValueError: α outside [0, 1].
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    if alpha in (0.0, 1.0):
        return upcast(first if alpha == 1.0 else second)
    return alpha * upcast(first) + (1.0 - alpha) * upcast(second)


def output_soup(
    first: Tensor, second: Tensor, alpha: float = 0.5, *, kind: Literal["geometric", "arithmetic"] = "geometric"
) -> Tensor:
    r"""Average of the outputs instead of the weights (control): p_1^α p_2^{1−α}/Z, or α p_1 + (1 − α) p_2.

    Args:
        first: log p_1, (…, V), normalised.
        second: log p_2, (…, V).
        alpha: α in [0, 1].
        kind: Of the mean. The geometric one is the soup of linear-softmax models.

    Returns:
        (…, V) log-probabilities.

    Raises:
        ValueError: α outside [0, 1], or an unknown kind.
    """
    if kind == "arithmetic":
        return log_mixture(upcast(first), upcast(second), alpha)
    if kind != "geometric":
        raise ValueError(f"kind={kind!r} is unknown; use 'geometric' or 'arithmetic'")
    return renormalised(mean_reference_log_probs(first, second, alpha))


def interpolated(states: Sequence[State], coordinates: Tensor) -> list[dict[str, Tensor]]:
    r"""Points of the affine hull of states, for landscapes on the segment or plane through (θ_1, θ_2, θ_rlhf).

    Args:
        states: K state dicts, as for :func:`soup`.
        coordinates: (M, K), each row summing to one; negative entries extrapolate.

    Raises:
        ValueError: Rows that do not sum to one, or states that differ.
    """
    if coordinates.ndim != 2 or coordinates.shape[1] != len(states):
        raise ValueError(f"coordinates must be (M, {len(states)}), got {tuple(coordinates.shape)}")
    if not bool(((coordinates.double().sum(-1) - 1).abs() < 1e-6).all()):
        raise ValueError("the coordinates of a point must sum to one")
    pairs = [(1.0, state) for state in states]
    _check_states(pairs)
    return [
        {name: _average([(float(w), state[name].detach()) for w, state in zip(row, states)]) for name in states[0]}
        for row in coordinates
    ]


class SALSA(ProximalMethod):
    """Trains two SFT models (`sft_1`, `sft_2`), averages them (`soup`), then goes on from the first by PPO.

    The stage `soup` writes the average as weights like any other stage's, adapters merged, and `soup.csv`: loss and
    reward on the way from the second model to the first.
    """

    config: Config

    def setup_method(self) -> None:
        self.experience = {}
        if self.spec.stage == "soup":
            self.states = [self._state("sft_1"), self._state("sft_2")]
            self.network = self._network(self._soup(self.config.alpha))
        elif self.spec.final:
            self.network.load_state_dict(self.task.weights("sft_1"))
            both = ("sft_1", "sft_2") if self.config.penalty == "mean_kl" else ()
            self.models = [self._network(self._state(stage)) for stage in both]
            super().setup_method()

    def prepare(self, datamodule: Any) -> None:
        """Have the SFT models see the data in orders of their own."""
        self.tokens_per_item, self.validation = datamodule.tokens_per_item("chosen"), datamodule.val_dataloader()
        if not self.spec.final:
            datamodule.seed = derive_seed(self.spec.stage, self.spec.seed)

    def terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.spec.final:
            return super().terms(batch)
        rows = TokenBatch.from_tensors(batch, "chosen_")
        return {"nll": sft_loss(self.token_log_probs(rows), rows.loss, self.tokens_per_item)}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        """Of an SFT model the loss, of the policy reward and KL to the soup."""
        if self.spec.final:
            return super().validation_step(batch, batch_idx)
        self.log("validation/nll", self.terms(batch)["nll"], batch_size=len(batch["prompt"]))

    # ------------------------------------------------------------------------------------------ the reference

    def regulariser(self) -> Regulariser | None:
        """β·KL(policy ‖ soup); of the mean of two KLs none."""
        return Regulariser(self.config.beta, reference="soup") if self.config.penalty == "soup" else None

    def implicit_rewards(self, batch: dict[str, Tensor]) -> Tensor:
        """β log π/π_soup of both completions; with `mean_kl` log π_soup is the mean of two log-probabilities."""
        rows = [TokenBatch.from_tensors(batch, f"{name}_") for name in ("chosen", "rejected")]
        sides = [Completions(self.token_log_probs(r), self.reference_log_probs(r), r.loss) for r in rows]
        return self.config.beta * torch.stack([side.log_ratio() for side in sides], 1)

    def reference_network(self) -> CausalLM:
        """The soup."""
        return self._network(self.task.weights("soup"))

    @torch.no_grad()
    def reference_log_probs(self, rows: TokenBatch) -> Tensor:
        """log π_soup of the tokens in the loss, (N, L); with `mean_kl` α log p_1 + (1 − α) log p_2, not normalised."""
        if self.config.penalty == "soup":
            return super().reference_log_probs(rows)
        first, second = (token_log_probs(network.to(self.device)(rows), rows) for network in self.models)
        return mean_reference_log_probs(first, second, self.config.alpha)

    def _network(self, state: State) -> CausalLM:
        """A frozen network without adapter."""
        network = self.task.reference_network()
        network.load_base(state)
        return network

    def _state(self, stage: str) -> State:
        """Weights that an SFT stage ended with, its adapter merged."""
        state = self.task.weights(stage)
        if not self.network.has_adapter:
            return state
        network = copy.deepcopy(self.network)
        network.load_state_dict(state)
        return CausalLM(network.model.merge_and_unload()).state_dict()

    def _soup(self, alpha: float) -> State:
        return soup(self.states, [alpha, 1 - alpha])

    # ------------------------------------------------------------------------------------------ outputs

    def write_extras(self, folder: Path) -> None:
        """`soup.csv` of the soup; of the policy `references.zarr`, log-probabilities of all that it may be held to."""
        if self.spec.stage == "soup":
            self._write_path(folder / "soup.csv")
        elif self.spec.final and self.task.evaluation.exact:
            states = {"first": self._state("sft_1"), "soup": self.task.weights("soup")}
            write_references(folder, self.task, {name: self._network(state) for name, state in states.items()})

    def _write_path(self, path: Path) -> None:
        """At each α the validation loss a token and, where the data have a reward, its mean and that mean's error."""
        batches = list(self.validation)
        prompts = torch.cat([batch["prompt"] for batch in batches])
        with whole(path) as temporary, temporary.open("w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["alpha", "nll", *(["reward", "reward_error"] if self.task.reward else [])])
            for alpha in ALPHAS:
                network = self._network(self._soup(alpha))
                losses = torch.cat([_losses(network, TokenBatch.from_tensors(batch, "chosen_")) for batch in batches])
                writer.writerow([alpha, float(losses.mean()), *self._mean_reward(network, prompts)])

    def _mean_reward(self, network: CausalLM, prompts: Tensor) -> list[float]:
        """Of one completion of each prompt, and its standard error; empty without a reward."""
        if not self.task.reward:
            return []
        tokens, lengths = self.task.network_law(network).sample(prompts)
        rewards = self.task.reward(self.task.texts.completed(prompts.tolist(), tokens, lengths))
        return [float(rewards.mean()), float(rewards.std() / len(rewards) ** 0.5)]


def _losses(network: CausalLM, rows: TokenBatch) -> Tensor:
    """−log π of each token in the loss, (tokens,)."""
    return -token_log_probs(network(rows), rows)[rows.loss]
