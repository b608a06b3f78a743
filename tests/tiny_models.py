"""Language models of some thousand parameters."""

from __future__ import annotations

import torch

from relent.models.causal_lm import CausalLM, build_causal_lm

VOCABULARY, LENGTH = 11, 24
SIZES = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 16},
    "llama": {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "hidden_size": 16,
        "intermediate_size": 24,
    },
}


def tiny(architecture: str = "gpt2", seed: int = 0, **options) -> CausalLM:
    """A network of float64 whose outputs are far from uniform."""
    torch.manual_seed(seed)
    network = build_causal_lm(
        {"architecture": architecture, "config": SIZES[architecture], "dtype": "float64", **options}, VOCABULARY, LENGTH
    )
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
    return network.eval()
