from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from trl.trainer.utils import selective_log_softmax

from relent.language.batches import TokenBatch, pad
from relent.language.log_probs import LMOutput, sequence_log_probs, token_log_probs
from tiny_models import tiny

BATCH = pad([[1, 2], [3], [4, 5, 6]], [[4, 0], [5, 6, 7, 0], []], padding=0)


def naive(network, batch: TokenBatch) -> torch.Tensor:
    """The form with all logits at once, through the model's own forward pass."""
    logits = network.model(
        input_ids=batch.ids, attention_mask=batch.attention.long(), position_ids=batch.positions
    ).logits
    found = logits[:, :-1].log_softmax(-1).gather(-1, batch.ids[:, 1:, None]).squeeze(-1)
    return torch.nn.functional.pad(found, (1, 0)).masked_fill(~batch.loss, 0.0)


@pytest.mark.parametrize("chunk", [1, 2, None])
def test_chunks_equal_the_naive_form(network, chunk):
    values = token_log_probs(network(BATCH), BATCH, chunk_tokens=chunk)
    torch.testing.assert_close(values, naive(network, BATCH), rtol=0, atol=1e-12)


def test_gradients_of_chunks_equal_those_of_the_naive_form():
    network = tiny()
    weights = torch.randn(3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for values in (sequence_log_probs(network(BATCH), BATCH, chunk_tokens=2), naive(network, BATCH).sum(1)):
        network.zero_grad()
        (values * weights).sum().backward()
        found.append({name: p.grad.clone() for name, p in network.named_parameters()})
    for name, expected in found[1].items():
        torch.testing.assert_close(found[0][name], expected, rtol=1e-10, atol=1e-12, msg=name)


def test_the_loss_of_transformers_is_the_same_mean(network):
    labels = BATCH.ids.masked_fill(~BATCH.loss, -100)
    expected = network.model(
        input_ids=BATCH.ids, attention_mask=BATCH.attention.long(), position_ids=BATCH.positions, labels=labels
    ).loss
    found = -sequence_log_probs(network(BATCH), BATCH).sum() / BATCH.loss.sum()
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-6)  # that one is computed in float32
    logits = network.model(input_ids=BATCH.ids, attention_mask=BATCH.attention.long()).logits
    exact = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)


def test_the_function_of_trl_agrees(network):
    logits = network.model(input_ids=BATCH.ids, attention_mask=BATCH.attention.long()).logits
    expected = selective_log_softmax(logits[:, :-1], BATCH.ids[:, 1:]).masked_fill(~BATCH.loss[:, 1:], 0.0)
    found = token_log_probs(network(BATCH), BATCH)[:, 1:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_temperature_divides_logits(network):
    logits = network.model(input_ids=BATCH.ids, attention_mask=BATCH.attention.long()).logits / 0.7
    expected = logits[:, :-1].log_softmax(-1).gather(-1, BATCH.ids[:, 1:, None]).squeeze(-1)[BATCH.loss[:, 1:]]
    found = token_log_probs(network(BATCH), BATCH, temperature=0.7)[BATCH.loss]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_bias_of_the_output_layer_counts():
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, 3, 4, generator=generator, dtype=torch.float64)
    layer = torch.nn.Linear(4, 7, dtype=torch.float64)
    batch = pad([[1]], [[2, 3]], padding=0)
    expected = layer(hidden)[0, :2].log_softmax(-1)[[0, 1], [2, 3]]
    torch.testing.assert_close(token_log_probs(LMOutput(hidden, layer), batch)[0, 1:], expected)


def test_a_row_without_completion_has_log_probability_zero(network):
    assert sequence_log_probs(network(BATCH), BATCH)[2] == 0


def test_hidden_states_of_another_batch_are_refused(network):
    with pytest.raises(ValueError, match="same tokens"):
        token_log_probs(network(BATCH), BATCH.rows(slice(0, 2)))
