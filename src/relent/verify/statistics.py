"""What a verification computes at each point, and the power spectra of whole maps; all as totals that add."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from relent.grid import Topology
from relent.scores._arrays import Estimator
from relent.scores.crps import chain_above
from relent.scores.ensemble import ensemble_variance, mean_error
from relent.scores.spatial import isotropic_spectrum, zonal_spectrum
from relent.scores.streaming import (
    AnomalyCorrelation,
    Bias,
    Brier,
    Crps,
    EventTable,
    MeanRmse,
    Means,
    MeanStatistic,
    RankFrequencies,
    Spread,
    SpreadSkillRatio,
    Totals,
)
from relent.verify.truth import Climatology

KM_PER_DEGREE = 111.195
LOWER_IS_BETTER = ("crps", "rmse", "brier", "twcrps")
"""Beginnings of the names of scores of which less is better."""


@dataclass(frozen=True, kw_only=True)
class SpreadErrorCorrelation(MeanStatistic):
    """Correlation over points of the members' standard deviation with the absolute error of their mean.

    Zero for a spread that is the same everywhere; well below one even for a perfect ensemble, because one error is one
    draw from the predicted law.
    """

    @property
    def name(self) -> str:
        return "spread_error_correlation"

    def terms(self, members: Tensor, truth: Tensor) -> dict[str, Tensor]:
        deviation = ensemble_variance(members).sqrt()
        error = mean_error(members, truth, 0, self.nan_policy).abs()
        return {"s": deviation, "e": error, "ss": deviation**2, "ee": error**2, "se": deviation * error}

    def final(self, means: Means) -> NDArray[Any]:
        covariance = means["se"] - means["s"] * means["e"]
        variances = (means["ss"] - means["s"] ** 2) * (means["ee"] - means["e"] ** 2)
        # An ensemble whose spread is the same everywhere has no correlation: none of its error is foreseen.
        result: NDArray[Any] = np.divide(
            covariance, np.sqrt(variances.clip(0)), out=np.zeros_like(covariance), where=variances > 0
        )
        return np.where(np.isnan(variances), np.nan, result)


@dataclass(frozen=True)
class Entry:
    """One score: its name in tables, how it is computed, and what is taken from members and truth before.

    `reference` (H, W) is subtracted, `sign` −1 turns the event "below" into "above".
    """

    name: str
    statistic: MeanStatistic
    reference: np.ndarray | None = None
    sign: int = 1


def entries(members: int, climate: Climatology | None) -> list[Entry]:
    """Scores of an ensemble of a size; a single member has an error, but no spread and no ranks.

    Args:
        members: M.
        climate: Mean and percentiles of the field; None: no anomaly correlation and no events.
    """
    found = [
        Entry("crps", Crps(estimator="fair" if members > 1 else "biased")),
        Entry("rmse", MeanRmse()),
        Entry("bias", Bias()),
    ]
    if members > 1:
        found += [
            Entry("spread", Spread()),
            Entry("spread_skill_ratio", SpreadSkillRatio()),
            Entry("spread_error_correlation", SpreadErrorCorrelation()),
            Entry("ranks", RankFrequencies()),
        ]
    if climate is None:
        return found
    found.append(Entry("anomaly_correlation", AnomalyCorrelation(), climate.mean))
    for number, threshold in climate.percentiles.items():
        sign, label = (1, f"above_p{number:g}") if number >= 50 else (-1, f"below_p{number:g}")
        estimator: Estimator = "fair" if members > 1 else "biased"
        found += [
            Entry(f"brier_{label}", Brier(threshold=0.0, fair=members > 1), threshold, sign),
            Entry(
                f"twcrps_{label}", Crps(estimator=estimator, chaining=chain_above(0.0), label="twcrps"), threshold, sign
            ),
            Entry(f"events_{label}", EventTable(threshold=0.0), threshold, sign),
        ]
    return found


def is_scalar(entry: Entry) -> bool:
    """Whether a score is one number; others (ranks, event tables) have a further dimension."""
    return entry.statistic.extra_dim() is None


def spectra(
    members: np.ndarray, truth: np.ndarray, latitude: np.ndarray, longitude: np.ndarray, topology: Topology
) -> Totals:
    """Power by wavenumber of the members (their mean), of the ensemble mean and of the truth, as totals of one map.

    - globe: along latitude circles, averaged with cos(latitude);
    - torus: over shells of |k|;
    - regional: the same, after a least-squares plane is taken off and a Hann window laid over both directions; power is
      divided by the window's mean square, so that white noise keeps its variance. Limited-area fields are not periodic:
      without it their spectrum is that of the jump at the border (Errico 1985, Monthly Weather Review 113).

    Args:
        members: (M, H, W); truth: (H, W). Maps with gaps give no spectrum: zero weight.
        latitude, longitude: Degrees.
        topology: How the borders meet.
    """
    fields = torch.from_numpy(np.concatenate([members, members.mean(0, keepdims=True), truth[None]]).astype(np.float64))
    power = _power(fields, latitude, longitude, topology)[1].numpy()
    known = bool(np.isfinite(power).all())
    power = power if known else np.zeros_like(power)
    sums = {"member": power[:-2].mean(0), "mean": power[-2], "truth": power[-1]}
    return Totals(sums, {name: np.full(value.shape, float(known)) for name, value in sums.items()})


def wavenumbers(latitude: np.ndarray, longitude: np.ndarray, topology: Topology) -> tuple[np.ndarray, str]:
    """Wavenumbers of `spectra` and their unit."""
    empty = torch.zeros(1, len(latitude), len(longitude), dtype=torch.float64)
    unit = {"globe": "zonal wavenumber", "torus": "wavenumber"}.get(topology, "cycles / 1000 km")
    return _power(empty, latitude, longitude, topology)[0].numpy(), unit


def _power(fields: Tensor, latitude: np.ndarray, longitude: np.ndarray, topology: Topology) -> tuple[Tensor, Tensor]:
    height, width = fields.shape[-2:]
    if topology is Topology.globe:
        weights = torch.from_numpy(np.cos(np.deg2rad(latitude)).clip(min=0))
        return zonal_spectrum(fields, weights=weights)
    if topology is Topology.torus:
        return isotropic_spectrum(fields, spacing=(1 / height, 1 / width))
    window = torch.hann_window(height + 2, periodic=False, dtype=fields.dtype)[1:-1, None]
    window = window * torch.hann_window(width + 2, periodic=False, dtype=fields.dtype)[1:-1]
    fields = _without_plane(fields) * window / window.square().mean().sqrt()
    # Thousands of kilometres; a degree of longitude is that of the middle latitude.
    along_y, along_x = (KM_PER_DEGREE / 1000 * abs(float(np.diff(axis).mean())) for axis in (latitude, longitude))
    return isotropic_spectrum(fields, spacing=(along_y, along_x * float(np.cos(np.deg2rad(latitude.mean())))))


def _without_plane(fields: Tensor) -> Tensor:
    """Fields minus their least-squares plane a + b·row + c·column."""
    height, width = fields.shape[-2:]
    y, x = (torch.linspace(-1, 1, n, dtype=fields.dtype) for n in (height, width))
    basis = torch.stack(
        [torch.ones(height, width, dtype=fields.dtype), y[:, None].expand(height, width), x.expand(height, width)]
    )
    # On a regular grid the three are orthogonal, so that each coefficient is a projection.
    size = basis.square().sum((-2, -1))
    weights = torch.einsum("...hw,khw->...k", fields, basis) / size
    return fields - torch.einsum("...k,khw->...hw", weights, basis)
