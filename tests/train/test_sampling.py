"""Batches as a function of seed and step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relent.errors import ConfigError
from relent.train.sampling import StepBatchSampler, derive_seed

sizes = st.integers(1, 60)
batch_sizes = st.integers(1, 20)
seeds = st.integers(0, 2**31 - 1)
few = settings(max_examples=50, deadline=None)


@few
@given(sizes, batch_sizes, st.integers(1, 40), seeds, st.data())
def test_a_later_start_yields_the_same_tail(n_items, batch_size, n_batches, seed, data):
    start = data.draw(st.integers(0, n_batches))
    whole = list(StepBatchSampler(n_items, batch_size, n_batches, seed))
    assert len(whole) == n_batches
    assert list(StepBatchSampler(n_items, batch_size, n_batches, seed, start)) == whole[start:]


@few
@given(sizes, batch_sizes, seeds)
def test_each_epoch_is_a_permutation_of_all_but_an_incomplete_batch(n_items, batch_size, seed):
    per_epoch = n_items // min(batch_size, n_items)
    batches = list(StepBatchSampler(n_items, batch_size, 3 * per_epoch, seed))
    for epoch in range(3):
        seen = [item for batch in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for item in batch]
        assert len(set(seen)) == len(seen) == per_epoch * min(batch_size, n_items)
        assert set(seen) <= set(range(n_items))
        assert n_items - len(seen) < min(batch_size, n_items)


@few
@given(st.integers(1, 8), st.integers(1, 12), seeds, st.integers(1, 5), st.data())
def test_the_shares_of_the_ranks_partition_every_batch(share, n_batches, seed, world, data):
    batch_size = share * world
    n_items = data.draw(st.integers(batch_size, 3 * batch_size))
    whole = list(StepBatchSampler(n_items, batch_size, n_batches, seed))
    shares = [list(StepBatchSampler(n_items, batch_size, n_batches, seed, rank=r, world=world)) for r in range(world)]
    for number, batch in enumerate(whole):
        parts = [share[number] for share in shares]
        assert sorted(item for part in parts for item in part) == sorted(batch)
        assert {len(part) for part in parts} == {share}


@pytest.mark.parametrize(("n_items", "batch_size"), [(60, 15), (15, 60)])
def test_shares_of_unequal_size_are_refused(n_items, batch_size):
    with pytest.raises(ConfigError, match="15, which do not divide among 2 processes"):
        StepBatchSampler(n_items, batch_size, 1, 0, world=2)


@few
@given(st.integers(20, 60), seeds)
def test_epochs_and_seeds_have_orders_of_their_own(n_items, seed):
    first, second = StepBatchSampler(n_items, n_items, 2, seed)
    (other,) = StepBatchSampler(n_items, n_items, 1, seed + 1)
    assert first != second
    assert first != other


@few
@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 6), st.integers(1, 8), seeds)
def test_micro_batches_of_one_step_are_parts_of_its_batch_where_they_divide_the_data(n, micro, parts, steps, seed):
    """k micro-batches cover what one batch covers, so that accumulation changes nothing but rounding."""
    n_items = n * micro * parts
    whole = list(StepBatchSampler(n_items, micro * parts, steps, seed))
    pieces = list(StepBatchSampler(n_items, micro, steps * parts, seed))
    joined = [[i for piece in pieces[s * parts : (s + 1) * parts] for i in piece] for s in range(steps)]
    assert joined == whole


def test_the_order_is_pinned():
    """A change of the order changes every result, and must be meant."""
    assert derive_seed("order", 0, 0) == 3963035290470823862
    assert derive_seed("a", "b") != derive_seed("ab")
    assert 0 <= derive_seed("weights", 7, "student") < 2**63


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="training split is empty"):
        StepBatchSampler(0, 4, 1, 0)
