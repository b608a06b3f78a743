from __future__ import annotations

import pytest
import torch

from relent.errors import ConfigError
from relent.language.batches import TokenBatch, pad
from relent.language.layers import activation_means, hidden_states
from relent.models.causal_lm import CausalLM, build_causal_lm

GPT2 = {"architecture": "gpt2", "config": {"n_layer": 3, "n_head": 2, "n_embd": 8}}
LLAMA = {
    "architecture": "llama",
    "config": {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "hidden_size": 8,
        "intermediate_size": 12,
    },
}
ROWS = pad([[0, 3], [0]], [[4, 2], [1]], padding=0)


def built(options: dict, **changes) -> CausalLM:
    torch.manual_seed(0)
    return build_causal_lm(options | {"dtype": "float64"} | changes, 7, 8)


def whole(model: CausalLM, rows: TokenBatch):
    return model.model(
        rows.ids, attention_mask=rows.attention.long(), position_ids=rows.positions, output_hidden_states=True
    )


@pytest.mark.parametrize("options", [GPT2, LLAMA])
def test_hidden_states_are_those_of_transformers(options):
    model = built(options)
    expected = torch.stack(whole(model, ROWS).hidden_states[1:])
    hooks = [len(block._forward_hooks) for block in model.blocks]
    output, states = hidden_states(model, ROWS)
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-12)
    assert torch.equal(states[-1], output.hidden)
    assert not states.requires_grad
    assert [len(block._forward_hooks) for block in model.blocks] == hooks


@pytest.mark.parametrize(("options", "layers"), [(GPT2, 3), (LLAMA, 2)])
def test_activations_are_averaged_over_their_features(options, layers):
    model = built(options)
    output, means = activation_means(model, ROWS)
    counts = {kind: len(values) for kind, values in means.items()}
    assert counts == {"mlp": layers, "attention": 4 * layers, "residual": 2 + 7 * layers, "logits": 1}
    assert all(values.shape == (2, 4, 1) for found in means.values() for values in found)
    found = whole(model, ROWS)
    torch.testing.assert_close(means["logits"][0], found.logits.mean(-1, keepdim=True), rtol=0, atol=1e-12)
    torch.testing.assert_close(means["residual"][0], found.hidden_states[0].mean(-1, keepdim=True), rtol=0, atol=1e-12)
    torch.testing.assert_close(means["residual"][-1], output.hidden.mean(-1, keepdim=True), rtol=0, atol=1e-12)


def test_a_fused_layer_counts_as_queries_keys_and_values():
    model = built(GPT2)
    _, means = activation_means(model, ROWS, ["attention"])
    first = model.blocks[0]
    with torch.no_grad():
        embedded = whole(model, ROWS).hidden_states[0]
        parts = first.attn.c_attn(first.ln_1(embedded)).split(8, dim=-1)
    for values, part in zip(means["attention"], parts):
        torch.testing.assert_close(values, part.mean(-1, keepdim=True), rtol=0, atol=1e-12)
    assert set(means) == {"attention"}


def test_with_the_adapter_switched_off_they_are_the_base_model_s():
    adapted = built(GPT2, lora={"rank": 2, "alpha": 4.0, "target_modules": ["c_attn", "c_proj"]})
    base = built(GPT2)
    adapted.load_base(base.state_dict())
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    changed = activation_means(adapted, ROWS)[1]
    with adapted.reference() as network:
        found = activation_means(network, ROWS)[1]
    for kind, values in activation_means(base, ROWS)[1].items():
        for ours, expected in zip(found[kind], values):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(changed["mlp"][0], found["mlp"][0])


def test_an_architecture_whose_parts_are_not_known_is_refused():
    settings = {"num_layers": 1, "hidden_size": 8, "num_heads": 2, "attention_types": [[["global"], 1]]}
    model = built({"architecture": "gpt_neo", "config": settings}, attention="eager")
    with pytest.raises(ConfigError, match="gpt_neo"):
        activation_means(model, ROWS)
    assert hidden_states(model, ROWS)[1].shape == (1, 2, 4, 8)
