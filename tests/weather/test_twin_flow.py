"""The quasi-geostrophic flow: inversion, conservation laws, waves in closed form, viscosity, heating, symmetries."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from relent.data.quasi_geostrophic import CEILING, FLOOR, GRADIENT, FlowParameters, TwoLayerFlow

DOUBLE = torch.float64
DEFAULT = FlowParameters()
STILL = FlowParameters(shear=0.0, beta=0.0, friction=0.0, viscosity=0.0)
"""Advection and stretching alone."""


def flow(parameters: FlowParameters = DEFAULT, dtype: torch.dtype = DOUBLE) -> TwoLayerFlow:
    return TwoLayerFlow(parameters, dtype)


def plane(size: int) -> tuple[Tensor, Tensor]:
    """x along the last dimension and y along the one before, (N, N) each."""
    place = torch.arange(size, dtype=DOUBLE) * 2 * math.pi / size
    y, x = torch.meshgrid(place, place, indexing="ij")
    return x, y


def smooth(size: int = 32, seed: int = 0, largest: int = 4) -> Tensor:
    """Random stream functions of wavenumbers up to `largest`, (2, N, N)."""
    generator = torch.Generator().manual_seed(seed)
    x, y = plane(size)
    field = torch.zeros(2, size, size, dtype=DOUBLE)
    for k in range(largest + 1):
        for m in range(-largest, largest + 1):
            amplitude, phase = torch.rand(2, 2, generator=generator, dtype=DOUBLE)
            field += amplitude[:, None, None] * torch.cos(k * x + m * y + 6.28 * phase[:, None, None])
    field -= field.mean(dim=(-2, -1), keepdim=True)
    return field / field.std()


def mode(k: int, m: int, upper: complex, lower: complex, size: int = 32) -> Tensor:
    """Re(a exp(i(kx + my))) in each layer."""
    x, y = plane(size)
    wave = torch.exp(1j * (k * x + m * y))
    return torch.stack([(upper * wave).real, (lower * wave).real])


def amplitudes(field: Tensor, k: int, m: int) -> Tensor:
    """Complex amplitudes (2) of a wave in (2, N, N)."""
    return 2 * torch.fft.fft2(field)[:, m, k] / field.shape[-1] ** 2


# ---------------------------------------------------------------------------------------------- inversion


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 15), st.integers(-15, 15), st.floats(-2, 2), st.floats(-2, 2))
def test_potential_vorticity_of_a_wave(k: int, m: int, upper: float, lower: float) -> None:
    model = flow()
    field = model.field(model.vorticity(model.spectrum(mode(k, m, upper, lower))))
    squared, stretching = k**2 + m**2, 18.0 * (upper - lower)
    # A constant stream function is no flow and is dropped.
    expected = mode(k, m, -squared * upper - stretching, -squared * lower + stretching) * (squared > 0)
    torch.testing.assert_close(field, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("size", [16, 32, 48])
def test_stream_functions_come_back_from_potential_vorticity(dtype: torch.dtype, tolerance: float, size: int) -> None:
    model = flow(FlowParameters(size=size), dtype)
    field = smooth(size, largest=5).to(dtype)
    back = model.field(model.stream(model.vorticity(model.spectrum(field))))
    torch.testing.assert_close(back, field, atol=tolerance, rtol=0)


def test_all_wavenumbers_but_the_grids_own_are_kept() -> None:
    model = flow()
    for k, m in ((15, 15), (15, -15), (0, 15)):
        field = mode(k, m, 1.0, -0.5)
        torch.testing.assert_close(model.field(model.spectrum(field)), field, atol=1e-12, rtol=0)
    assert float(model.field(model.spectrum(mode(16, 0, 1.0, 1.0))).abs().max()) < 1e-12


# ---------------------------------------------------------------------------------------------- advection


def jacobian(stream: Tensor, carried: Tensor, size: int = 96) -> np.ndarray:
    """∂ₓψ ∂ᵧq − ∂ᵧψ ∂ₓq of fields on a grid so fine that nothing is aliased."""
    waves = np.fft.fftfreq(size, 1 / size)
    ikx, iky = 1j * waves[None, :], 1j * waves[:, None]
    psi, q = np.fft.fft2(stream.numpy()), np.fft.fft2(carried.numpy())
    d = [np.fft.ifft2(a).real for a in (ikx * psi, iky * q, iky * psi, ikx * q)]
    return d[0] * d[1] - d[2] * d[3]


def test_advection_equals_the_jacobian_on_a_finer_grid() -> None:
    size, fine = 32, 96
    stream = smooth(fine, largest=12)
    coarse = stream[:, ::3, ::3]
    model, wide = flow(STILL), flow(replace(STILL, size=fine))
    tendency = model.field(model.tendency(model.vorticity(model.spectrum(coarse))))
    q = wide.field(wide.vorticity(wide.spectrum(stream)))
    for layer in range(2):
        spectrum = np.fft.fft2(-jacobian(stream[layer], q[layer])) / (fine / size) ** 2
        kept = np.zeros((size, size), dtype=complex)
        for m in range(-15, 16):
            for k in range(-15, 16):
                kept[m, k] = spectrum[m, k]
        np.testing.assert_allclose(tendency[layer], np.fft.ifft2(kept).real, atol=1e-9 * float(q.abs().max()) ** 2)


def energy(model: TwoLayerFlow, field: Tensor) -> Tensor:
    """Mean of ½(|∇ψ₁|² + |∇ψ₂|² + F(ψ₁ − ψ₂)²) = −½ Σ ψᵢqᵢ."""
    q = model.field(model.vorticity(model.spectrum(field)))
    return -0.5 * (field * q).sum(0).mean()


def enstrophies(model: TwoLayerFlow, field: Tensor) -> Tensor:
    return 0.5 * model.field(model.vorticity(model.spectrum(field))).square().mean(dim=(-2, -1))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 30))
def test_advection_changes_neither_energy_nor_enstrophy(seed: int, beta: float) -> None:
    field = smooth(seed=seed, largest=9)
    model = flow(replace(STILL, beta=beta))
    vorticity = model.vorticity(model.spectrum(field))
    change = model.field(model.tendency(vorticity))
    q = model.field(vorticity)
    size = float((field.abs() * change.abs()).mean())
    assert abs(float((field * change).sum(0).mean())) < 1e-12 * size
    still = flow(STILL)
    change = still.field(still.tendency(vorticity))
    for layer in range(2):
        rate = (q[layer] * change[layer]).mean()
        assert abs(float(rate)) < 1e-12 * float((q[layer].abs() * change[layer].abs()).mean())


def test_a_run_keeps_energy_and_enstrophy_to_the_order_of_the_scheme() -> None:
    field, drifts = smooth(largest=6), []
    for substeps in (10, 20, 40):
        model = flow(replace(STILL, substeps=substeps))
        after = field
        for _ in range(2):
            after = model(after)
        assert float((after - field).abs().max()) > 0.5
        drift = torch.cat([(energy(model, after) / energy(model, field) - 1)[None]])
        enstrophy = enstrophies(model, after) / enstrophies(model, field) - 1
        drifts.append(torch.cat([drift, enstrophy]).abs())
    assert drifts[-1].max() < 5e-6
    assert bool((drifts[0] / drifts[1] > 14).all())
    assert bool((drifts[1] / drifts[2] > 14).all())


def test_runge_kutta_is_of_fourth_order() -> None:
    field = 0.5 * smooth(largest=4)
    parameters = FlowParameters(viscosity=0.0)
    exact = flow(replace(parameters, substeps=160))(field)
    errors = [float((flow(replace(parameters, substeps=n))(field) - exact).abs().max()) for n in (5, 10, 20)]
    assert 12 < errors[0] / errors[1] < 20
    assert 12 < errors[1] / errors[2] < 20


def test_a_finer_grid_has_the_same_solution_where_both_resolve_it() -> None:
    parameters = FlowParameters(viscosity=0.0, substeps=20)
    field = 0.3 * smooth(64, largest=3)
    fine = flow(replace(parameters, size=64))(field)
    coarse = flow(parameters)(field[:, ::2, ::2])
    torch.testing.assert_close(coarse, fine[:, ::2, ::2], atol=1e-6, rtol=0)


# ---------------------------------------------------------------------------------------------- waves


def linear_operator(p: FlowParameters, k: int, m: int) -> np.ndarray:
    """M with dψ̂/dt = M ψ̂ for a small wave exp(i(kx + my)) on the mean shear."""
    squared = k**2 + m**2
    invert = np.array([[-squared - p.deformation, p.deformation], [p.deformation, -squared - p.deformation]])
    advect = -1j * k * p.shear * np.diag([1.0, -1.0])
    gradient = -1j * k * np.diag([p.beta + 2 * p.deformation * p.shear, p.beta - 2 * p.deformation * p.shear])
    drag = np.diag([0.0, p.friction * squared])
    return np.linalg.inv(invert) @ (advect @ invert + gradient + drag)


@pytest.mark.parametrize(("k", "m"), [(1, 0), (3, 0), (4, 2), (5, -1), (8, 3)])
@pytest.mark.parametrize("friction", [0.0, 2.0])
def test_small_waves_grow_and_move_as_the_linear_equations_say(k: int, m: int, friction: float) -> None:
    parameters = FlowParameters(friction=friction, viscosity=0.0, substeps=20)
    values, vectors = np.linalg.eig(linear_operator(parameters, k, m))
    model = flow(parameters)
    for value, vector in zip(values, vectors.T):
        field = model(1e-7 * mode(k, m, complex(vector[0]), complex(vector[1])))
        expected = 1e-7 * vector * np.exp(value * parameters.step)
        np.testing.assert_allclose(amplitudes(field, k, m).numpy(), expected, atol=1e-13)


@pytest.mark.parametrize("k", [2, 3, 4, 5, 7])
def test_growth_rate_of_baroclinic_waves_is_that_of_phillips_problem(k: int) -> None:
    """c of the two-layer problem with ±U (Vallis, chapter 9): unstable where β is weak and k_β ≲ k < k_d."""
    p = FlowParameters(friction=0.0, beta=6.0)
    k2, kd2 = float(k**2), 2 * p.deformation
    root = np.emath.sqrt(1 + 4 * k2**2 * (k2**2 - kd2**2) * p.shear**2 / (p.beta**2 * kd2**2))
    speeds = np.array([-p.beta / (k2 + kd2) * (1 + kd2 / (2 * k2) * (1 + sign * root)) for sign in (1, -1)])
    values = np.linalg.eigvals(linear_operator(p, k, 0))
    for rate in -1j * k * speeds:
        assert np.abs(values - rate).min() < 1e-12
    assert (values.real.max() > 0.3) == (k in (3, 4, 5))


def test_viscosity_damps_each_wavenumber_by_its_eighth_power() -> None:
    parameters = replace(STILL, viscosity=1e-8)
    for k, m in ((3, 0), (10, 5), (15, 15)):
        field = mode(k, m, 1.0, 1.0)
        factor = math.exp(-1e-8 * (k**2 + m**2) ** 4 * parameters.step)
        torch.testing.assert_close(flow(parameters)(field), factor * field, atol=1e-12, rtol=0)


# ---------------------------------------------------------------------------------------------- heating


def test_heating_noise_has_its_variance_spectrum_and_no_mean() -> None:
    model = flow()
    noise = model.heating_noise(torch.randn(3000, 32, 32, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)))
    dt = 0.02
    variance = noise.square().mean(0) / (12.0**2 * dt)
    # One point's estimate over 3,000 draws has a relative standard deviation of √(2/3000) = 2.6 %.
    assert float((variance - 1).abs().max()) < 0.13
    assert float(variance.mean()) == pytest.approx(1, abs=0.01)
    assert float(noise.mean(dim=(-2, -1)).abs().max()) < 1e-12
    power = torch.fft.fft2(noise).abs().square().mean(0)
    reference = power[0, 1] / math.exp(-1 / 64)
    for m, k in ((1, 0), (0, 5), (-5, 5), (8, 2), (-12, 3), (15, 0), (15, 15)):
        expected = reference * math.exp(-(m**2 + k**2) / 64)
        assert float(power[m, k] / expected) == pytest.approx(1, abs=0.12)
    assert float(power[0, 16]) < 1e-20


def test_heating_is_strong_where_the_thermal_gradient_is() -> None:
    model = flow()
    field = 0.9 * smooth()
    strength = model.heating_strength(model.vorticity(model.spectrum(field)))
    waves = np.fft.fftfreq(32, 1 / 32)
    thermal = np.fft.fft2((field[0] - field[1]).numpy())
    along_x = np.fft.ifft2(1j * waves[None] * thermal).real
    along_y = np.fft.ifft2(-1j * waves[:, None] * thermal).real + 2 * 0.5
    expected = FLOOR + np.minimum((along_x**2 + along_y**2) / GRADIENT, CEILING)
    np.testing.assert_allclose(strength[::2, ::2], expected, atol=1e-10)
    assert float(strength.max()) == pytest.approx(FLOOR + CEILING)
    assert float(strength.min()) < 0.4


def test_heating_exchanges_vorticity_between_layers_and_uses_the_state_before() -> None:
    model = flow()
    before = model.vorticity(model.spectrum(smooth()))
    noise = torch.randn(32, 32, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    added = model.field(model.substep(before, noise) - model.substep(before, None))
    torch.testing.assert_close(added[0], -added[1], atol=1e-10, rtol=0)
    product = model.heating_strength(before) * model.heating_noise(noise)
    spectrum = torch.fft.fft2(product)
    spectrum[16:-15], spectrum[:, 16:-15], spectrum[0, 0] = 0, 0, 0
    torch.testing.assert_close(added[0], torch.fft.ifft2(spectrum).real[::2, ::2], atol=1e-10, rtol=0)


# ---------------------------------------------------------------------------------------------- symmetries


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 31), st.integers(0, 31))
def test_the_plane_is_everywhere_alike(rows: int, columns: int) -> None:
    model, field = flow(), smooth()
    noise = torch.randn(model.noise_shape(), dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    moved = model(field.roll((rows, columns), (-2, -1)), noise.roll((rows, columns), (-2, -1)))
    torch.testing.assert_close(moved, model(field, noise).roll((rows, columns), (-2, -1)), atol=1e-10, rtol=0)


def test_a_mirror_in_y_with_the_opposite_sign_is_a_flow_too() -> None:
    def mirrored(field: Tensor) -> Tensor:
        return -field.flip(-2).roll(1, -2)

    model, field = flow(), smooth()
    noise = torch.randn(model.noise_shape(), dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        model(mirrored(field), mirrored(noise)), mirrored(model(field, noise)), atol=1e-10, rtol=0
    )


def test_states_are_stepped_alike_in_any_batch() -> None:
    model, field = flow(), torch.stack([smooth(seed=seed) for seed in range(6)])
    noise = torch.randn(6, *model.noise_shape(), dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    together = model(field.reshape(2, 3, 2, 32, 32), noise.reshape(2, 3, 5, 32, 32)).flatten(0, 1)
    for number in range(6):
        torch.testing.assert_close(model(field[number], noise[number]), together[number], atol=1e-12, rtol=0)


def test_single_precision_steps_like_double() -> None:
    field = smooth()
    noise = torch.randn(FlowParameters().substeps, 32, 32, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    single = flow(dtype=torch.float32)(field.float(), noise.float())
    torch.testing.assert_close(single.double(), flow()(field, noise), atol=1e-4, rtol=0)


# ---------------------------------------------------------------------------------------------- parameters


def test_resolution_changes_viscosity_and_substeps_alone() -> None:
    reference, fine = FlowParameters(), FlowParameters(size=512)
    assert reference.scaled_viscosity == 1e-8
    assert reference.scaled_substeps == 5
    assert fine.scaled_viscosity * fine.wavenumber**8 == pytest.approx(1e-8 * 15**8)
    assert fine.scaled_substeps == 319
    assert FlowParameters.from_json(fine.to_json()) == fine
    assert flow(FlowParameters(size=16)).noise_shape() == (5, 16, 16)


@pytest.mark.parametrize(("size", "steps"), [(16, 60), (64, 8), (128, 2)])
def test_other_grids_are_stable(size: int, steps: int) -> None:
    """From a state stronger than the climate's, whose waves grow fast."""
    model = flow(FlowParameters(size=size), torch.float32)
    generator = torch.Generator().manual_seed(2)
    field = (1.3 * smooth(size, largest=3)).float()
    for _ in range(steps):
        field = model(field, torch.randn(model.noise_shape(), generator=generator))
    assert 0.2 < float(field.std()) < 3
    vorticity = model.field(model.vorticity(model.spectrum(field)))
    assert float(vorticity.abs().max()) < 500


@pytest.mark.parametrize("size", [0, 4, 30, 33])
def test_sizes_that_cannot_be(size: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of four, from 8, got {size}"):
        FlowParameters(size=size)
