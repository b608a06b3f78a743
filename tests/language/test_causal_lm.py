from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from relent.errors import ConfigError
from relent.language.batches import pack, pad
from relent.language.log_probs import sequence_log_probs
from relent.models.causal_lm import CausalLM, build_causal_lm
from tiny_models import LENGTH, SIZES, VOCABULARY, tiny

BATCH = pad([[1, 2], [3]], [[4, 0], [5, 6, 7]], padding=0)
LORA = {"rank": 2, "alpha": 4.0, "target_modules": "all-linear"}


def test_nothing_is_random_in_training_mode(network):
    network.train()
    first, second = (sequence_log_probs(network(BATCH), BATCH) for _ in range(2))
    network.eval()
    assert torch.equal(first, second)
    assert torch.equal(first, sequence_log_probs(network(BATCH), BATCH))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_implementations_of_attention_agree_also_on_packed_rows(architecture):
    packed = pack([[1, 2, 3], [4, 5], [6, 7, 8, 9]], 8, padding=0)
    for batch in (BATCH, packed):
        eager, sdpa = (tiny(architecture, attention=name) for name in ("eager", "sdpa"))
        found = [sequence_log_probs(network(batch), batch) for network in (eager, sdpa)]
        # The eager attention of Llama takes its softmax in float32.
        torch.testing.assert_close(*found, rtol=0, atol=1e-6 if architecture == "llama" else 1e-12)


def test_recomputed_activations_give_the_same_gradients():
    found = []
    for checkpoint in (False, True):
        network = tiny(checkpoint_activations=checkpoint).train()
        sequence_log_probs(network(BATCH), BATCH).sum().backward()
        found.append({name: p.grad for name, p in network.named_parameters()})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_fresh_adapter_changes_nothing_and_can_be_switched_off(architecture):
    plain, adapted = tiny(architecture), tiny(architecture, lora=LORA)
    adapted.load_base(plain.state_dict())
    expected = sequence_log_probs(plain(BATCH), BATCH)
    with adapted.reference():
        torch.testing.assert_close(sequence_log_probs(adapted(BATCH), BATCH), expected, rtol=0, atol=1e-12)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) < sum(p.numel() for p in plain.parameters()) / 2
    with torch.no_grad():
        for parameter in trained:
            parameter.normal_(generator=torch.Generator().manual_seed(0))
        assert float((sequence_log_probs(adapted(BATCH), BATCH) - expected).abs().max()) > 1e-3
    with adapted.reference():
        torch.testing.assert_close(sequence_log_probs(adapted(BATCH), BATCH), expected, rtol=0, atol=1e-12)


def test_a_model_is_read_from_a_folder(tmp_path):
    network = tiny("llama")
    network.model.save_pretrained(tmp_path)
    again = build_causal_lm({"path": str(tmp_path), "dtype": "float64"})
    assert again.vocabulary == VOCABULARY
    torch.testing.assert_close(
        sequence_log_probs(again(BATCH), BATCH), sequence_log_probs(network(BATCH), BATCH), rtol=0, atol=1e-12
    )


def test_a_model_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match="holds no causal language model"):
        build_causal_lm({"path": str(tmp_path)})
    with pytest.raises(ConfigError, match="jobs do not download"):
        build_causal_lm({"path": "no-one/no-such-model"})


def test_logits_that_are_no_linear_function_are_refused():
    config = AutoConfig.for_model("gpt2", vocab_size=7, **SIZES["gpt2"])
    config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        CausalLM(AutoModelForCausalLM.from_config(config))
    with pytest.raises(ConfigError, match="leave it out of LoRA"):
        tiny("llama", lora=LORA | {"target_modules": ["lm_head"]})


def test_an_adapter_for_layers_that_are_not_there_is_refused():
    with pytest.raises(ConfigError, match="LoRA"):
        tiny("gpt2", lora=LORA | {"target_modules": ["no_such_layer"]})


def test_weights_of_another_network_are_refused(gpt2):
    with pytest.raises(ValueError, match="another network"):
        tiny("llama").load_base(gpt2.state_dict())
    with pytest.raises(ValueError, match="no LoRA adapter"), gpt2.reference():
        pass


def test_the_number_of_positions_is_that_asked_for(gpt2):
    assert gpt2.model.config.max_position_embeddings == LENGTH
