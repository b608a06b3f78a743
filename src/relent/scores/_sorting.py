"""Order statistics of ensembles, block by block: the engine below the CRPS.

Sums of pair distances need no pairs. With x_(1) ≤ … ≤ x_(M),  Σ_{i<j} |x_i − x_j| = Σ_i (2i − M − 1) x_(i),  so one
sort replaces M² differences. Points are taken in blocks that stay in the second-level cache, so that nothing but the
result is ever as large as the input.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# Values in a block. Two buffers of this size in float64 fill half of a 2 MiB second-level cache.
_BLOCK_VALUES = 2**16
# Up to here a sorting network over whole rows beats `numpy.sort` on short columns (measured: 4 times as fast
# at M = 4, even at 16).
_NETWORK_MEMBERS = 12


@lru_cache(maxsize=32)
def odd_even_merge_runs(members: int) -> tuple[tuple[int, int, int, int], ...]:
    """Comparators of Batcher's odd-even merge sort for any number of members, gathered into runs of rows.

    A run `(start, count, length, distance)` compares row i with row i + distance for `count` groups of `length`
    adjacent rows, groups starting 2·length rows apart. A run's pairs are disjoint, so that it is one array
    operation.

    Source: Knuth, The Art of Computer Programming 3, section 5.2.2, algorithm M.
    """
    runs: list[tuple[int, int, int, int]] = []
    top = 1 << max((members - 1).bit_length() - 1, 0)
    length = top if members > 1 else 0
    while length:
        span, start, distance = top, 0, length
        while True:
            groups, rest = divmod(max(members - distance - start, 0), 2 * length)
            if groups:
                runs.append((start, groups, length, distance))
            if rest:
                runs.append((start + 2 * length * groups, 1, min(rest, length), distance))
            if span == length:
                break
            distance, span, start = span - length, span >> 1, length
        length >>= 1
    return tuple(runs)


def _network_sort(rows: NDArray) -> None:
    """Sort C-contiguous `rows` (members, points) along the members in place; a NaN spreads over its whole column."""
    pitch, width = rows.strides[0], rows.shape[1]
    scratch = np.empty((max(len(rows) // 2, 1), width), rows.dtype)
    for start, groups, length, distance in odd_even_merge_runs(len(rows)):
        shape, strides = (groups, length, width), (2 * length * pitch, pitch, rows.itemsize)
        low = np.ndarray(shape, rows.dtype, rows, start * pitch, strides)
        high = np.ndarray(shape, rows.dtype, rows, (start + distance) * pitch, strides)
        smaller = scratch[: groups * length].reshape(shape)
        np.minimum(low, high, out=smaller)
        np.maximum(low, high, out=high)
        low[...] = smaller


def sort_members(values: NDArray) -> NDArray:
    """A sorted copy of `values` (members, points) along the members. NaN members sort last or fill their column."""
    if len(values) <= _NETWORK_MEMBERS:
        rows = np.array(values, order="C")
        _network_sort(rows)
        return rows
    columns = np.array(values, order="F")
    columns.sort(axis=0)
    return columns


def _sort_with_order(values: NDArray) -> tuple[NDArray, torch.Tensor]:
    """A sorted copy (members, points) and, as (points, members), which member stands at each rank."""
    columns = np.ascontiguousarray(values.T)
    order = torch.from_numpy(np.argsort(columns, axis=1))
    return torch.from_numpy(columns).gather(1, order).numpy().T, order


def pair_factor(count: Any, alpha: float) -> Any:
    """Factor of Σ_{i<j} |x_i − x_j| in the CRPS of `count` members: (M − 1 + α) / (M² (M − 1)).

    α = 1 is the fair estimator, 1 / (M (M − 1)); α = 0 the biased one, 1 / M². Arrays of counts may hold ones and
    zeros, whose factor is not finite: times a pair sum of zero it makes the score NaN, as it should be.
    """
    if alpha == 0:
        return 1 / count**2
    return (count - 1 + alpha) / (count**2 * (count - 1))


def _score_block(difference: NDArray, alpha: float, omit: bool, slope: NDArray | None) -> NDArray:
    """CRPS of members minus truth (members, points); `slope`, if given, is filled with the derivative by members."""
    members, dtype = len(difference), difference.dtype
    rank = np.arange(1, members + 1, dtype=dtype)
    count: float | NDArray = float(members)
    missing = np.isnan(difference) if omit else None
    if missing is not None and missing.any():
        count = (members - missing.sum(axis=0)).astype(dtype)
        difference[missing] = np.inf
    else:
        missing = None
    factor = pair_factor(count, alpha)
    if slope is None:
        ordered = sort_members(difference)
    else:
        ordered, order = _sort_with_order(difference)
        slope[...] = _slope(difference, ordered, order, count, factor)
    if missing is not None:
        # The missing members stand last: what is left out of both sums is exactly them.
        difference[missing] = 0
        ordered = np.where(rank[:, None] <= count, ordered, 0)
    mean_error = np.einsum("mp->p", np.abs(difference, out=difference)) / count
    pairs = np.einsum("mp,m->p", ordered, 2 * rank - members - 1)
    if missing is not None:
        pairs += (members - count) * np.einsum("mp->p", ordered)
    score = mean_error - factor * pairs
    if slope is not None:
        # A point without a score moves nothing: a caller may mask it after the fact and keep clean gradients.
        slope[:, np.isnan(score)] = 0
        if missing is not None:
            slope[missing] = 0
    return score


def _slope(
    difference: NDArray, ordered: NDArray, order: torch.Tensor, count: float | NDArray, factor: float | NDArray
) -> NDArray:
    """d CRPS / d member: sign(x − y) / M − factor · (members below − members above).

    Tied members share the mean of their ranks, so that they get the derivative of the pair form, where sign(0) = 0.
    """
    rank = np.arange(1, len(ordered) + 1, dtype=ordered.dtype)[:, None]
    tied = ordered[1:] == ordered[:-1]
    if tied.any():
        edge = np.ones((1, tied.shape[1]), dtype=bool)
        first = np.maximum.accumulate(np.where(np.concatenate([edge, ~tied]), rank, 0), axis=0)
        last = np.where(np.concatenate([~tied, edge]), rank, len(ordered))
        last = np.minimum.accumulate(last[::-1], axis=0)[::-1]
        balance = first + last - 1 - count
    else:
        balance = 2 * rank - 1 - count
    by_rank = torch.from_numpy(np.array(np.broadcast_to(factor * balance, ordered.shape).T, order="C"))
    spread = torch.empty_like(by_rank).scatter_(1, order, by_rank)
    return np.sign(difference) / count - spread.numpy().T


def crps_blocks(
    members: NDArray, truth: NDArray, alpha: float, omit: bool, with_slope: bool
) -> tuple[NDArray, NDArray | None]:
    """CRPS (points,) of `members` (members, points) in either memory order, and its derivative by the members if asked.

    Blocks are shared out to `torch.get_num_threads()` threads: numpy computes without the interpreter's lock.
    """
    count, points = members.shape
    score = np.empty(points, members.dtype)
    slope = np.empty_like(members) if with_slope else None
    width = max(_BLOCK_VALUES // count, 256)

    def work(first: int) -> None:
        block = slice(first, first + width)
        difference = np.subtract(members[:, block], truth[block])
        score[block] = _score_block(difference, alpha, omit, None if slope is None else slope[:, block])

    starts = range(0, points, width)
    workers = min(torch.get_num_threads(), len(starts))
    with np.errstate(invalid="ignore", divide="ignore"):
        if workers <= 1:
            for first in starts:
                work(first)
        else:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(work, starts))
    return score, slope
