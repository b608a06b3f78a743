"""Objectives, the network's symmetries, and what may and may not be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic_atmosphere import run_spec
from torch import Tensor

from relent.errors import ConfigError
from relent.grid import Topology
from relent.manifest.yamlfile import Document, parse
from relent.methods.weather.base import ForecastMethod, latent_kl, row_weighted_mean
from relent.methods.weather.deterministic_l1 import deterministic_l1_loss
from relent.methods.weather.fuxi_ens import fuxi_ens_loss
from relent.methods.weather.vae_l1_kl import vae_l1_kl_loss
from relent.models.fuxi_ens import Features, ForecastNetwork, LatentGaussian, pad_rows
from relent.scores.crps import crps_ensemble
from relent.tasks.ensemble_forecast.options import Options
from relent.train.stage import build

GLOBE = Topology.globe


def gaussian(mean: float, std: float, shape: tuple[int, ...] = (1, 1, 1, 1)) -> LatentGaussian:
    values = torch.full(shape, mean, dtype=torch.float64), torch.full(shape, std, dtype=torch.float64).log()
    return LatentGaussian(*(value.requires_grad_() for value in values))


@pytest.fixture(scope="module")
def network() -> ForecastNetwork:
    torch.manual_seed(0)
    network = ForecastNetwork(torch.tensor([0.8, 0.9]), torch.tensor([0.6, 0.4]), width=6, latent_channels=3).double()
    with torch.no_grad():
        # Residual blocks start as the identity; here all of the network must be at work.
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


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
    for tensor in (*first, *second):
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
    torch.testing.assert_close(deterministic_l1_loss(forecast, truth, weights), crps, rtol=1e-14, atol=0)
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
    assert float((members - members[0]).abs().max()) == 0
    same = gaussian(0, 1)
    crps = fuxi_ens_loss(members, truth, same, same, weights, alpha=0.95, kl_weight=1)["crps"]
    torch.testing.assert_close(crps, deterministic_l1_loss(members[0], truth, weights), rtol=1e-12, atol=0)


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
        lambda m, t: deterministic_l1_loss(m[0], t, weights),
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
    torch.manual_seed(0)
    network = ForecastNetwork(torch.tensor([0.8, 0.9]), torch.tensor([0.6, 0.4]), width=4, latent_channels=2)
    with torch.no_grad():
        network.posterior_head.stem.convolution.weight.mul_(10)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)

    def dependence() -> float:
        features = network.encode(frames, GLOBE)
        one, two = (network.posterior(frames, t, features, GLOBE) for t in (truth, -truth))
        return float((one.mean - two.mean).abs().mean().detach())

    before = dependence()
    for _ in range(40):
        terms = fuxi_ens_loss(*reorder(step(network, frames, truth), truth), weights, alpha=0.95, kl_weight=1e4)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    assert dependence() < 0.2 * before


# ------------------------------------------------------------------------------------------------ network


def test_rolling_the_longitude_rolls_everything(network: ForecastNetwork, case: tuple[Tensor, ...]) -> None:
    frames, truth, _ = case
    members, posterior, prior = step(network, frames, truth)
    rolled_frames, rolled_truth = frames.roll(4, -1), truth.roll(4, -1)
    features = network.encode(rolled_frames, GLOBE)
    rolled_prior = network.prior(features, GLOBE)
    rolled_posterior = network.posterior(rolled_frames, rolled_truth, features, GLOBE)
    for plain, rolled in ((prior, rolled_prior), (posterior, rolled_posterior)):
        for one, two in zip(plain, rolled):
            torch.testing.assert_close(two, one.roll(1, -1), rtol=1e-12, atol=1e-12)
    torch.manual_seed(7)
    latent = posterior.sample(3).roll(1, -1)
    again = network.decode(rolled_frames, features, latent, GLOBE)
    torch.testing.assert_close(again, members.roll(4, -1), rtol=1e-12, atol=1e-12)
    regional = network.prior(network.encode(rolled_frames, Topology.regional), Topology.regional)
    assert not torch.allclose(regional.mean, rolled_prior.mean)


def test_members_in_one_pass_equal_members_one_by_one(network: ForecastNetwork, case: tuple[Tensor, ...]) -> None:
    frames = case[0]
    features = network.encode(frames, GLOBE)
    latent = network.prior(features, GLOBE).sample(3)
    together = network.decode(frames, features, latent, GLOBE)
    single = torch.cat([network.decode(frames, features, z[None], GLOBE) for z in latent])
    torch.testing.assert_close(together, single, rtol=1e-12, atol=1e-12)
    unperturbed = network.decode(frames, features, torch.zeros_like(latent[:1]), GLOBE)
    torch.testing.assert_close(network.decode(frames, features, None, GLOBE), unperturbed, rtol=1e-12, atol=1e-12)


def test_grids_that_are_no_multiple_of_four(network: ForecastNetwork) -> None:
    frames = torch.randn(1, 2, 2, 9, 8, dtype=torch.float64)
    features = network.encode(frames, GLOBE)
    assert isinstance(features, Features)
    assert network.decode(frames, features, None, GLOBE).shape == (1, 1, 2, 9, 8)
    assert pad_rows(frames).shape[-2] == 12
    with pytest.raises(ValueError, match="multiple of 4, got 10"):
        network.encode(torch.randn(1, 2, 2, 8, 10, dtype=torch.float64), GLOBE)


def test_samples_have_the_gaussian_s_moments() -> None:
    torch.manual_seed(0)
    samples = gaussian(1.5, 0.5, (1, 2, 4, 4)).sample(20_000).detach()
    assert float(samples.mean()) == pytest.approx(1.5, abs=0.003)
    assert float(samples.std()) == pytest.approx(0.5, abs=0.003)


# ------------------------------------------------------------------------------------------------ methods on the task


@pytest.fixture(scope="module")
def modules(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ForecastMethod]:
    folder = tmp_path_factory.mktemp("modules")
    names = ("fuxi_ens", "vae_l1_kl", "deterministic_l1", "persistence", "climatology")
    return {name: build(run_spec(name, data, folder / name))[0] for name in names}  # type: ignore[misc]


def test_forecasts_have_their_shape_and_are_reproducible(modules: dict[str, ForecastMethod]) -> None:
    frames = modules["persistence"].task.fields.anomalies[4:6]  # type: ignore[attr-defined]
    sizes = {"fuxi_ens": 5, "vae_l1_kl": 5, "deterministic_l1": 1, "persistence": 1, "climatology": 6}
    for name, module in modules.items():
        with torch.no_grad():
            torch.manual_seed(3)
            first = module.ensemble_forecast(frames, 3, 5, GLOBE)
            torch.manual_seed(3)
            again = module.ensemble_forecast(frames, 3, 5, GLOBE)
        assert first.shape == (3, sizes[name], *frames.shape[1:])
        assert torch.equal(first, again)


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
    assert torch.equal(climate[0], fields.anomalies[:6])
    assert torch.equal(climate[3], fields.anomalies[:6])


def test_methods_of_one_seed_share_their_initial_weights(modules: dict[str, ForecastMethod]) -> None:
    own, other, plain = (modules[n].state_dict() for n in ("fuxi_ens", "vae_l1_kl", "deterministic_l1"))
    assert all(torch.equal(value, other[name]) for name, value in own.items())
    assert all(torch.equal(value, own[name]) for name, value in plain.items())
    assert len(plain) < len(own)


def test_rollout_grows_by_equal_intervals(data: Path, tmp_path: Path) -> None:
    spec = run_spec("fuxi_ens", data, tmp_path, max_steps=100, rollout_steps=4, rollout_start=0.4)
    module = build(spec)[0]
    lengths = [module.rollout_length(step) for step in range(100)]  # type: ignore[operator]
    assert [lengths.count(k) for k in (1, 2, 3, 4)] == [40, 20, 20, 20]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("method", ["fuxi_ens", "vae_l1_kl", "deterministic_l1"])
def test_a_rollout_feeds_back_its_own_members(method: str, data: Path, tmp_path: Path) -> None:
    module, datamodule, _ = build(run_spec(method, data, tmp_path, rollout_steps=2))
    items = datamodule.tiles("train", 2, 16)
    batch = {name: value[None] for name, value in items[0].items()}
    torch.manual_seed(0)
    one = module.rollout_terms(batch, 1)["loss"]  # type: ignore[operator]
    torch.manual_seed(0)
    two = module.rollout_terms(batch, 2)["loss"]  # type: ignore[operator]
    assert float(two) > float(one)  # the second step is further from its input, before any training
    batch["frames"][:, 3] += 1
    torch.manual_seed(0)
    assert float(module.rollout_terms(batch, 1)["loss"]) == float(one)  # type: ignore[operator]


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": {"widht": 8}}, r"model.widht: unknown key \(did you mean 'width'"),
        ({"data": {"tile": 13}}, "multiple of 4"),
        ({"evaluation": {"members": 1}}, "greater than or equal to 2"),
    ],
)
def test_wrong_options_are_told_when_the_manifest_is_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(Options, Document(Path("weather_isentropic.yaml"), {}), options)
