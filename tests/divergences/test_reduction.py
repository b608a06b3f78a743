from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relent.divergences.reduction import as_mask, masked_mean, masked_sum, reduce, upcast

VALUES = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_masked_sum_and_mean_by_hand() -> None:
    assert masked_sum(VALUES, MASK).item() == 7.0
    assert masked_mean(VALUES, MASK).item() == pytest.approx(7.0 / 3.0, abs=1e-15)
    torch.testing.assert_close(masked_mean(VALUES, MASK, dim=-1), torch.tensor([1.5, 4.0], dtype=torch.float64))
    torch.testing.assert_close(
        masked_mean(VALUES, MASK.long(), dim=0, empty="zero"), torch.tensor([2.5, 2.0, 0.0], dtype=torch.float64)
    )
    assert masked_mean(VALUES, None).item() == 3.5


@pytest.mark.parametrize(
    ("name", "expected"),
    [("sum", 7.0), ("mean", 7.0 / 3.0), ("sequence_mean", (1.5 + 4.0) / 2.0), ("sequence_sum", (3.0 + 4.0) / 2.0)],
)
def test_named_reductions_by_hand(name: str, expected: float) -> None:
    assert reduce(VALUES, MASK, name).item() == pytest.approx(expected, abs=1e-15)
    unmasked = {"sum": 21.0, "mean": 3.5, "sequence_mean": 3.5, "sequence_sum": 10.5}[name]
    assert reduce(VALUES, None, name).item() == pytest.approx(unmasked, abs=1e-15)


def test_none_zeroes_what_is_masked() -> None:
    torch.testing.assert_close(
        reduce(VALUES, MASK, "none"), torch.tensor([[1.0, 2.0, 0.0], [4.0, 0.0, 0.0]], dtype=torch.float64)
    )


@pytest.mark.parametrize("name", ["none", "sum", "mean", "sequence_mean", "sequence_sum"])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_masked_positions_may_hold_anything(name: str, poison: float) -> None:
    dirty = VALUES.masked_fill(~MASK, poison).requires_grad_()
    clean = VALUES.clone().requires_grad_()
    for tensor in (dirty, clean):
        reduce(tensor, MASK, name).sum().backward()
    torch.testing.assert_close(reduce(dirty, MASK, name), reduce(clean, MASK, name), rtol=0, atol=0)
    torch.testing.assert_close(dirty.grad, clean.grad, rtol=0, atol=0)
    assert (dirty.grad[~MASK] == 0).all()


@given(
    st.integers(0, 5),
    st.integers(0, 3),
    st.sampled_from(["sum", "mean", "sequence_mean", "sequence_sum"]),
)
@settings(max_examples=40, deadline=None)
def test_padding_in_both_directions_changes_nothing(columns: int, rows: int, name: str) -> None:
    padded = torch.full((2 + rows, 3 + columns), math.nan, dtype=torch.float64)
    padded[:2, :3] = VALUES
    mask = torch.zeros_like(padded, dtype=torch.bool)
    mask[:2, :3] = MASK
    assert abs(reduce(padded, mask, name).item() - reduce(VALUES, MASK, name).item()) < 1e-12


def test_count_makes_micro_batches_equal_one_batch() -> None:
    total = MASK.sum()
    parts = [masked_mean(VALUES[i : i + 1], MASK[i : i + 1], count=total) for i in range(2)]
    assert abs((parts[0] + parts[1] - masked_mean(VALUES, MASK)).item()) < 1e-12


@pytest.mark.parametrize("name", ["mean", "sequence_mean", "sequence_sum"])
def test_empty_mask_is_an_error_or_a_zero(name: str) -> None:
    nothing = torch.zeros_like(MASK)
    with pytest.raises(ValueError, match="empty='zero'"):
        reduce(VALUES, nothing, name)
    values = VALUES.clone().requires_grad_()
    result = reduce(values, nothing, name, empty="zero")
    result.backward()
    assert result.item() == 0.0
    assert (values.grad == 0).all()


def test_empty_tensor_without_mask() -> None:
    nothing = torch.zeros(0, 3)
    with pytest.raises(ValueError, match="nothing to average"):
        reduce(nothing)
    assert reduce(nothing, empty="zero").item() == 0.0


def test_errors_name_the_problem() -> None:
    with pytest.raises(ValueError, match=r"\(3,\), expected \(2, 3\)"):
        masked_mean(VALUES, MASK[0])
    with pytest.raises(TypeError, match="boolean or 0/1 integer"):
        reduce(VALUES, MASK.double())
    with pytest.raises(ValueError, match="'token' is unknown"):
        reduce(VALUES, MASK, "token")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="empty='nan' is unknown"):
        masked_mean(VALUES, MASK, empty="nan")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sequence dimension"):
        reduce(torch.tensor(1.0), None, "sequence_mean")
    with pytest.raises(TypeError, match="floating-point tensor"):
        upcast(torch.ones(3, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    values = torch.full((70_000,), 1.0, dtype=dtype)
    assert reduce(values, None, "sum").item() == 70_000.0  # overflows float16, stalls at 256 in bfloat16
    assert reduce(values, None, "mean").dtype == torch.float32


def test_vmap_expanded_and_non_contiguous() -> None:
    batch = torch.stack((VALUES, 2 * VALUES))
    mapped = torch.func.vmap(lambda v: reduce(v, MASK, "mean", empty="zero"))(batch)
    torch.testing.assert_close(mapped, torch.tensor([7.0 / 3.0, 14.0 / 3.0], dtype=torch.float64))
    assert reduce(VALUES.T, MASK.T, "sum").item() == 7.0
    assert reduce(VALUES[:1].expand(4, 3), MASK[:1].expand(4, 3), "mean").item() == 1.5


def test_gradcheck() -> None:
    values = VALUES.clone().requires_grad_()
    for name in ("none", "sum", "mean", "sequence_mean", "sequence_sum"):
        assert torch.autograd.gradcheck(lambda v, name=name: reduce(v.square(), MASK, name), (values,))
    assert as_mask(MASK, MASK.shape) is MASK
