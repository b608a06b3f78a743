r"""Two-layer quasi-geostrophic flow with state-dependent stochastic heating: an atmosphere whose law is known.

On a doubly periodic plane (2π × 2π) with stream functions ψ₁ (upper layer) and ψ₂,

    q₁ = ∇²ψ₁ − F(ψ₁ − ψ₂),   q₂ = ∇²ψ₂ + F(ψ₁ − ψ₂),
    ∂q₁/∂t = −J(ψ₁, q₁) − U ∂ₓq₁ − (β + 2FU) ∂ₓψ₁ − ν∇⁸q₁ + h,
    ∂q₂/∂t = −J(ψ₂, q₂) + U ∂ₓq₂ − (β − 2FU) ∂ₓψ₂ − r∇²ψ₂ − ν∇⁸q₂ − h,

Phillips' model of baroclinic instability (Vallis, Atmospheric and Oceanic Fluid Dynamics, 2nd edition, chapters 5 and
9) with a mean westerly shear 2U, Ekman friction r in the lower layer and a heating h = σ g(x, t) η that exchanges
potential vorticity between the layers. η is Gaussian, white in time (Itô), with unit variance at every point and
amplitudes ∝ exp(−k²/(2·64)); g rises with the square of the thermal gradient, so that there is uncertainty where there
are fronts. The heating is ours. The state (ψ₁, ψ₂) on the grid determines the law of the future.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

LAYERS = 2
REFERENCE_WAVENUMBER = 15
"""Largest wavenumber of the 32 × 32 grid, for which viscosity and substeps are stated."""
HEATING_SCALE = 64.0
LONGEST_SUBSTEP = 0.08
"""Largest product of substep and wavenumber on finer grids. Winds |u| + |v| reach 26, and the Runge-Kutta scheme is
stable up to a product with them of 2.8; on 32 × 32 points viscosity holds down what a longer substep (0.3) excites, but
finer grids have too little of it in one substep."""
FLOOR, GRADIENT, CEILING = 0.2, 5.6, 4.0
"""g = FLOOR + min(|∇τ|²/GRADIENT, CEILING), with the thermal gradient ∇τ of mean and eddies together."""


@dataclass(frozen=True)
class FlowParameters:
    """Parameters, without dimension: the plane is 2π long; a step of `step` is about six to twelve hours.

    At any resolution the physics (F, U, β, r, σ) stays. `viscosity` is ν on the 32 × 32 grid; on others it is scaled so
    that the largest wavenumber kept is damped at the same rate, and `substeps` so that the shortest waves stay
    stable. Finer grids therefore resolve more of the cascade and of the heating, whose spectrum a 32 × 32 grid
    cuts off at 17 % of its largest amplitude: climates of two grids are alike, not equal.
    """

    size: int = 32
    """Grid points a side."""
    deformation: float = 18.0
    """F; the deformation wavenumber is √(2F) = 6."""
    shear: float = 0.5
    """U: the layers' mean flow is ±U."""
    beta: float = 12.0
    friction: float = 2.0
    heating: float = 12.0
    """σ."""
    viscosity: float = 1e-8
    step: float = 0.1
    """Time of one step of the data set."""
    substeps: int = 5
    """Runge-Kutta steps a step on grids up to 32 × 32."""

    def __post_init__(self) -> None:
        if self.size < 8 or self.size % 4:
            raise ValueError(f"size must be a multiple of four, from 8, got {self.size}")

    @property
    def wavenumber(self) -> int:
        """Largest wavenumber kept in x and in y: all but the grid's own Nyquist wavenumber."""
        return self.size // 2 - 1

    @property
    def scaled_viscosity(self) -> float:
        """ν of this grid."""
        return self.viscosity * (REFERENCE_WAVENUMBER / self.wavenumber) ** 8

    @property
    def scaled_substeps(self) -> int:
        """Runge-Kutta steps a step of this grid."""
        if self.wavenumber <= REFERENCE_WAVENUMBER:
            return self.substeps
        return max(self.substeps, math.ceil(self.step * self.wavenumber / LONGEST_SUBSTEP))

    def to_json(self) -> str:
        """As text for a data set's attributes."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> FlowParameters:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))


class TwoLayerFlow(nn.Module):
    """Steps of the flow, batched over any leading dimensions; differentiable; on any device.

    Products are formed on a grid of 3/2 the points a side, so that no term is aliased. Each substep is one fourth-order
    Runge-Kutta step of everything but viscosity and heating, then exp(−νk⁸dt), then the heating with g from the start
    of the substep.

    Args:
        parameters: What flow.
        dtype: float32 or float64.
    """

    wave_x: Tensor
    wave_y: Tensor
    squared: Tensor
    kept: Tensor
    decay: Tensor
    amplitude: Tensor
    mean_gradient: Tensor
    mean_flow: Tensor
    ekman: Tensor

    def __init__(self, parameters: FlowParameters, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.parameters_of_flow = parameters
        self.fine = 3 * parameters.size // 2
        p, largest = parameters, parameters.wavenumber
        rows = torch.fft.fftfreq(self.fine, 1 / self.fine, dtype=torch.float64)[:, None]
        columns = torch.arange(largest + 1, dtype=torch.float64)[None]
        squared = rows**2 + columns**2
        kept = ((rows.abs() <= largest) & (squared > 0)).double()
        dt = p.step / p.scaled_substeps
        constants = {
            "wave_x": columns * kept,
            "wave_y": rows * kept,
            "squared": squared,
            "kept": kept,
            "decay": torch.exp(-p.scaled_viscosity * squared**4 * dt) * kept,
            "amplitude": self._amplitude(dt),
            "mean_gradient": _by_layer(p.beta + 2 * p.deformation * p.shear, p.beta - 2 * p.deformation * p.shear),
            "mean_flow": _by_layer(p.shear, -p.shear),
            "ekman": _by_layer(0.0, p.friction) * squared,
        }
        for name, value in constants.items():
            self.register_buffer(name, value.to(dtype), persistent=False)

    def _amplitude(self, dt: float) -> Tensor:
        """Factors of the spectrum (rfft2, full grid) of white noise that give σ√dt η on the fine grid."""
        p = self.parameters_of_flow
        rows = torch.fft.fftfreq(p.size, 1 / p.size, dtype=torch.float64)[:, None]
        columns = torch.arange(p.wavenumber + 1, dtype=torch.float64)[None]
        squared = rows**2 + columns**2
        kept = (rows.abs() <= p.wavenumber) & (squared > 0)
        amplitude = torch.exp(-squared / (2 * HEATING_SCALE)) * kept
        # Each column but the first stands for two wavenumbers, ±k_x; the variance of a point is the sum over all.
        pairs = torch.where(columns > 0, 2.0, 1.0)
        variance = (pairs * amplitude**2).sum() / p.size**2
        return p.heating * math.sqrt(dt) * amplitude / variance.sqrt()

    # ------------------------------------------------------------------------------------------ transforms

    def spectrum(self, field: Tensor) -> Tensor:
        """Fourier coefficients (…, fine, K + 1), normalised as those of the fine grid, of (…, N, N)."""
        return self._resized(torch.fft.rfft2(field), self.fine) * self.kept

    def field(self, spectrum: Tensor) -> Tensor:
        """Values (…, N, N) of Fourier coefficients."""
        return self._to_grid(spectrum, self.parameters_of_flow.size)

    def _resized(self, coefficients: Tensor, rows: int) -> Tensor:
        """Coefficients (…, rows, K + 1) of the same field on a grid of `rows` points a side."""
        half, largest = self.parameters_of_flow.size // 2, self.parameters_of_flow.wavenumber
        kept = coefficients[..., : largest + 1] * (rows / coefficients.shape[-2]) ** 2
        gap = kept.new_zeros(*kept.shape[:-2], rows - 2 * half, largest + 1)
        return torch.cat([kept[..., :half, :], gap, kept[..., -half:, :]], dim=-2)

    def _to_grid(self, spectrum: Tensor, points: int | None = None) -> Tensor:
        """Values on a grid of so many points a side; default: the fine grid."""
        rows = spectrum if points is None else self._resized(spectrum, points)
        return torch.fft.irfft(torch.fft.ifft(rows, dim=-2), n=points or self.fine, dim=-1)

    def _to_spectrum(self, grid: Tensor) -> Tensor:
        """Coefficients of values on a grid of any size, with its own rows."""
        return torch.fft.fft(torch.fft.rfft(grid, dim=-1)[..., : self.parameters_of_flow.wavenumber + 1], dim=-2)

    def vorticity(self, stream: Tensor) -> Tensor:
        """Spectra of q₁, q₂ from those of ψ₁, ψ₂, both (…, 2, fine, K + 1)."""
        exchange = self.parameters_of_flow.deformation * (stream - stream.flip(-3))
        return -self.squared * stream - exchange

    def stream(self, vorticity: Tensor) -> Tensor:
        """Spectra of ψ₁, ψ₂ from those of q₁, q₂: solved for the layers' mean and difference."""
        squared = self.squared.clamp(min=1)
        mean = -(vorticity + vorticity.flip(-3)) / (2 * squared)
        difference = -(vorticity - vorticity.flip(-3)) / (2 * (squared + 2 * self.parameters_of_flow.deformation))
        return (mean + difference) * self.kept

    # ------------------------------------------------------------------------------------------ dynamics

    def tendency(self, vorticity: Tensor) -> Tensor:
        """∂q/∂t without viscosity and heating, as spectra: advection in flux form, mean gradient, Ekman friction."""
        stream = self.stream(vorticity)
        wind_x = self._to_grid(-1j * self.wave_y * stream) + self.mean_flow
        wind_y = self._to_grid(1j * self.wave_x * stream)
        carried = self._to_grid(vorticity)
        flux_x = self._to_spectrum(wind_x * carried) + self.mean_gradient * stream
        flux_y = self._to_spectrum(wind_y * carried)
        return -1j * (self.wave_x * flux_x + self.wave_y * flux_y) + self.ekman * stream

    def heating_strength(self, vorticity: Tensor) -> Tensor:
        """g on a grid of 2N points a side, from the thermal gradient of τ = ψ₁ − ψ₂ and the mean shear."""
        stream = self.stream(vorticity)
        thermal = stream[..., 0, :, :] - stream[..., 1, :, :]
        points = 2 * self.parameters_of_flow.size
        along_y = self._to_grid(-1j * self.wave_y * thermal, points) + 2 * self.parameters_of_flow.shear
        along_x = self._to_grid(1j * self.wave_x * thermal, points)
        return FLOOR + ((along_x**2 + along_y**2) / GRADIENT).clamp(max=CEILING)

    def heating_noise(self, noise: Tensor) -> Tensor:
        """σ√dt η on a grid of 2N points a side, from white noise of unit variance (…, N, N)."""
        coefficients = torch.fft.rfft2(noise)[..., : self.parameters_of_flow.wavenumber + 1] * self.amplitude
        return self._to_grid(coefficients, 2 * self.parameters_of_flow.size)

    def heating(self, vorticity: Tensor, noise: Tensor) -> Tensor:
        """Spectrum of g σ√dt η.

        g is no polynomial, so that its product is aliased on any grid; on twice the points it is aliased alike wherever
        the state lies, and the law is exactly the same everywhere on the N-point grid.
        """
        product = self.heating_strength(vorticity) * self.heating_noise(noise)
        return self._resized(self._to_spectrum(product), self.fine) * self.kept

    def substep(self, vorticity: Tensor, noise: Tensor | None) -> Tensor:
        """One Runge-Kutta step, viscosity, heating.

        Args:
            vorticity: Spectra of q₁, q₂, (…, 2, fine, K + 1).
            noise: White noise (…, N, N); None: no heating.
        """
        dt = self.parameters_of_flow.step / self.parameters_of_flow.scaled_substeps
        first = self.tendency(vorticity)
        second = self.tendency(vorticity + dt / 2 * first)
        third = self.tendency(vorticity + dt / 2 * second)
        fourth = self.tendency(vorticity + dt * third)
        following = (vorticity + dt / 6 * (first + 2 * second + 2 * third + fourth)) * self.decay
        if noise is None:
            return following
        heating = self.heating(vorticity, noise)
        return following + torch.stack([heating, -heating], dim=-3)

    def forward(self, stream: Tensor, noise: Tensor | None = None) -> Tensor:
        """One step of the data set.

        Args:
            stream: ψ₁, ψ₂, (…, 2, N, N).
            noise: White noise of unit variance, (…, substeps, N, N); None: without heating.

        Returns:
            ψ₁, ψ₂ a step later.
        """
        vorticity = self.vorticity(self.spectrum(stream))
        for number in range(self.parameters_of_flow.scaled_substeps):
            vorticity = self.substep(vorticity, None if noise is None else noise[..., number, :, :])
        return self.field(self.stream(vorticity))

    def noise_shape(self) -> tuple[int, int, int]:
        """Shape of the white noise of one state's step: (substeps, N, N)."""
        p = self.parameters_of_flow
        return p.scaled_substeps, p.size, p.size


def _by_layer(upper: float, lower: float) -> Tensor:
    return torch.tensor([upper, lower], dtype=torch.float64)[:, None, None]
