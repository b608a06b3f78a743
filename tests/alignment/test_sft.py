from __future__ import annotations

import pytest
import torch

from relent.methods.alignment.sft import sft_loss


def test_loss_is_the_mean_over_tokens_where_all_rows_are_alike():
    values = torch.tensor([[0.0, -1.0, -2.0], [0.0, -3.0, -4.0]], dtype=torch.float64)
    mask = torch.tensor([[False, True, True]] * 2)
    assert float(sft_loss(values, mask, 2.0)) == pytest.approx(2.5)


def test_micro_batches_add_up_to_the_batch():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(12, 5, generator=generator) < 0.5
    whole = sft_loss(values, mask, 2.3)
    parts = [sft_loss(v, m, 2.3) for v, m in zip(values.split(3), mask.split(3))]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=0, atol=1e-12)


def test_left_out_tokens_may_hold_anything():
    values = torch.tensor([[float("nan"), -1.0]], dtype=torch.float64, requires_grad=True)
    loss = sft_loss(values, torch.tensor([[False, True]]), 1.0)
    loss.backward()
    assert float(loss) == 1.0
    assert values.grad is not None
    assert values.grad.tolist() == [[0.0, -1.0]]


def test_nothing_to_predict_is_refused():
    with pytest.raises(ValueError, match="nothing is to be predicted"):
        sft_loss(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), 0.0)


def test_a_training_in_micro_batches_ends_with_the_same_weights(micro_batches_change_nothing):
    micro_batches_change_nothing("sft", steps=5)
