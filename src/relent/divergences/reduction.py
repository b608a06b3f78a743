"""Reductions that every divergence and loss shares: masked sum and mean, and the named reductions over a batch.

A mask has exactly the shape of the values and is boolean, or integer with 0 and 1 (an attention mask). Left-out
entries are replaced before they are added, never multiplied by zero, so that they may hold NaN or infinity without
touching the value or the gradient of the result: a loss does not depend on the amount of padding.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Reduction = Literal["none", "sum", "mean", "sequence_mean", "sequence_sum"]
Empty = Literal["error", "zero"]

__all__ = ["Empty", "Reduction", "as_mask", "masked_mean", "masked_sum", "reduce", "upcast"]

_HALF = (torch.float16, torch.bfloat16)


def upcast(values: Tensor) -> Tensor:
    """Return half-precision values as float32 and every other floating dtype unchanged.

    A float16 sum of a thousand terms loses its last two digits and overflows at 65,504; all functions of this package
    compute, and return, at least float32.

    Raises:
        TypeError: if the values are not of a real floating dtype.
    """
    if not values.dtype.is_floating_point:
        raise TypeError(f"expected a floating-point tensor, got {values.dtype}")
    return values.float() if values.dtype in _HALF else values


def as_mask(mask: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Check a mask against the shape that it must have and return it as boolean (True = kept).

    Args:
        mask: boolean, or integer with 0 (left out) and 1 (kept).
        shape: the shape that the mask must have, exactly: no broadcasting, because a mask of shape [T] against values
            of shape [B, T] is as often a mistake as it is meant.

    Raises:
        ValueError: if the shapes differ.
        TypeError: if the mask is floating-point (weights are not a mask; multiply the values by them instead).
    """
    if mask.dtype.is_floating_point or mask.dtype.is_complex:
        raise TypeError(f"a mask must be boolean or 0/1 integer, got {mask.dtype}; pass mask.bool()")
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"mask has shape {tuple(mask.shape)}, expected {tuple(shape)}; expand it explicitly")
    return mask if mask.dtype == torch.bool else mask != 0


def _checked_count(kept: Tensor, empty: Empty, what: str) -> Tensor:
    """Return the counts clamped to one, after refusing empty selections if asked to."""
    if empty not in get_args(Empty):
        raise ValueError(f"empty={empty!r} is unknown; use one of {get_args(Empty)}")
    if empty == "error" and bool((kept == 0).any()):
        raise ValueError(f"the mask leaves nothing to average in {what}; pass empty='zero' to get 0 there")
    return kept.clamp(min=1)


def masked_sum(values: Tensor, mask: Tensor | None, *, dim: int | tuple[int, ...] | None = None) -> Tensor:
    r"""Sum of the kept entries, :math:`\sum_i m_i v_i`.

    Args:
        values: any shape, floating; half precision is summed and returned in float32.
        mask: the shape of ``values``, boolean or 0/1 integer, or None to keep all.
        dim: dimensions to sum over; all of them by default.

    Returns:
        The sum; an empty selection gives 0.

    Raises:
        ValueError: if the shapes of values and mask differ.
        TypeError: if the mask is floating-point.
    """
    values = upcast(values)
    if mask is not None:
        values = torch.where(as_mask(mask, values.shape), values, values.new_zeros(()))
    return values.sum() if dim is None else values.sum(dim=dim)


def masked_mean(
    values: Tensor,
    mask: Tensor | None,
    *,
    dim: int | tuple[int, ...] | None = None,
    empty: Empty = "error",
    count: Tensor | float | None = None,
) -> Tensor:
    r"""Mean of the kept entries, :math:`\sum_i m_i v_i / \sum_i m_i`.

    Args:
        values: any shape, floating; half precision is averaged and returned in float32.
        mask: the shape of ``values``, boolean or 0/1 integer; None keeps everything, and has to be said.
        dim: dimensions to average over; all of them by default.
        empty: what an empty selection does: ``"error"`` raises, ``"zero"`` gives 0 with zero gradient. The check of
            ``"error"`` reads the mask back from the device and cannot run inside ``torch.func.vmap``.
        count: a divisor that replaces the number of kept entries, such as the token count of the whole step under
            gradient accumulation (k micro-batches then equal one batch), or of a wider mask. Zero gives 0/0 or x/0.

    Returns:
        The mean, with the dimensions in ``dim`` removed.

    Raises:
        ValueError: if the shapes of values and mask differ, or the selection is empty and ``empty="error"``.
        TypeError: if the mask is floating-point.
    """
    total = masked_sum(values, mask, dim=dim)
    if count is not None:
        return total / count
    if mask is None and values.numel() > 0 and empty in get_args(Empty):
        # Only the static shape can make the selection empty: nothing is counted, or read back from the device.
        return total / (values.numel() // total.numel())
    keep = torch.ones_like(values, dtype=torch.bool) if mask is None else as_mask(mask, values.shape)
    kept = keep.sum() if dim is None else keep.sum(dim=dim)
    return total / _checked_count(kept, empty, "masked_mean")


def reduce(
    values: Tensor,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    *,
    empty: Empty = "error",
) -> Tensor:
    r"""Apply a named reduction to per-item values (per token, pair, pixel), leaving out masked items.

    ==================  ===============================================================================================
    ``"none"``          the values, 0 where masked
    ``"sum"``           :math:`\sum_{bt} m_{bt} v_{bt}`
    ``"mean"``          :math:`\sum_{bt} m_{bt} v_{bt} / \sum_{bt} m_{bt}`: every kept item weighs the same (token mean)
    ``"sequence_mean"`` mean over rows of the mean over the kept items of a row: every sequence weighs the same
    ``"sequence_sum"``  mean over rows of the sum over the kept items of a row
    ==================  ===============================================================================================

    A row is everything but the last dimension. Rows without a kept item count as padding: they are not averaged over.

    Args:
        values: any shape, floating; at least one dimension for the two sequence reductions.
        mask: the shape of ``values``, boolean or 0/1 integer, or None.
        reduction: one of the names above.
        empty: see :func:`masked_mean`; concerns the case that nothing at all is kept.

    Returns:
        A scalar, or for ``"none"`` the shape of ``values``; float32 for half-precision input.

    Raises:
        ValueError: unknown reduction, mask of another shape, or nothing kept and ``empty="error"``.
        TypeError: if the mask is floating-point.
    """
    if reduction == "none":
        values = upcast(values)
        return values if mask is None else torch.where(as_mask(mask, values.shape), values, values.new_zeros(()))
    if reduction == "sum":
        return masked_sum(values, mask)
    if reduction == "mean":
        return masked_mean(values, mask, empty=empty)
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction={reduction!r} is unknown; use one of {get_args(Reduction)}")
    if values.ndim == 0:
        raise ValueError(f"reduction={reduction!r} needs values with a sequence dimension, got a scalar")
    rows = masked_sum(values, mask, dim=-1)
    if mask is None:
        rows = rows / max(values.shape[-1], 1) if reduction == "sequence_mean" else rows
        return masked_mean(rows, None, empty=empty)
    kept = as_mask(mask, values.shape).sum(dim=-1)
    rows = rows / kept.clamp(min=1) if reduction == "sequence_mean" else rows
    return masked_mean(rows, kept > 0, empty=empty)
