"""Causal language models: `transformers` models behind one call that gives hidden states and the output layer.

Built from a small configuration (from scratch, offline) or read from a folder or the hub's local cache; with LoRA by
`peft` where it is asked for, whose reference is the same network with the adapter switched off. Nothing in a network
drops
units out: a policy and its reference must agree on a sequence's probability, and a stored one with itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from relent.errors import ConfigError
from relent.language.batches import TokenBatch
from relent.language.log_probs import LMOutput

__all__ = ["CausalLM", "build_causal_lm"]

LOGIT_CHANGES = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Settings by which some architectures change logits after the output layer, which the fused losses do not do."""


class CausalLM(nn.Module):
    """A causal language model.

    Args:
        model: A `transformers` model with a linear output layer, or that in `peft`'s wrapper.

    Raises:
        ValueError: Its logits are not one linear function of its hidden states.
    """

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        lm = self._lm
        layer = type(lm.get_output_embeddings())
        if layer is not nn.Linear:
            raise ValueError(
                f"the output layer must be torch.nn.Linear, got {layer.__module__}.{layer.__name__}; leave it out of"
                " LoRA's target_modules"
            )
        changed = [name for name in LOGIT_CHANGES if getattr(lm.config, name, None) not in (None, 1, 1.0)]
        if changed:
            raise ValueError(f"{type(lm).__name__} changes logits after the output layer ({changed[0]}): not supported")
        _no_dropout(self)

    @property
    def _lm(self) -> PreTrainedModel:
        """The `transformers` model without `peft`'s wrapper (whose layers it holds)."""
        lm: PreTrainedModel = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        return lm

    @property
    def config(self) -> PretrainedConfig:
        """The model's settings, as `transformers` names them."""
        return self._lm.config

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks, first to last.

        Raises:
            ValueError: No list of modules has as many items as there are layers.
        """
        count = self.config.num_hidden_layers
        lists = (part for part in self._lm.base_model.modules() if isinstance(part, nn.ModuleList))
        found = next((part for part in lists if len(part) == count), None)
        if found is None:
            raise ValueError(f"{type(self._lm).__name__} has no list of its {count} blocks")
        return found

    @property
    def vocabulary(self) -> int:
        """V, number of logits."""
        return int(self._lm.get_output_embeddings().weight.shape[0])

    @property
    def has_adapter(self) -> bool:
        """Whether LoRA layers are trained beside frozen weights."""
        return hasattr(self.model, "peft_config")

    def forward(self, batch: TokenBatch) -> LMOutput:
        """Hidden states (B, L, H) and the output layer."""
        hidden = self._states(batch.ids, batch.attention_mask(self._lm.dtype), batch.positions, {"use_cache": False})
        return self._output(hidden[0])

    def step(self, ids: Tensor, attention: Tensor, positions: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """Logits after the last of some new tokens, and the cache of keys and values for the next call.

        Args:
            ids: (B, T) new tokens.
            attention: (B, S) bool, tokens seen so far and the new ones, False at padding.
            positions: (B, T) positions of the new tokens.
            cache: What the call before gave; None: the first call.

        Returns:
            Logits (B, V), at least float32, and the cache.
        """
        hidden, cache = self.hidden_step(ids, attention, positions, cache)
        output = self._output(hidden[:, -1])
        return output.layer(output.hidden).to(torch.promote_types(hidden.dtype, torch.float32)), cache

    def hidden_step(self, ids: Tensor, attention: Tensor, positions: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """As `step`, with the hidden states (B, T, H) of the new tokens in the place of logits."""
        return self._states(ids, attention.long(), positions, {"use_cache": True, "cache": cache})

    def _states(self, ids: Tensor, mask: Tensor, positions: Tensor, more: dict[str, Any]) -> tuple[Tensor, Any]:
        found = self._lm.base_model(input_ids=ids, attention_mask=mask, position_ids=positions, **more)
        return found.last_hidden_state, getattr(found, "cache", None)

    def _output(self, hidden: Tensor) -> LMOutput:
        layer: nn.Linear = self._lm.get_output_embeddings()
        return LMOutput(hidden, layer)

    @contextmanager
    def reference(self) -> Iterator[CausalLM]:
        """The network without its adapter: the reference policy at no memory of its own.

        Raises:
            ValueError: There is no adapter; the reference is then a network of its own, or its stored log-
            probabilities.
        """
        if not self.has_adapter:
            raise ValueError(
                "the network has no LoRA adapter to switch off; keep a second one or stored log-probabilities"
            )
        with self.model.disable_adapter():
            yield self

    def load_base(self, state: Mapping[str, Tensor]) -> None:
        """Read weights of another `CausalLM` without adapter; an adapter of this one stays as it is.

        Args:
            state: Names as in that network's `state_dict`.

        Raises:
            ValueError: A weight is missing, too many, or of another shape: it is another network.
        """
        own = self._plain_names()
        wrong = sorted(set(own) ^ set(state)) or [
            name for name, value in state.items() if self.get_parameter_or_buffer(own[name]).shape != value.shape
        ]
        if wrong:
            raise ValueError(
                f"the weights are those of another network: {wrong[0]} is missing, too many, or of other shape"
            )
        self.load_state_dict({own[name]: value for name, value in state.items()}, strict=False)

    def get_parameter_or_buffer(self, name: str) -> Tensor:
        """One tensor of the state, by name."""
        found: Tensor = self.state_dict()[name]
        return found

    def _plain_names(self) -> dict[str, str]:
        """Name that a weight has in a network without adapter → its name here; adapter weights are left out."""
        names = {}
        for name in self.state_dict():
            if ".lora_" not in name and ".lora_embedding" not in name:
                plain = name.replace("model.base_model.model.", "model.", 1) if self.has_adapter else name
                names[plain.replace(".base_layer.", ".")] = name
        return names


def _no_dropout(network: nn.Module) -> None:
    """Set every dropout to zero: of layers, and of attention that is computed by a function."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010


def build_causal_lm(options: Mapping[str, Any], vocabulary: int | None = None, length: int | None = None) -> CausalLM:
    """A causal language model as a task's manifest describes it.

    Args:
        options: `architecture` (a `transformers` model type such as `gpt2`, `llama`) and `config` (its settings), or
            `path` (a folder, or a hub name that is in the local cache) and `revision`; for both `dtype` (of the
            weights), `attention` (`eager` or `sdpa`), `checkpoint_activations`, and `lora` (`rank`, `alpha`,
            `target_modules`).
        vocabulary: V, for a network from scratch.
        length: Longest row, for a network from scratch whose positions are learnt.

    Raises:
        ConfigError: An architecture or setting is unknown, or the folder holds no such model.
    """
    model = _read(options) if "path" in options else _from_scratch(options, vocabulary, length)
    if options.get("checkpoint_activations"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    lora = options.get("lora")
    if not lora:
        return CausalLM(model)
    if options.get("checkpoint_activations"):
        model.enable_input_require_grads()
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        target_modules=lora["target_modules"],
        lora_dropout=0.0,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    try:
        return CausalLM(get_peft_model(model, settings))
    except ValueError as error:
        raise ConfigError(f"LoRA cannot be laid on the model: {error}", key="model.lora") from None


def _loading(options: Mapping[str, Any]) -> dict[str, Any]:
    dtype = getattr(torch, options.get("dtype", "float32"))
    return {"dtype": dtype, "attn_implementation": options.get("attention", "sdpa")}


def _from_scratch(options: Mapping[str, Any], vocabulary: int | None, length: int | None) -> Any:
    architecture, settings = options["architecture"], dict(options.get("config", {}))
    if vocabulary is not None:
        settings["vocab_size"] = vocabulary
    if length is not None:
        settings.setdefault("max_position_embeddings", length)
    try:
        known = AutoConfig.for_model(architecture).to_dict()
        unknown = sorted(set(settings) - set(known) - set(_aliases(architecture)))
        if unknown:
            raise ValueError(f"{architecture} has no setting {unknown[0]!r}")
        config = AutoConfig.for_model(architecture, **settings, bos_token_id=0, eos_token_id=0)
        return AutoModelForCausalLM.from_config(config, **_loading(options))
    except (ValueError, KeyError) as error:
        raise ConfigError(f"cannot build {architecture!r}: {error}", key="model") from None


def _aliases(architecture: str) -> dict[str, str]:
    """Names that an architecture's configuration takes for its own ones (`num_layers` for GPT-2's `n_layer`)."""
    aliases: dict[str, str] = type(AutoConfig.for_model(architecture)).attribute_map
    return aliases


def _read(options: Mapping[str, Any]) -> Any:
    place = options["path"]
    try:
        return AutoModelForCausalLM.from_pretrained(
            place, revision=options.get("revision", "main"), local_files_only=True, **_loading(options)
        )
    except (OSError, ValueError) as error:
        advice = "" if Path(place).is_dir() else "; jobs do not download: fetch it before (`hf download NAME`)"
        raise ConfigError(f"{place}: holds no causal language model ({error}){advice}", key="model.path") from None
