from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relent.language.batches import TokenBatch, concatenate, pack, pad
from relent.language.log_probs import sequence_log_probs, token_log_probs
from tiny_models import LENGTH, VOCABULARY, tiny

token = st.integers(0, VOCABULARY - 1)
rows = st.lists(st.tuples(st.lists(token, min_size=1, max_size=4), st.lists(token, max_size=4)), min_size=1, max_size=4)
texts = st.lists(st.lists(token, min_size=1, max_size=14), min_size=1, max_size=6).filter(
    lambda found: any(len(text) > 1 for text in found)
)
NETWORK = tiny()


def split(pairs):
    return [p for p, _ in pairs], [c for _, c in pairs]


def test_padding_on_either_side_marks_prompt_completion_and_position():
    right = pad([[1, 2], [3]], [[4], [5, 6, 7]], padding=0, length=5)
    assert right.ids.tolist() == [[1, 2, 4, 0, 0], [3, 5, 6, 7, 0]]
    assert right.loss.tolist() == [[False, False, True, False, False], [False, True, True, True, False]]
    assert right.positions.tolist() == [[0, 1, 2, 0, 0], [0, 1, 2, 3, 0]]
    left = pad([[1, 2], [3]], [[4], [5, 6, 7]], padding=0, side="left", length=5)
    assert left.ids.tolist() == [[0, 0, 1, 2, 4], [0, 3, 5, 6, 7]]
    assert left.positions.tolist() == [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3]]
    assert left.lengths.tolist() == right.lengths.tolist() == [3, 4]


@settings(max_examples=30, deadline=None)
@given(rows, st.integers(0, VOCABULARY - 1), st.integers(0, 5))
def test_neither_side_nor_amount_nor_id_of_padding_changes_a_log_probability(pairs, padding, more):
    prompts, completions = split(pairs)
    width = max(len(p) + len(c) for p, c in pairs)
    expected = sequence_log_probs(NETWORK(pad(prompts, completions, padding=0)), pad(prompts, completions, padding=0))
    for side in ("left", "right"):
        batch = pad(prompts, completions, padding=padding, side=side, length=width + more)
        torch.testing.assert_close(sequence_log_probs(NETWORK(batch), batch), expected, rtol=0, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(texts, st.integers(2, LENGTH), st.integers(0, VOCABULARY - 1))
def test_a_packed_text_has_the_log_probabilities_that_it_has_alone(found, length, padding):
    packed = pack(found, length, padding=padding)
    values = token_log_probs(NETWORK(packed), packed)[packed.loss]
    alone = []
    for text in found:
        for start in range(0, len(text), length):
            piece = text[start : start + length]
            if len(piece) > 1:
                batch = pad([piece[:1]], [piece[1:]], padding=0)
                alone.append(token_log_probs(NETWORK(batch), batch)[batch.loss])
    torch.testing.assert_close(values, torch.cat(alone), rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(texts, st.integers(2, LENGTH))
def test_packing_loses_no_token_but_lone_ones_and_fills_rows_in_order(found, length):
    packed = pack(found, length, padding=0)
    pieces = [t[i : i + length] for t in found for i in range(0, len(t), length)]
    kept = [token for piece in pieces if len(piece) > 1 for token in piece]
    assert packed.ids[packed.attention].tolist() == kept
    assert int(packed.loss.sum()) == sum(len(piece) - 1 for piece in pieces if len(piece) > 1)


def test_a_token_of_a_packed_text_gets_no_gradient_from_another_text():
    packed = pack([[1, 2, 3], [4, 5, 6]], 6, padding=0)
    embedded = NETWORK.model.transformer.wte.weight
    grad = torch.autograd.grad(NETWORK(packed).hidden[0, 3:].pow(3).sum(), embedded)[0]
    assert not grad[[1, 2, 3]].any()
    assert grad[[4, 5, 6]].any()


def test_concatenated_batches_keep_their_rows():
    first, second = pad([[1, 2]], [[3]], padding=0), pad([[4]], [[5, 6, 7, 8]], padding=0)
    both = concatenate([first, second], padding=9)
    assert both.ids.tolist() == [[1, 2, 3, 9, 9], [4, 5, 6, 7, 8]]
    assert both.lengths.tolist() == [3, 5]
    with pytest.raises(ValueError, match="no batch"):
        concatenate([], 0)


def test_a_batch_survives_the_way_through_a_data_loader():
    batch = pack([[1, 2], [3, 4, 5]], 6, padding=0)
    again = TokenBatch.from_tensors(batch.tensors("x_"), "x_")
    assert all(torch.equal(again.tensors()[name], value) for name, value in batch.tensors().items())
    assert len(batch.rows(slice(0, 1))) == 1


FAULTS = {
    "loss": (torch.tensor([[False, True, True, True]]), "padding is in the loss"),
    "attention": (torch.tensor([[True, False, True, False]]), "padding stands between tokens"),
    "positions": (torch.tensor([[0, 2, 3, 0]]), "positions must count"),
    "segments": (torch.tensor([[2, 2, 2, 0]]), "segments must count"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_mask_that_does_not_fit_is_refused_and_the_place_named(name):
    batch = pad([[1]], [[2, 3]], padding=0, length=4)
    values, message = FAULTS[name]
    with pytest.raises(ValueError, match=rf"{message}.*row 0, column"):
        replace(batch, **{name: values})


def test_a_first_token_cannot_be_in_the_loss():
    ids, here = torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="nothing before it predicts it"):
        TokenBatch.of(ids, here, here)
    packed = pack([[1, 2], [3, 4]], 4, padding=0)
    with pytest.raises(ValueError, match="nothing before it predicts it"):
        replace(packed, loss=packed.attention & (torch.arange(4) > 0))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"ids": torch.zeros(1, 4)}, TypeError),
        ({"loss": torch.zeros(1, 4)}, TypeError),
        ({"loss": torch.zeros(1, 3, dtype=torch.bool)}, ValueError),
        ({"ids": torch.zeros(4, dtype=torch.int64)}, ValueError),
    ],
)
def test_wrong_types_and_shapes_are_refused(change, error):
    with pytest.raises(error):
        replace(pad([[1]], [[2, 3]], padding=0, length=4), **change)


def test_rows_that_cannot_be_made_are_refused():
    with pytest.raises(ValueError, match="at least one token"):
        pad([[]], [[1]], padding=0)
    with pytest.raises(ValueError, match="2 prompts and 1 completions"):
        pad([[1], [2]], [[1]], padding=0)
    with pytest.raises(ValueError, match="more than the length 2"):
        pad([[1]], [[1, 2]], padding=0, length=2)
    with pytest.raises(ValueError, match="nothing to predict"):
        pack([[1]], 4, padding=0)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        pack([[1, 2]], 1, padding=0)
