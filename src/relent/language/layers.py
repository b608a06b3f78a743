"""What happens inside a causal language model: hidden states after each block, and activations on the way.

Read by hooks, without gradient: they are of a model that is not trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from relent.divergences.reduction import upcast
from relent.errors import ConfigError
from relent.language.batches import TokenBatch
from relent.language.log_probs import LMOutput
from relent.models.causal_lm import CausalLM

__all__ = ["KINDS", "ActivationKind", "activation_means", "hidden_states"]

ActivationKind = Literal["mlp", "attention", "residual", "logits"]
KINDS: tuple[ActivationKind, ...] = ("mlp", "attention", "residual", "logits")


class _Block(NamedTuple):
    """Where the parts of an architecture's block stand: names of modules."""

    attention_norm: str
    attention: str
    attention_output: str
    queries_keys_values: tuple[str, ...]
    mlp_norm: str
    mlp: str
    mlp_output: str


_GPT2 = _Block("ln_1", "attn", "attn.c_proj", ("attn.c_attn",), "ln_2", "mlp", "mlp.c_proj")
_LLAMA = _Block(
    "input_layernorm",
    "self_attn",
    "self_attn.o_proj",
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm",
    "mlp",
    "mlp.down_proj",
)
BLOCKS = {"gpt2": _GPT2, "llama": _LLAMA, "mistral": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA}
"""Architectures whose activations can be read."""


class _Point(NamedTuple):
    """Where values (B, L, D) are read: at a module's input or output, in equal parts of the features."""

    module: nn.Module
    side: Literal["input", "output"]
    parts: int = 1


@contextmanager
def _recorded(points: Mapping[str, _Point], kept: Callable[[Tensor, int], Tensor]) -> Iterator[dict[str, Tensor]]:
    """A context that gives what `kept` makes of the values at each point, and of their number of parts."""
    found: dict[str, Tensor] = {}

    def before(name: str, parts: int, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        found[name] = kept(inputs[0], parts)

    def after(name: str, parts: int, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        found[name] = kept(output[0] if isinstance(output, tuple) else output, parts)

    handles = [
        point.module.register_forward_pre_hook(partial(before, name, point.parts))
        if point.side == "input"
        else point.module.register_forward_hook(partial(after, name, point.parts))
        for name, point in points.items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def hidden_states(model: CausalLM, rows: TokenBatch) -> tuple[LMOutput, Tensor]:
    """A model's output and its hidden states after each block, (G, B, L, H).

    The last are those after the final norm, as `transformers` counts them; the embeddings are not among them.
    """
    inner = {str(number): _Point(block, "output") for number, block in enumerate(model.blocks[:-1])}
    with _recorded(inner, lambda values, _: values) as found:
        output = model(rows)
    return output, torch.stack([*found.values(), output.hidden])


@torch.no_grad()
def activation_means(
    model: CausalLM, rows: TokenBatch, kinds: Sequence[ActivationKind] = KINDS
) -> tuple[LMOutput, dict[ActivationKind, list[Tensor]]]:
    """A model's output, and its activations at each token averaged over their features.

    =========== ===========================================================================================
    `mlp`       in each block, what enters the MLP's output layer
    `attention` in each block queries, keys, values (before a rotary embedding), and what enters the output layer
    `residual`  the embeddings; in each block the stream before and after each norm, what attention and MLP add,
                and the stream after it; the stream after the final norm
    `logits`    the logits
    =========== ===========================================================================================

    Args:
        model: Of an architecture in `BLOCKS`.
        rows: B rows of L tokens.
        kinds: Those that are asked for.

    Returns:
        The output, and by kind tensors (B, L, 1), at least float32. No logits are held: the mean of a linear layer's
        outputs is one linear function.

    Raises:
        ConfigError: Another architecture.
    """
    points = {name: point for name, point in _points(model).items() if name.split("/")[0] in kinds}
    with _recorded(points, _feature_means) as found:
        output: LMOutput = model(rows)
    means: dict[ActivationKind, list[Tensor]] = {kind: [] for kind in kinds}
    for name, values in found.items():
        means[name.split("/")[0]] += values.split(1, -1)  # type: ignore[index]
    if "residual" in means:
        means["residual"].append(_feature_means(output.hidden))
    if "logits" in means:
        weight, bias = upcast(output.layer.weight), output.layer.bias
        mean = upcast(output.hidden) @ weight.mean(0)
        means["logits"].append((mean if bias is None else mean + bias.mean())[..., None])
    return output, means


def _feature_means(values: Tensor, parts: int = 1) -> Tensor:
    """(B, L, D) → (B, L, parts)."""
    return upcast(values).unflatten(-1, (parts, -1)).mean(-1)


def _points(model: CausalLM) -> dict[str, _Point]:
    """Where activations are read: `kind/block/name` → module and side."""
    parts = BLOCKS.get(model.config.model_type)
    if parts is None:
        raise ConfigError(
            f"activations of {model.config.model_type!r} cannot be read; there are {', '.join(BLOCKS)}", key="model"
        )
    fused = 3 // len(parts.queries_keys_values)
    points = {"residual/embeddings": _Point(model.blocks[0], "input")}
    for number, block in enumerate(model.blocks):
        part = block.get_submodule
        points |= {
            f"mlp/{number}/activation": _Point(part(parts.mlp_output), "input"),
            **{f"attention/{number}/{n}": _Point(part(n), "output", fused) for n in parts.queries_keys_values},
            f"attention/{number}/values": _Point(part(parts.attention_output), "input"),
            f"residual/{number}/before_attention_norm": _Point(part(parts.attention_norm), "input"),
            f"residual/{number}/after_attention_norm": _Point(part(parts.attention_norm), "output"),
            f"residual/{number}/attention": _Point(part(parts.attention), "output"),
            f"residual/{number}/before_mlp_norm": _Point(part(parts.mlp_norm), "input"),
            f"residual/{number}/after_mlp_norm": _Point(part(parts.mlp_norm), "output"),
            f"residual/{number}/mlp": _Point(part(parts.mlp), "output"),
            f"residual/{number}/after": _Point(block, "output"),
        }
    return points
