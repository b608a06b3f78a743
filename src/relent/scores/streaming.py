r"""Scores as mean statistics: an evaluation streams over chunks and gives one number however the data are chunked.

A score of a whole test period is a function of means: the RMSE is the root of a mean of squares, the Brier score of a
mean, the anomaly correlation of three means. A `MeanStatistic` therefore has two parts:

    chunk ──terms──▶ pointwise values ──Σ w v, Σ w──▶ Totals ──(+ over chunks)──▶ means ──final──▶ score

Totals add, so chunks may come in any size and order; a root or a ratio taken chunk by chunk and averaged would not.
Sums run in float64. The same design as WeatherBench-X (statistic, weighted mean, metric), with totals as plain arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relent.scores import ensemble, probability
from relent.scores._arrays import Estimator, NanPolicy, apply_nan_policy, as_tensor
from relent.scores.crps import Chaining, crps_ensemble, crps_threshold_weighted

if TYPE_CHECKING:
    import xarray as xr

Means = dict[str, NDArray]


@dataclass(frozen=True)
class Totals:
    """Σ w v and Σ w of each term of a statistic, over the points seen so far; `a + b` is that of both."""

    sums: dict[str, NDArray]
    weights: dict[str, NDArray]

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(
            {name: value + other.sums[name] for name, value in self.sums.items()},
            {name: value + other.weights[name] for name, value in self.weights.items()},
        )

    def means(self) -> Means:
        """Σ w v / Σ w of each term; NaN where no point counted."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return {name: value / self.weights[name] for name, value in self.sums.items()}


@dataclass(frozen=True, kw_only=True)
class MeanStatistic:
    """A score that is a function of weighted means of pointwise terms.

    A subclass states `name`, `terms` and, unless it is the mean of a single term, `final`; `extra_dim` names a further
    dimension where a point has more than one number (the ranks of a histogram).

    nan_policy: "propagate" (a NaN point makes the score NaN), "omit" (NaN members are left out as the score defines
    it, and points that are still NaN get no weight) or "raise".
    """

    nan_policy: NanPolicy = "propagate"

    @property
    def joint(self) -> bool:
        """Whether the score is of vectors: it then reduces over the last dimension of members and truth."""
        return False

    @property
    def name(self) -> str:
        """The name of the score, with what one must know to compare it."""
        raise NotImplementedError

    def terms(self, members: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """Pointwise values by name, (…) or (…, extra), of float64 members (M, …) and truth (…).

        For a `joint` score members are (M, …, D), truth (…, D), values (…).
        """
        raise NotImplementedError

    def final(self, means: Means) -> NDArray:
        """The score from the means of the terms."""
        (value,) = means.values()
        return value

    def extra_dim(self) -> str | None:
        """Name of a further last dimension of terms and score; None if there is none."""
        return None

    def totals(self, members: Any, truth: Any, weights: Any = None, *, keep: Sequence[int] = ()) -> Totals:
        """Totals of one chunk: members (M, …), truth (…), weights broadcastable to it; `keep` dims are not summed.

        Arrays may be numpy or torch. The last dimension of all three is that of the components if the score is
        `joint`; no total has it, kept or not. Raises: ValueError if weights vary over it; and as the score itself.
        """
        forecast, observed = (as_tensor(value).double() for value in (members, truth))
        given = torch.ones((), dtype=torch.float64) if weights is None else as_tensor(np.asarray(weights)).double()
        given = given.expand(observed.shape)
        if self.joint:
            if not torch.equal(given, given[..., :1].expand(given.shape)):
                raise ValueError(f"{self.name} scores vectors: weights may not vary over their components")
            given = given[..., 0]
        summed = tuple(axis for axis in range(given.dim()) if axis not in keep)
        sums, masses = {}, {}
        for name, value in self.terms(forecast, observed).items():
            weight = given if self.extra_dim() is None else given[..., None].expand(value.shape)
            if self.nan_policy == "omit":
                missing = value.isnan()
                value, weight = value.masked_fill(missing, 0), weight.masked_fill(missing, 0)
            sums[name] = _sum(value * weight, summed)
            masses[name] = _sum(weight, summed)
        return Totals(sums, masses)

    def region_totals(self, members: Any, truth: Any, weights: Any) -> Totals:
        """Totals of several regions from one computation of the terms: each total has a first dimension of regions.

        Args:
            members: (M, …); truth: (…).
            weights: (R, …), the weights of each region: zero outside it. Regions may overlap.

        Raises: ValueError for a `joint` score, or weights that do not fit the truth; and as the score itself.
        """
        forecast, observed, given = (as_tensor(value).double() for value in (members, truth, weights))
        if self.joint or given.shape[1:] != observed.shape:
            raise ValueError(
                f"{self.name}: weights of regions must be (R, {', '.join(map(str, observed.shape))}) and the score one "
                f"of points, got weights {tuple(given.shape)}"
            )
        sums, masses = {}, {}
        for name, value in self.terms(forecast, observed).items():
            points = value.reshape(observed.numel(), *value.shape[observed.dim() :])
            pair = _region_sums(points, given.flatten(1), self.nan_policy == "omit")
            sums[name], masses[name] = (total.numpy() for total in pair)
        return Totals(sums, masses)


def _region_sums(values: Tensor, weights: Tensor, omit: bool) -> tuple[Tensor, Tensor]:
    """Σ w v and Σ w of each region: values (P, …), weights (R, P); a NaN point counts only where it has weight."""
    missing = values.isnan()
    sums = torch.einsum("rp,p...->r...", weights, values.masked_fill(missing, 0))
    masses = weights.sum(1).reshape(-1, *[1] * (values.dim() - 1)).expand(sums.shape)
    if not bool(missing.any()):
        return sums, masses
    if omit:
        return sums, torch.einsum("rp,p...->r...", weights, (~missing).to(weights))
    touched = torch.einsum("rp,p...->r...", (weights > 0).to(weights), missing.to(weights)) > 0
    return sums.masked_fill(touched, torch.nan), masses


def _sum(values: Tensor, dims: tuple[int, ...]) -> NDArray:
    return (values.sum(dims) if dims else values).numpy()


@dataclass(frozen=True, kw_only=True)
class Crps(MeanStatistic):
    """Mean CRPS (`relent.scores.crps.crps_ensemble`); threshold-weighted with `chaining`, named by `label`."""

    estimator: Estimator = "fair"
    alpha: float = 0.95
    chaining: Chaining | None = field(default=None)
    label: str | None = None

    @property
    def name(self) -> str:
        estimator = f"almost_fair_{self.alpha:g}" if self.estimator == "almost_fair" else self.estimator
        return self.label or f"{'crps' if self.chaining is None else 'twcrps'}_{estimator}"

    def terms(self, members: Tensor, truth: Tensor) -> dict[str, Tensor]:
        options: dict[str, Any] = {"estimator": self.estimator, "alpha": self.alpha, "nan_policy": self.nan_policy}
        if self.chaining is None:
            return {"crps": crps_ensemble(members, truth, **options)}
        return {"crps": crps_threshold_weighted(members, truth, self.chaining, **options)}


@dataclass(frozen=True, kw_only=True)
class MeanRmse(MeanStatistic):
    """RMSE of the ensemble mean, root after all averaging (`relent.scores.ensemble.ensemble_mean_rmse`)."""

    @property
    def name(self) -> str:
        return "ensemble_mean_rmse"

    def terms(self, members: Tensor, truth: Tensor) -> dict[str, Tensor]:
        return {"squared_error": _error(members, truth, self.nan_policy).square()}

    def final(self, means: Means) -> NDArray:
        return np.sqrt(means["squared_error"])


@dataclass(frozen=True, kw_only=True)
class MeanAbsoluteError(MeanStatistic):
    """Mean absolute error of the ensemble mean."""

    @property
    def name(self) -> str:
        return "ensemble_mean_mae"

    def terms(self, members: Tensor, truth: Tensor) -> dict[str, Tensor]:
        return {"absolute_error": _error(members, truth, self.nan_policy).abs()}


@dataclass(frozen=True, kw_only=True)
class Bias(MeanStatistic):
    """Mean of ensemble mean minus truth."""

    @property
    def name(self) -> str:
        return "bias"

    def terms(self, members: Tensor, truth: Tensor) -> dict[str, Tensor]:
        return {"error": _error(members, truth, self.nan_policy)}


@dataclass(frozen=True, kw_only=True)
class Spread(MeanStatistic):
    """Root of the mean unbiased variance (`relent.scores.ensemble.spread`)."""

    @property
    def name(self) -> str:
        return "spread"

    def terms(self, members: Tensor, truth: Tensor) -> dict[str, Tensor]:
        return {"variance": ensemble.ensemble_variance(members, nan_policy=self.nan_policy)}

    def final(self, means: Means) -> NDArray:
        return np.sqrt(means["variance"])


@dataclass(frozen=True, kw_only=True)
class SpreadSkillRatio(MeanStatistic):
    """√((M + 1)/M) · spread / RMSE (`relent.scores.ensemble.spread_skill_ratio`)."""

    @property
    def name(self) -> str:
        return "spread_skill_ratio"

    def terms(self, members: Tensor, truth: Tensor) -> dict[str, Tensor]:
        expected, actual = ensemble.spread_skill_terms(members, truth, self.nan_policy)
        return {"expected": expected, "actual": actual}

    def final(self, means: Means) -> NDArray:
        return np.sqrt(means["expected"] / means["actual"])


@dataclass(frozen=True, kw_only=True)
class Brier(MeanStatistic):
    """Mean Brier score of y > threshold (`relent.scores.probability.brier_score_ensemble`).

    For a threshold that varies in space or season, subtract it from forecast and truth first and use 0.
    """

    threshold: float
    fair: bool = True

    @property
    def name(self) -> str:
        return f"brier_{'fair' if self.fair else 'biased'}_above_{self.threshold:g}"

    def terms(self, members: Tensor, truth: Tensor) -> dict[str, Tensor]:
        return {
            "brier": probability.brier_score_ensemble(
                members, truth, threshold=self.threshold, fair=self.fair, nan_policy=self.nan_policy
            )
        }


@dataclass(frozen=True, kw_only=True)
class RankFrequencies(MeanStatistic):
    """Frequency of each rank of the truth, (M + 1,), ties shared equally: nothing random depends on the chunks."""

    @property
    def name(self) -> str:
        return "rank_frequencies"

    def extra_dim(self) -> str | None:
        return "rank"

    def terms(self, members: Tensor, truth: Tensor) -> dict[str, Tensor]:
        apply_nan_policy(self.nan_policy, members=members, truth=truth)
        return {"share": ensemble.rank_shares(members, truth, "uniform")}


@dataclass(frozen=True, kw_only=True)
class EventTable(MeanStatistic):
    """Joint frequencies of "k of M members above the threshold" and "truth above it": reliability and ROC in one table.

    The score has 2(M + 1) entries over "cell": k = 0 … M without the event, then with it. As `weights` of k/M and 0/1
    they give `relent.scores.probability.reliability_curve`, `brier_decomposition`, `roc_curve` and `roc_auc` of all
    points, exactly. Under "omit" points with any NaN are left out: tables of ensembles of other sizes do not add up.
    """

    threshold: float

    @property
    def name(self) -> str:
        return f"event_table_above_{self.threshold:g}"

    def extra_dim(self) -> str | None:
        return "cell"

    def terms(self, members: Tensor, truth: Tensor) -> dict[str, Tensor]:
        apply_nan_policy(self.nan_policy, members=members, truth=truth)
        cells = torch.arange(2 * (len(members) + 1), device=members.device)
        cell = (members > self.threshold).sum(0) + (len(members) + 1) * (truth > self.threshold)
        undefined = members.isnan().any(0) | truth.isnan()
        return {"share": torch.where(undefined[..., None], torch.nan, (cells == cell[..., None]).to(members.dtype))}


@dataclass(frozen=True, kw_only=True)
class AnomalyCorrelation(MeanStatistic):
    """Uncentred anomaly correlation of the ensemble mean, pooled over all points: mean f'o' / √(mean f'² · mean o'²).

    Forecast and truth must be anomalies: subtract the climatology first (`forecast - climatology`, lazy in xarray).
    """

    @property
    def name(self) -> str:
        return "anomaly_correlation"

    def terms(self, members: Tensor, truth: Tensor) -> dict[str, Tensor]:
        mean = truth + _error(members, truth, self.nan_policy)
        # A point with a missing truth must weigh in none of the three.
        return {"product": mean * truth, "forecast": mean.square(), "truth": truth.square() + 0 * mean}

    def final(self, means: Means) -> NDArray:
        return means["product"] / np.sqrt(means["forecast"] * means["truth"])


def _error(members: Tensor, truth: Tensor, nan_policy: NanPolicy) -> Tensor:
    return ensemble.mean_error(members, truth, 0, nan_policy)


def evaluate(
    statistics: Sequence[MeanStatistic],
    forecast: "xr.DataArray | xr.Dataset",
    truth: "xr.DataArray | xr.Dataset",
    weights: "xr.DataArray | None" = None,
    *,
    member_dim: str = "member",
    keep_dims: Sequence[str] = ("variable", "lead"),
    component_dim: str = "variable",
) -> "xr.Dataset":
    """Scores of a forecast held in numpy, dask or zarr, chunk by chunk, for each entry of `keep_dims`.

    Args:
        statistics: what to compute; their names must differ.
        forecast: with `member_dim` and any other dimensions; a Dataset's variables become the dimension "variable".
        truth: with the dimensions of the forecast except `member_dim`, same coordinates: select the truth at
            init + lead first. Of one type with the forecast.
        weights: non-negative, over any of the truth's dimensions (`latitude_weights` over "lat"; a mask as 0 and 1).
        keep_dims: dimensions not averaged over; those that the data lack are passed over.
        component_dim: the components of the vectors that joint statistics score (`relent.scores.joint`), which it is
            never kept for; weights may not vary over it.

    Returns: a Dataset with one variable a statistic, over the kept dimensions, and the statistic's own. Each has
        the attributes `members` and `nan_policy`.
    Raises:
        ValueError: dimensions or coordinates that do not match, repeated names; and as the scores themselves.

    Members of a point must lie in one chunk (they are merged if not), and for joint statistics its components; a chunk
    of the forecast in float64 is what a worker holds. All statistics share one reading of the data. Chunks run on
    dask's current scheduler.
    """
    import xarray as xr  # only here: the statistics themselves need no xarray

    names = [statistic.name for statistic in statistics]
    if len(set(names)) < len(names):
        raise ValueError(f"statistics must differ in name, got {names}")
    first, second = (data.to_dataarray() if isinstance(data, xr.Dataset) else data for data in (forecast, truth))
    first, second, weight = _aligned(first, second, weights, member_dim)
    dims = [str(dim) for dim in second.dims]
    components = component_dim if any(statistic.joint for statistic in statistics) else None
    if components is not None:
        if components not in dims:
            raise ValueError(f"joint statistics need the dimension {components!r}; the truth has {tuple(dims)}")
        order = [dim for dim in dims if dim != components] + [components]
        first = first.transpose(member_dim, *order).chunk({components: -1})
        second, weight = (array.transpose(*order).chunk({components: -1}) for array in (second, weight))
    kept = [str(dim) for dim in second.dims if dim in keep_dims]
    scores = _scores(statistics, (first, second, weight), kept, components)
    return xr.Dataset(
        {name: score.transpose(*(d for d in dims if d in score.dims), ...) for name, score in scores.items()}
    )


def _scores(
    statistics: Sequence[MeanStatistic],
    arrays: "tuple[xr.DataArray, xr.DataArray, xr.DataArray]",
    kept_dims: list[str],
    components: str | None,
) -> "dict[str, xr.DataArray]":
    """Scores by name, over the kept dimensions (without `components` if joint) and the statistic's own."""
    import xarray as xr

    first, second, weight = arrays
    dims = [str(dim) for dim in second.dims]
    keep = tuple(axis for axis, dim in enumerate(dims) if dim in kept_dims)
    results = _reduce_chunks(statistics, first.data, second.data, weight.data, keep)
    scores = {}
    for statistic, totals in zip(statistics, results):
        kept = [dim for dim in kept_dims if not (statistic.joint and dim == components)]
        coords = {dim: second.coords[dim] for dim in kept if dim in second.coords}
        extra = statistic.extra_dim()
        shape = kept if extra is None else [*kept, extra]
        attributes = {"members": len(first), "nan_policy": statistic.nan_policy}
        scores[statistic.name] = xr.DataArray(statistic.final(totals.means()), coords, shape, attrs=attributes)
    return scores


def _aligned(
    forecast: "xr.DataArray", truth: "xr.DataArray", weights: "xr.DataArray | None", member_dim: str
) -> "tuple[xr.DataArray, xr.DataArray, xr.DataArray]":
    """Forecast (member, …), truth (…) and weights (…) of one order of dims, as dask arrays of equal chunks."""
    import xarray as xr

    if member_dim not in forecast.dims or set(forecast.dims) - {member_dim} != set(truth.dims):
        raise ValueError(
            f"truth must have the forecast's dimensions except {member_dim!r}: got {forecast.dims} and {truth.dims}"
        )
    weights = xr.DataArray(1.0) if weights is None else weights
    if extra := set(weights.dims) - set(truth.dims):
        raise ValueError(f"weights have dimensions that the truth lacks: {sorted(map(str, extra))}")
    forecast, truth, weights = xr.align(forecast, truth, weights, join="exact", copy=False)
    forecast = forecast.transpose(member_dim, *truth.dims).chunk({member_dim: -1})
    chunks = {dim: forecast.chunksizes[dim] for dim in truth.dims}
    return forecast, truth.chunk(chunks), weights.broadcast_like(truth).transpose(*truth.dims).chunk(chunks)


def _reduce_chunks(
    statistics: Sequence[MeanStatistic], forecast: Any, truth: Any, weights: Any, keep: tuple[int, ...]
) -> list[Totals]:
    """Totals of each statistic over all chunks: a tree of sums for each kept block, blocks side by side."""
    from dask.base import compute
    from dask.delayed import delayed

    def chunk_totals(members: NDArray, observed: NDArray, weight: NDArray) -> list[Totals]:
        return [statistic.totals(members, observed, weight, keep=keep) for statistic in statistics]

    def add(parts: list[list[Totals]]) -> list[Totals]:
        return [reduce(Totals.__add__, totals) for totals in zip(*parts)]

    blocks: dict[tuple[int, ...], list[Any]] = {}
    chunks = [forecast.to_delayed()[0], truth.to_delayed(), weights.to_delayed()]
    for index in np.ndindex(*truth.numblocks):
        part = delayed(chunk_totals, pure=False)(*(chunk[index] for chunk in chunks))
        blocks.setdefault(tuple(index[axis] for axis in keep), []).append(part)
    for kept, parts in blocks.items():
        while len(parts) > 1:
            parts = [delayed(add)(parts[start : start + 16]) for start in range(0, len(parts), 16)]
        blocks[kept] = parts
    computed = dict(zip(blocks, compute(*(parts[0] for parts in blocks.values()))))
    grid = [len(truth.chunks[axis]) for axis in keep]
    return [_side_by_side({kept: totals[s] for kept, totals in computed.items()}, grid) for s in range(len(statistics))]


def _side_by_side(blocks: dict[tuple[int, ...], Totals], grid: list[int]) -> Totals:
    """One `Totals` over the kept dimensions from those of their blocks."""

    def assemble(part: str, name: str, index: tuple[int, ...] = ()) -> NDArray:
        if len(index) == len(grid):
            return getattr(blocks[index], part)[name]
        pieces = [assemble(part, name, (*index, k)) for k in range(grid[len(index)])]
        # One block is passed on as it is: totals of joint statistics lack the dimension of the components.
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=len(index))

    names = next(iter(blocks.values())).sums
    return Totals({n: assemble("sums", n) for n in names}, {n: assemble("weights", n) for n in names})
