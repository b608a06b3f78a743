"""Objectives, the network's symmetries, and what may and may not be seen."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from forecast_networks import forecast_network
from synthetic_atmosphere import run_spec
from torch import Tensor

from relent.errors import ConfigError
from relent.grid import Topology
from relent.manifest.yamlfile import Document, parse
from relent.methods.weather.base import ForecastMethod, NetworkForecast, row_weighted_mean
from relent.methods.weather.crps_only import crps_only_loss
from relent.methods.weather.deterministic import absolute_error
from relent.methods.weather.fuxi_ens import fuxi_ens_loss, map_energy_score, spectral_crps
from relent.methods.weather.gaussian_perturbations import SIZES, smooth
from relent.methods.weather.vae_l1_kl import vae_l1_kl_loss
from relent.methods.weather.variational import latent_kl
from relent.models.fuxi_ens.latent import LatentGaussian
from relent.models.fuxi_ens.network import ForecastNetwork
from relent.scores.crps import crps_ensemble
from relent.tasks.ensemble_forecast.options import Options
from relent.train.stage import build

GLOBE = Topology.globe


def gaussian(mean: float, std: float, shape: tuple[int, ...] = (1, 1, 1, 1)) -> LatentGaussian:
    values = torch.full(shape, mean, dtype=torch.float64), torch.full(shape, std, dtype=torch.float64).log()
    return LatentGaussian(*(value.requires_grad_() for value in values))


@pytest.fixture(scope="module")
def network() -> ForecastNetwork:
    return forecast_network("convolutional")


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    """Frames (2, 2, 2, 10, 16), truth (2, 2, 10, 16), weights (2, 10)."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(2, 2, 2, 10, 16, generator=generator, dtype=torch.float64)
    truth = torch.randn(2, 2, 10, 16, generator=generator, dtype=torch.float64)
    return frames, truth, torch.rand(2, 10, generator=generator, dtype=torch.float64) + 0.5


def step(network: ForecastNetwork, frames: Tensor, truth: Tensor, members: int = 3) -> tuple[Tensor, ...]:
    features = network.encode(frames, GLOBE)
    prior, posterior = (
        network.prior(features, GLOBE),
        network.posterior(frames, truth, features, GLOBE),
    )
    torch.manual_seed(7)
    return network.decode(frames, features, posterior.sample(members), GLOBE), posterior, prior


# ------------------------------------------------------------------------------------------------ objectives


def test_kl_of_known_gaussians() -> None:
    first, second = gaussian(1, 2), gaussian(0, 1)
    truth = torch.zeros(1, 2, 3, 4)
    assert float(latent_kl(first, second, truth).per_value.detach()) * 24 == pytest.approx(1.3068528194, abs=1e-10)
    assert float(latent_kl(second, first, truth).per_value.detach()) * 24 == pytest.approx(0.4431471806, abs=1e-10)


def test_kl_is_zero_with_zero_gradient_where_posterior_is_prior() -> None:
    first, second = gaussian(0.3, 0.7, (2, 3, 2, 2)), gaussian(0.3, 0.7, (2, 3, 2, 2))
    kl = latent_kl(first, second, torch.zeros(2, 1, 8, 8)).per_value
    kl.backward()
    assert float(kl.detach()) == 0
    for tensor in (*first[:2], *second[:2]):
        assert float(tensor.grad.abs().max()) < 1e-15


def test_kl_sums_the_map_and_averages_the_batch() -> None:
    first, second = gaussian(1, 2, (5, 3, 2, 4)), gaussian(0, 1, (5, 3, 2, 4))
    kl = latent_kl(first, second, torch.zeros(5, 2, 8, 16))
    assert float(kl.per_value.detach()) == pytest.approx(24 * 1.3068528194 / (2 * 8 * 16), rel=1e-9)
    assert float(kl.active) == 1


def test_active_units_counts_dimensions_in_use() -> None:
    mean = torch.zeros(4, 2, 1, 2)
    mean[:, 0] = 1
    kl = latent_kl(LatentGaussian(mean, torch.zeros_like(mean)), LatentGaussian(0 * mean, 0 * mean), mean)
    assert float(kl.active) == 0.5


def test_fuxi_ens_loss_is_crps_plus_kl(network: ForecastNetwork, case: tuple[Tensor, ...]) -> None:
    frames, truth, weights = case
    members, posterior, prior = step(network, frames, truth)
    terms = fuxi_ens_loss(members, truth, posterior, prior, weights, alpha=0.95, kl_weight=0.3)
    pairs = (members[:, None] - members[None]).abs().sum((0, 1))
    epsilon = (1 - 0.95) / 3
    crps = (members - truth).abs().mean(0) - (1 - epsilon) / (2 * 3 * 2) * pairs
    crps = (crps * weights[:, None, :, None]).mean()
    law_q, law_p = (torch.distributions.Normal(g.mean, g.log_std.exp()) for g in (posterior, prior))
    kl = torch.distributions.kl_divergence(law_q, law_p).sum() / 2 / (2 * 10 * 16)
    torch.testing.assert_close(terms["crps"], crps, rtol=1e-12, atol=0)
    torch.testing.assert_close(terms["kl"], kl, rtol=1e-10, atol=0)
    torch.testing.assert_close(terms["loss"], crps + 0.3 * kl, rtol=1e-12, atol=0)
    reverse = fuxi_ens_loss(
        members, truth, posterior, prior, weights, alpha=0.95, kl_weight=0.3, kl_direction="prior_posterior"
    )
    kl = torch.distributions.kl_divergence(law_p, law_q).sum() / 2 / (2 * 10 * 16)
    torch.testing.assert_close(reverse["kl"], kl, rtol=1e-10, atol=0)


def test_l1_of_one_member_is_its_crps(case: tuple[Tensor, ...]) -> None:
    frames, truth, weights = case
    forecast = frames[:, 1]
    crps = row_weighted_mean(crps_ensemble(forecast[None], truth, estimator="biased"), truth, weights)
    torch.testing.assert_close(absolute_error(forecast[None], truth, weights), crps, rtol=1e-14, atol=0)
    same = gaussian(0, 1)
    terms = vae_l1_kl_loss(forecast[None], truth, same, same, weights, kl_weight=1)
    torch.testing.assert_close(terms["loss"], crps, rtol=1e-14, atol=0)


def test_without_latent_variance_members_are_equal_and_crps_is_the_absolute_error(
    network: ForecastNetwork, case: tuple[Tensor, ...]
) -> None:
    frames, truth, weights = case
    features = network.encode(frames, GLOBE)
    prior = network.prior(features, GLOBE)
    certain = LatentGaussian(prior.mean, torch.full_like(prior.log_std, -torch.inf))
    members = network.decode(frames, features, certain.sample(4), GLOBE)
    assert torch.equal(members, members[:1].expand_as(members))
    same = gaussian(0, 1)
    crps = fuxi_ens_loss(members, truth, same, same, weights, alpha=0.95, kl_weight=1)["crps"]
    torch.testing.assert_close(crps, absolute_error(members[:1], truth, weights), rtol=1e-12, atol=0)


def test_unknown_cells_change_neither_loss_nor_gradient(case: tuple[Tensor, ...]) -> None:
    frames, truth, weights = case
    members = torch.stack([frames[:, 0], frames[:, 1], truth + 0.1]).requires_grad_()
    unknown = torch.zeros_like(truth, dtype=torch.bool)
    unknown[0, 1, 4:6, 3:9] = True
    masked = truth.masked_fill(unknown, torch.nan)
    same = gaussian(0, 1)
    for loss in (
        lambda m, t: fuxi_ens_loss(m, t, same, same, weights, alpha=0.95, kl_weight=1)["loss"],
        lambda m, t: vae_l1_kl_loss(m, t, same, same, weights, kl_weight=1)["loss"],
        lambda m, t: absolute_error(m[:1], t, weights),
    ):
        value = loss(members, masked)
        (gradient,) = torch.autograd.grad(value, members)
        assert bool(gradient.isfinite().all())
        assert float(gradient[:, unknown].abs().max()) == 0
        other = members.detach().clone()
        other[:, unknown] = 1e6
        torch.testing.assert_close(loss(other, masked), value.detach(), rtol=1e-13, atol=0)
        known = float((~unknown).sum()) / truth.numel()
        whole = truth.masked_fill(unknown, 0) * 0 + truth
        (full,) = torch.autograd.grad(loss(members, whole), members)
        torch.testing.assert_close(gradient[:, ~unknown], full[:, ~unknown] / known, rtol=1e-10, atol=1e-15)


def test_losses_are_finite_on_extreme_fields(case: tuple[Tensor, ...]) -> None:
    frames, truth, weights = (value.float() for value in case)
    members = (1e4 * torch.stack([frames[:, 0], -frames[:, 1], truth])).requires_grad_()
    wide, narrow = gaussian(50, 7.0), gaussian(-50, 0.007)
    terms = fuxi_ens_loss(members, truth, wide, narrow, weights, alpha=0.95, kl_weight=1)
    terms["loss"].backward()
    assert all(bool(value.isfinite().all()) for value in terms.values())
    assert bool(members.grad.isfinite().all())


def test_crps_only_loss_is_the_latitude_weighted_almost_fair_crps(case: tuple[Tensor, ...]) -> None:
    frames, truth, weights = case
    members = torch.stack([frames[:, 0], frames[:, 1], truth + 0.1])
    fair, biased = (crps_ensemble(members, truth, estimator=name) for name in ("fair", "biased"))
    expected = ((0.95 * fair + 0.05 * biased) * weights[:, None, :, None]).mean()
    torch.testing.assert_close(crps_only_loss(members, truth, weights, 0.95), expected, rtol=1e-12, atol=0)


def test_free_bits_put_a_floor_under_each_dimension() -> None:
    mean = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64).reshape(1, 3, 1, 1).expand(2, 3, 1, 1)
    first, second = LatentGaussian(mean, 0 * mean), LatentGaussian(0 * mean, 0 * mean)  # KL 0, 1/2, 2
    truth = torch.zeros(2, 1, 2, 5)
    for free, expected in ((0.0, 2.5), (0.3, 2.8), (1.0, 4.0)):
        assert float(latent_kl(first, second, truth, free).per_value) == pytest.approx(expected / 10, abs=1e-12)
    pattern = torch.zeros(2, 1, 3, 1, 1, dtype=torch.float64)
    ranked = [LatentGaussian(g.mean, g.log_std, pattern) for g in (first, second)]
    assert float(latent_kl(*ranked, truth, 0.3).per_value) == pytest.approx(0.25, abs=1e-12)
    assert float(latent_kl(*ranked, truth, 1.0).per_value) == pytest.approx(0.3, abs=1e-12)


def test_energy_score_of_constant_maps_is_their_crps() -> None:
    generator = torch.Generator().manual_seed(0)
    levels = torch.randn(4, 2, 3, 1, 1, generator=generator, dtype=torch.float64)
    members, truth = levels[:3].expand(3, 2, 3, 6, 8), levels[3].expand(2, 3, 6, 8)
    weights = torch.full((2, 6), 1.0, dtype=torch.float64)
    expected = crps_ensemble(levels[:3], levels[3], estimator="almost_fair", alpha=0.9).mean()
    torch.testing.assert_close(map_energy_score(members, truth, weights, 0.9), expected, rtol=1e-12, atol=0)
    spectral = spectral_crps(members, truth, weights, 0.9)
    # Only the mean along the row is not zero: one of ten coefficients (five complex ones), √8 times as large.
    torch.testing.assert_close(spectral, expected * 8**0.5 / 10, rtol=1e-10, atol=0)


def test_terms_of_whole_maps_are_least_for_the_truth_and_leave_out_unknown_cells(case: tuple[Tensor, ...]) -> None:
    frames, truth, weights = case
    members = torch.stack([truth, truth, truth])
    wrong = torch.stack([frames[:, 0], frames[:, 1], truth]).requires_grad_()
    masked = truth.clone()
    masked[:, :, 3:5, 2:7] = torch.nan
    for score in (map_energy_score, spectral_crps):
        assert float(score(members, truth, weights, 0.95)) == pytest.approx(0, abs=1e-12)
        assert float(score(wrong, truth, weights, 0.95).detach()) > 0.1
        (gradient,) = torch.autograd.grad(score(wrong, masked, weights, 0.95), wrong)
        assert bool(gradient.isfinite().all())
        assert float(gradient[..., 3:5, 2:7].abs().max()) == 0


def test_smoothed_noise_has_unit_variance_and_its_length() -> None:
    torch.manual_seed(0)
    noise = smooth(torch.randn(200, 2, 32, 32, dtype=torch.float64), 1.5, Topology.torus)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    neighbour = float((noise * noise.roll(1, -1)).mean())
    assert neighbour == pytest.approx(math.exp(-1 / (4 * 1.5**2)), abs=0.01)


# ------------------------------------------------------------------------------------------------ who learns from what


def test_crps_of_posterior_draws_teaches_the_posterior_and_the_kl_teaches_both(
    network: ForecastNetwork, case: tuple[Tensor, ...]
) -> None:
    frames, truth, weights = case
    terms = fuxi_ens_loss(*reorder(step(network, frames, truth), truth), weights, alpha=0.95, kl_weight=1)
    prior, posterior = (list(head.parameters()) for head in (network.prior_head, network.posterior_head))
    by_crps = torch.autograd.grad(terms["crps"], prior + posterior, retain_graph=True, allow_unused=True)
    assert all(gradient is None for gradient in by_crps[: len(prior)])
    assert all(float(gradient.abs().max()) > 0 for gradient in by_crps[len(prior) :])
    by_kl = torch.autograd.grad(terms["kl"], prior + posterior, allow_unused=True)
    assert all(float(gradient.abs().max()) > 0 for gradient in by_kl)


def reorder(made: tuple[Tensor, ...], truth: Tensor) -> tuple[Tensor, ...]:
    members, posterior, prior = made
    return members, truth, posterior, prior


def test_a_heavy_kl_makes_the_posterior_forget_the_target(case: tuple[Tensor, ...]) -> None:
    frames, truth, weights = (value.float() for value in case)
    network = forecast_network("convolutional").float()
    with torch.no_grad():
        network.posterior_head.embedding.stem.convolution.weight.mul_(10)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)

    def dependence() -> float:
        features = network.encode(frames, GLOBE)
        one, two = (network.posterior(frames, t, features, GLOBE) for t in (truth, -truth))
        return float((one.mean - two.mean).abs().mean().detach())

    before = dependence()
    for _ in range(50):
        terms = fuxi_ens_loss(*reorder(step(network, frames, truth), truth), weights, alpha=0.95, kl_weight=1e4)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    assert dependence() < 0.2 * before


# ------------------------------------------------------------------------------------------------ methods on the task


@pytest.fixture(scope="module")
def modules(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ForecastMethod]:
    folder = tmp_path_factory.mktemp("modules")
    names = ("fuxi_ens", "vae_l1_kl", "crps_only", "deterministic_l1", "gaussian_perturbations", "seed_ensemble")
    names += ("persistence", "climatology")
    return {name: build(run_spec(name, data, folder / name))[0] for name in names}  # type: ignore[misc]


def test_forecasts_have_their_shape_and_are_reproducible(modules: dict[str, ForecastMethod]) -> None:
    frames = modules["persistence"].task.fields.anomalies[4:6]  # type: ignore[attr-defined]
    own = {"deterministic_l1": 1, "seed_ensemble": 5, "persistence": 1, "climatology": 5}
    for name, module in modules.items():
        with torch.no_grad():
            torch.manual_seed(3)
            first = module.ensemble_forecast(frames, 3, 4, GLOBE)
            torch.manual_seed(3)
            again = module.ensemble_forecast(frames, 3, 4, GLOBE)
        assert first.shape == (3, own.get(name, 4), *frames.shape[1:])
        assert torch.equal(first, again)


@pytest.mark.parametrize("method", ["fuxi_ens", "crps_only", "gaussian_perturbations"])
def test_members_with_noise_of_their_own_are_the_same_in_any_company(
    method: str, modules: dict[str, ForecastMethod]
) -> None:
    module = modules[method]
    if isinstance(module, NetworkForecast) and method == "gaussian_perturbations":
        module.size.fill_(0.5)  # type: ignore[operator]
    frames = module.task.fields.anomalies[4:6]  # type: ignore[attr-defined]

    def forecast(members: list[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(member) for member in members]

        def noise(shape: tuple[int, ...]) -> Tensor:
            assert shape[0] * shape[1] == len(members)
            return torch.stack([torch.randn(shape[2:], generator=g) for g in generators]).reshape(shape)

        module.noise = noise
        with torch.no_grad():
            return module.ensemble_forecast(frames, 3, len(members), GLOBE)

    together = forecast([0, 1, 2, 3])
    apart = torch.cat([forecast([0, 1, 2]), forecast([3])], dim=1)
    module.noise = None
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(together[:, 0], together[:, 1])


def test_members_differ_and_grow_apart(modules: dict[str, ForecastMethod]) -> None:
    module = modules["fuxi_ens"]
    with torch.no_grad():
        forecast = module.ensemble_forecast(module.task.fields.anomalies[4:6], 3, 6, GLOBE)  # type: ignore[attr-defined]
    spread = forecast.std(1).mean((1, 2, 3))
    assert float(spread[0]) > 0
    assert float(spread[2]) > float(spread[0])


def test_persistence_and_climatology_are_what_they_say(modules: dict[str, ForecastMethod]) -> None:
    fields = modules["persistence"].task.fields  # type: ignore[attr-defined]
    frames = fields.anomalies[6:8]
    assert torch.equal(modules["persistence"].ensemble_forecast(frames, 4, 5, GLOBE)[3, 0], fields.anomalies[7])
    climate = modules["climatology"].ensemble_forecast(frames, 4, 5, GLOBE)
    assert torch.equal(climate[0], fields.anomalies[[0, 1, 2, 3, 4]])  # five members of six training steps
    assert torch.equal(climate[3], climate[0])


def test_methods_of_one_seed_share_their_initial_weights(modules: dict[str, ForecastMethod]) -> None:
    own = modules["fuxi_ens"].state_dict()
    for name in ("vae_l1_kl", "crps_only", "deterministic_l1", "gaussian_perturbations", "seed_ensemble"):
        other = modules[name].state_dict()
        shared = own.keys() & other.keys()
        assert all(torch.equal(own[key], other[key]) for key in shared)
        assert shared >= {key for key in own if ".backbone." in key}
    first, second = (network.backbone.stem.convolution.weight for network in networks_of(modules["seed_ensemble"])[:2])
    assert not torch.allclose(first, second)


def networks_of(module: Any) -> list[ForecastNetwork]:
    return [module.network, *module.others]


def test_rollout_grows_by_equal_intervals(data: Path, tmp_path: Path) -> None:
    lengths = {}
    for longest in (1, 2, 4):
        module = build(run_spec("fuxi_ens", data, tmp_path, max_steps=60, rollout_steps=longest))[0]
        lengths[longest] = [module.rollout_length(step) for step in range(60)]  # type: ignore[operator]
    assert lengths[1] == [1] * 60
    assert lengths[2] == [2] * 60
    assert lengths[4] == [2] * 20 + [3] * 20 + [4] * 20


@pytest.mark.parametrize(
    "method", ["fuxi_ens", "vae_l1_kl", "crps_only", "deterministic_l1", "gaussian_perturbations", "seed_ensemble"]
)
def test_a_rollout_feeds_back_its_own_members(method: str, data: Path, tmp_path: Path) -> None:
    module, datamodule, _ = build(run_spec(method, data, tmp_path, rollout_steps=2))
    items = datamodule.tiles("train", 2, 16)
    batch = {name: value[None] for name, value in items[0].items()}
    torch.manual_seed(0)
    one = module.rollout_terms(batch, 1)["loss"]  # type: ignore[operator]
    torch.manual_seed(0)
    two = module.rollout_terms(batch, 2)["loss"]  # type: ignore[operator]
    assert float(two.detach()) > float(one.detach())  # the second step is further from its input, before any training
    batch["frames"][:, 3] += 1
    torch.manual_seed(0)
    assert float(module.rollout_terms(batch, 1)["loss"].detach()) == float(one.detach())  # type: ignore[operator]


@pytest.mark.parametrize("backbone", ["convolutional", "transformer"])
@pytest.mark.parametrize("gradient", ["full", "truncated"])
def test_a_rollout_equals_one_by_hand(backbone: str, gradient: str, data: Path, tmp_path: Path) -> None:
    spec = run_spec(
        "fuxi_ens", data, tmp_path, rollout_steps=2, rollout_gradient=gradient, backbone=backbone, members=2
    )
    module, datamodule, _ = build(spec)
    module = module.double()
    batch = {name: value[None].double() for name, value in datamodule.tiles("train", 2, 16)[0].items()}
    frames, network, topology = batch["frames"], module.network, module.topology(batch["frames"])  # type: ignore[operator]
    torch.manual_seed(0)
    module.zero_grad()
    terms = module.rollout_terms(batch, 2)  # type: ignore[operator]
    terms["loss"].backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters()}

    torch.manual_seed(0)
    module.zero_grad()
    states, losses = frames[:, :2], []
    for number, draws in ((2, 2), (3, 1)):
        features = network.encode(states, topology)
        prior = network.prior(features, topology)
        truth = frames[:, number]
        posterior = network.posterior(states, truth.expand(len(states), *truth.shape[1:]), features, topology)
        members = network.decode(states, features, posterior.sample(draws), topology).reshape(2, 1, *truth.shape[1:])
        settings = {"alpha": 0.95, "kl_weight": module.config.kl_weight}
        losses.append(fuxi_ens_loss(members, truth, posterior, prior, batch["weights"], **settings)["loss"])
        following = members[:, 0] if gradient == "full" else members[:, 0].detach()
        states = torch.stack([states[:, 1].expand_as(following), following], dim=1)
    loss = (losses[0] + losses[1]) / 2
    loss.backward()
    torch.testing.assert_close(terms["loss"], loss, rtol=1e-10, atol=0)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-8, atol=1e-12)


def test_the_weight_of_the_kl_rises_over_the_share_asked_for(data: Path, tmp_path: Path) -> None:
    spec = run_spec("fuxi_ens", data, tmp_path, max_steps=100, kl_annealing=0.5, kl_weight=2.0)
    module: Any = build(spec)[0]
    weights = []
    for step in (0, 10, 25, 50, 99):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(module), "global_step", step)
            weights.append(module.kl_weight())
    assert weights == [0, pytest.approx(0.4), 1, 2, 2]


@pytest.mark.parametrize("method", ["fuxi_ens", "vae_l1_kl", "crps_only", "deterministic_l1"])
def test_the_loss_is_float32_under_half_precision(method: str, data: Path, tmp_path: Path) -> None:
    spec = run_spec(method, data, tmp_path, **({"latent_rank": 2} if method == "fuxi_ens" else {}))
    module, datamodule, _ = build(spec)
    batch = next(iter(datamodule.train_dataloader()))
    torch.manual_seed(0)
    plain = module.rollout_terms(batch, 1)  # type: ignore[operator]
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        half = module.rollout_terms(batch, 1)  # type: ignore[operator]
    for name, value in half.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, plain[name], rtol=0.05, atol=0.01)
    assert float(half["loss"].detach()) != float(plain["loss"].detach())  # the network itself ran in bfloat16


def test_the_size_of_gaussian_perturbations_is_the_best_of_the_validation(data: Path, tmp_path: Path) -> None:
    module, datamodule, _ = build(run_spec("gaussian_perturbations", data, tmp_path))
    batches = list(datamodule.val_dataloader())
    with torch.no_grad():
        torch.manual_seed(0)
        module.calibrate(batches)  # type: ignore[operator]
        chosen = float(module.size)  # type: ignore[arg-type]
        scores = {}
        for size in SIZES:
            module.size.fill_(size)  # type: ignore[operator]
            torch.manual_seed(1)
            terms = [module.rollout_scores(batch, 8) for batch in batches]  # type: ignore[operator]
            scores[size] = float(torch.stack([t["crps_lead1"] for t in terms]).mean())
    best = min(scores.values())
    assert scores[min(SIZES, key=lambda size: abs(size - chosen))] <= best + 0.02
    assert scores[SIZES[0]] > best


@pytest.mark.parametrize("source", ["posterior", "prior", "mixed"])
def test_latents_of_the_members_come_from_the_source_asked_for(source: str, data: Path, tmp_path: Path) -> None:
    module = build(run_spec("fuxi_ens", data, tmp_path, latent_source=source))[0]
    posterior, prior = gaussian(10, 0.01, (2, 1, 1, 1)), gaussian(-10, 0.01, (2, 1, 1, 1))
    signs = module.training_latents(posterior, prior, 4).sign().flatten()  # type: ignore[operator]
    assert float(signs.sum()) == {"posterior": 8, "prior": -8, "mixed": 0}[source]


def test_a_roll_out_longer_than_the_data_is_refused(data: Path, tmp_path: Path) -> None:
    spec = run_spec("fuxi_ens", data, tmp_path, rollout_steps=9)
    with pytest.raises(ConfigError, match="no 11 consecutive steps"):
        build(spec)[1].train_dataloader()


def test_a_tile_that_is_no_whole_number_of_cells_is_refused(data: Path, tmp_path: Path) -> None:
    spec = run_spec("fuxi_ens", data, tmp_path, backbone="transformer")
    spec = replace(spec, model_options={**spec.model_options, "transformer": {"patch": 16}})
    with pytest.raises(
        ConfigError, match="gives 16 points of a tile with its halo; the network needs a multiple of 32"
    ):
        build(spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": {"widht": 8}}, r"model.widht: unknown key \(did you mean 'width'"),
        ({"data": {"tile": 13}}, "multiple of 4"),
        ({"evaluation": {"members": 1}}, "greater than or equal to 2"),
        ({"model": {"transformer": {"width": 20, "heads": 3}}}, "heads 3 must divide the width 20"),
    ],
)
def test_wrong_options_are_told_when_the_manifest_is_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(Options, Document(Path("weather_isentropic.yaml"), {}), options)
