from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from relent.language.batches import pad
from relent.language.exact import SequenceSpace
from relent.language.generation import filtered_log_probs, generate, row_uniforms
from relent.language.log_probs import token_log_probs
from tiny_models import VOCABULARY, tiny

PROMPTS = [[1, 2, 3], [4], [5, 6], [7, 1]]
NETWORK = tiny()


def sample(network, prompts=PROMPTS, seeds=None, width=None, **settings):
    batch = pad(prompts, padding=0, side="left", length=width)
    arguments = {"max_new_tokens": 6, "end": 0, "padding": 0} | settings
    return generate(network, batch, seeds=list(range(len(prompts))) if seeds is None else seeds, **arguments)


def test_greedy_generation_is_that_of_transformers(network):
    batch = pad(PROMPTS, padding=0, side="left")
    expected = network.model.generate(
        input_ids=batch.ids,
        attention_mask=batch.attention.long(),
        generation_config=GenerationConfig(
            max_new_tokens=6, do_sample=False, eos_token_id=0, pad_token_id=0, bos_token_id=0
        ),
    )[:, 3:]
    found = sample(network, temperature=0.0)
    assert torch.equal(found.tokens[:, : expected.shape[1]], expected)
    assert not found.sampling_log_probs.any()


def test_log_probs_are_those_of_a_pass_over_the_whole_rows(network):
    found = sample(network, temperature=0.8)
    batch = found.batch()
    values = token_log_probs(network(batch), batch)[:, 3:]
    torch.testing.assert_close(found.log_probs, values, rtol=0, atol=1e-12)
    tempered = token_log_probs(network(batch), batch, temperature=0.8)[:, 3:]
    torch.testing.assert_close(found.sampling_log_probs, tempered, rtol=0, atol=1e-12)
    assert torch.equal(batch.loss[:, 3:], found.mask)


def test_a_row_is_over_after_its_end_and_the_end_belongs_to_it(network):
    found = sample(network, PROMPTS * 8)
    ended = (found.tokens == 0) & found.mask
    assert int(ended.sum(1).max()) == 1
    after = torch.cumsum(ended.int(), 1) - ended.int() > 0
    assert not found.mask[after].any()
    assert found.mask[~after].all()
    assert not found.log_probs[after].any()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**40)), min_size=1, max_size=5),
    st.integers(0, 3),
    st.sampled_from([{}, {"top_k": 3}, {"top_p": 0.7}, {"temperature": 2.0}]),
)
def test_a_completion_depends_on_its_prompt_and_seed_alone(rows, more, how):
    together = sample(NETWORK, [PROMPTS[i] for i, _ in rows], [s for _, s in rows], width=3 + more, **how)
    for number, (prompt, seed) in enumerate(rows):
        alone = sample(NETWORK, [PROMPTS[prompt]], [seed], **how)
        assert torch.equal(together.tokens[number], alone.tokens[0])
        torch.testing.assert_close(together.log_probs[number], alone.log_probs[0], rtol=0, atol=1e-12)


def test_a_longer_limit_only_goes_on():
    short, long = sample(NETWORK, max_new_tokens=3), sample(NETWORK, max_new_tokens=6)
    assert torch.equal(short.tokens, long.tokens[:, :3])


def test_samples_have_the_frequencies_of_the_exact_distribution():
    space, prompt, count = SequenceSpace(VOCABULARY, 2, end=0), [3, 1], 20_000
    exact = space.log_probs(NETWORK, prompt).exp()
    found = sample(NETWORK, [prompt] * count, list(range(count)), max_new_tokens=2)
    observed = torch.bincount(space.index(found.tokens, found.mask.sum(1)), minlength=space.size).double()
    expected = exact * count
    common = expected >= 5
    rest = (observed[~common].sum() - expected[~common].sum()) ** 2 / expected[~common].sum().clamp_min(1e-9)
    statistic = float((((observed - expected) ** 2 / expected)[common]).sum() + rest)
    degrees = int(common.sum())
    assert statistic < degrees + 5 * math.sqrt(2 * degrees)  # five standard deviations of chi-square


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.2, 3.0), st.integers(1, VOCABULARY), st.floats(0.05, 0.999))
def test_filters_are_those_of_transformers(seed, temperature, top_k, top_p):
    logits = 3 * torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = logits
    for warper in (TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)):
        expected = warper(None, expected)
    found = filtered_log_probs(logits, temperature, top_k, top_p)
    torch.testing.assert_close(found, expected.log_softmax(-1), rtol=0, atol=1e-12)


def test_uniform_numbers_are_a_function_of_seed_and_step():
    assert torch.equal(row_uniforms([5, 9], 4)[1], row_uniforms([9], 6)[0, :4])
    assert row_uniforms([], 3).shape == (0, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": [1]}, "4 prompts and 1 seeds"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"temperature": -1.0}, "may not be negative"),
        ({"top_p": 0.0}, "top_p"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        sample(NETWORK, **settings)


def test_prompts_padded_on_the_right_are_refused():
    with pytest.raises(ValueError, match="padded on the left"):
        generate(NETWORK, pad(PROMPTS, padding=0), max_new_tokens=1, end=0, padding=0, seeds=[0] * 4)
