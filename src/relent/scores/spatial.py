r"""Scores on maps: latitude weights, weighted means with masks, anomaly correlation, power spectra."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from relent.scores._arrays import NanPolicy, apply_nan_policy, check_floating, common_dtype, takes_arrays


@takes_arrays()
def latitude_weights(latitude: Tensor, *, method: Literal["cosine", "cell_area"] = "cosine") -> Tensor:
    r"""Weights of the rows of a latitude–longitude grid, with mean one over the rows.

    - "cosine": a_i = n cos φ_i / Σ_j cos φ_j. Rows on the poles weigh zero.
    - "cell_area": a_i ∝ sin φ_{i+½} − sin φ_{i−½}, with borders half-way between neighbours and the outermost cells
      reaching the pole where they stand on it, else half a step out (never beyond it). Rows on the poles weigh what
      their cap measures.

    Args:
        latitude: (n,), degrees in [−90, 90], strictly monotonic in either direction; n ≥ 2 for "cell_area".
        method: see above.

    Returns: (n,), dimensionless, float32 at least.
    Raises:
        ValueError: latitudes outside [−90, 90], not one-dimensional, not monotonic, or an unknown method.
        TypeError: if not floating.
    Source: Rasp et al. 2024, WeatherBench 2, arXiv 2308.15560 (areas); the cosine is the field's usual short form.
    """
    check_floating(latitude=latitude)
    if latitude.dim() != 1 or not bool((latitude.abs() <= 90).all()):
        raise ValueError("latitude must be one-dimensional, in degrees within [-90, 90]")
    radians = torch.deg2rad(latitude.to(common_dtype(latitude)))
    if method == "cosine":
        weights = torch.cos(radians).clamp(min=0)
        # cos(π/2) is 6e-17 in floating point; a pole has no area.
        weights = torch.where(latitude.abs() == 90, torch.zeros_like(weights), weights)
    elif method == "cell_area":
        step = radians.diff()
        if len(step) == 0 or not bool((step > 0).all() | (step < 0).all()):
            raise ValueError("cell areas need two latitudes at least, strictly increasing or decreasing")
        inner = radians[:-1] + step / 2
        borders = torch.cat([radians[:1] - step[:1] / 2, inner, radians[-1:] + step[-1:] / 2])
        weights = torch.sin(borders.clamp(-math.pi / 2, math.pi / 2)).diff().abs()
    else:
        raise ValueError(f'method must be "cosine" or "cell_area", got {method!r}')
    return weights / weights.mean()


@takes_arrays()
def weighted_mean(
    values: Tensor,
    weights: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    dim: int | tuple[int, ...] | None = None,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    r"""Σ w v / Σ w over `dim` (all dimensions when None), over the points that count.

    Args:
        values: any shape, floating.
        weights: non-negative, broadcastable to `values` (latitude weights as (n, 1) against (…, n, longitude)).
        mask: boolean, broadcastable to `values`; False points are left out of both sums, even NaN.
        dim: dimensions to average over.
        nan_policy: for points that the mask lets through: "propagate", "omit" (left out of both sums) or "raise".

    Returns: `values` without `dim`; NaN where nothing counts. Gradients of points left out are zero.
    Raises: ValueError for NaN under "raise"; TypeError if not floating.
    """
    check_floating(values=values)
    values = values.to(common_dtype(values))
    weights = torch.ones_like(values) if weights is None else weights.to(values).expand_as(values)
    counts = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.expand_as(values)
    apply_nan_policy(nan_policy, values=torch.where(counts, values, 0))
    if nan_policy == "omit":
        counts = counts & ~values.isnan()
    weights = torch.where(counts, weights, 0)
    total = torch.where(counts, values, 0) * weights
    dims = tuple(range(values.dim())) if dim is None else dim
    return total.sum(dims) / weights.sum(dims)


@takes_arrays()
def anomaly_correlation(
    forecast: Tensor,
    truth: Tensor,
    climatology: Tensor,
    *,
    weights: Tensor | None = None,
    dim: int | tuple[int, ...] = (-2, -1),
    centred: bool = False,
    nan_policy: NanPolicy = "propagate",
) -> Tensor:
    r"""Anomaly correlation coefficient: Σ w f' o' / √(Σ w f'² · Σ w o'²), f' = f − c, o' = o − c.

    Args:
        forecast, truth: (…), of one shape; floating.
        climatology: broadcastable to them, same unit.
        weights: broadcastable, e.g. `latitude_weights` as (n, 1).
        dim: the dimensions of the map.
        centred: subtract the weighted mean anomaly of each map first (the WMO's centred form).
        nan_policy: "omit" leaves out points where any of the three is NaN.

    Returns: `forecast` without `dim`, in [−1, 1]; NaN where an anomaly is zero everywhere.
    Raises: ValueError for shapes that differ or NaN under "raise"; TypeError if not floating.
    Source: Murphy & Epstein 1989, Monthly Weather Review 117 (both forms); uncentred: WeatherBench 2, arXiv 2308.15560.
    """
    check_floating(forecast=forecast, truth=truth, climatology=climatology)
    if forecast.shape != truth.shape:
        raise ValueError(f"forecast and truth differ in shape: {tuple(forecast.shape)} and {tuple(truth.shape)}")
    dtype = common_dtype(forecast, truth, climatology)
    first, second = forecast.to(dtype) - climatology.to(dtype), truth.to(dtype) - climatology.to(dtype)
    apply_nan_policy(nan_policy, forecast=first, truth=second)
    mask = ~(first.isnan() | second.isnan()) if nan_policy == "omit" else None

    def mean(values: Tensor) -> Tensor:
        return weighted_mean(values, weights, mask=mask, dim=dim)

    if centred:
        dims = (dim,) if isinstance(dim, int) else dim
        shape = [1 if axis in {d % first.dim() for d in dims} else size for axis, size in enumerate(first.shape)]
        first, second = first - mean(first).reshape(shape), second - mean(second).reshape(shape)
    return mean(first * second) / torch.sqrt(mean(first.square()) * mean(second.square()))


class Spectrum(NamedTuple):
    """Power by wavenumber; the power sums to the mean square of the field."""

    wavenumber: Tensor
    power: Tensor


@takes_arrays()
def zonal_spectrum(field: Tensor, *, weights: Tensor | None = None) -> Spectrum:
    r"""Power spectrum along latitude circles, averaged over latitude.

        P_k = Σ_i w_i s_k |f̂_k(φ_i)|² / n² / Σ_i w_i,   s_0 = 1, s_{n/2} = 1 (n even), else 2

    Args:
        field: (…, latitude, longitude), real and floating, longitude equidistant and periodic.
        weights: (latitude,), e.g. `latitude_weights`; None: equal.

    Returns: zonal wavenumbers (n // 2 + 1,), cycles a circle, and power (…, n // 2 + 1) in the squared unit of the
        field; Σ_k P_k is the weighted mean of the squared field (Parseval).
    Raises: ValueError for fewer than two dimensions; TypeError if not floating. NaN fills its map.
    """
    check_floating(field=field)
    if field.dim() < 2:
        raise ValueError(f"field must be (…, latitude, longitude), got shape {tuple(field.shape)}")
    count = field.shape[-1]
    power = torch.fft.rfft(field.to(common_dtype(field)), dim=-1, norm="forward").abs().square()
    one_sided = torch.full((count // 2 + 1,), 2.0, dtype=power.dtype, device=power.device)
    one_sided[0] = 1
    if count % 2 == 0:
        one_sided[-1] = 1
    rows = None if weights is None else weights.to(power)[:, None]
    return Spectrum(
        torch.arange(count // 2 + 1, dtype=power.dtype, device=power.device),
        weighted_mean(power * one_sided, rows, dim=-2),
    )


@takes_arrays()
def isotropic_spectrum(field: Tensor, *, spacing: float | tuple[float, float] = 1.0) -> Spectrum:
    r"""Power spectrum of a doubly periodic field, summed over shells of |k|.

    Shell j holds the wave vectors with j − ½ ≤ |k| / k₁ < j + ½, k₁ = 1 / longest side. No vector is left out: shells
    go on into the corners, beyond the Nyquist wavenumber of the axes.

    Args:
        field: (…, y, x), real and floating, periodic in both.
        spacing: grid distance, or (Δy, Δx), in the unit of length that the wavenumber is to be in.

    Returns: wavenumbers j·k₁ (shells,), cycles per unit of length, and power (…, shells) in the squared unit of the
        field, Σ_j P_j = mean of field² (Parseval).
    Raises: ValueError for fewer than two dimensions or spacing ≤ 0; TypeError if not floating. NaN fills its map.
    """
    check_floating(field=field)
    steps = spacing if isinstance(spacing, tuple) else (spacing, spacing)
    if field.dim() < 2 or min(steps) <= 0:
        raise ValueError(f"field must be (…, y, x) and spacing positive, got {tuple(field.shape)} and {spacing}")
    power = torch.fft.fft2(field.to(common_dtype(field)), norm="forward").abs().square()
    height, width = field.shape[-2:]
    fundamental = 1 / max(height * steps[0], width * steps[1])
    along_y = torch.fft.fftfreq(height, steps[0], dtype=torch.float64, device=field.device)
    along_x = torch.fft.fftfreq(width, steps[1], dtype=torch.float64, device=field.device)
    # The small shift keeps vectors that stand exactly on a border, up to rounding, in one shell.
    shell = torch.floor(torch.hypot(along_y[:, None], along_x) / fundamental + 0.5 + 1e-9).long().flatten()
    shells = int(shell.max()) + 1
    total = power.new_zeros(*field.shape[:-2], shells).index_add(-1, shell, power.flatten(-2))
    return Spectrum(torch.arange(shells, dtype=power.dtype, device=power.device) * fundamental, total)
