"""Backbones and network: symmetries of the grid, latents, roles of variables, activation checkpointing."""

from __future__ import annotations

import pytest
import torch
from forecast_networks import KINDS, SIZE, forecast_network, random_fields
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal, kl_divergence

from relent.errors import ConfigError
from relent.grid import Topology
from relent.models.fuxi_ens.channels import Channels
from relent.models.fuxi_ens.latent import LatentGaussian
from relent.models.fuxi_ens.layers import pad_rows
from relent.models.fuxi_ens.network import ForecastNetwork
from relent.models.fuxi_ens.transformer import FUXI, TransformerBackbone

GLOBE, TORUS, REGIONAL = Topology.globe, Topology.torus, Topology.regional
# The window of two tokens of four points each, shifted by one token in every other block.
PERIOD = {"convolutional": 4, "transformer": 2 * SIZE.patch * SIZE.window}


def one_step(
    network: ForecastNetwork, frames: Tensor, truth: Tensor, topology: Topology, shift: tuple[int, int] = (0, 0)
) -> tuple[Tensor, LatentGaussian, LatentGaussian]:
    """Members of posterior draws, posterior and prior; the noise of the draws is rolled by `shift` cells."""
    features = network.encode(frames, topology)
    prior, posterior = network.prior(features, topology), network.posterior(frames, truth, features, topology)
    torch.manual_seed(7)
    noise = torch.randn((3, *posterior.mean.shape), dtype=torch.float64).roll(shift, (-2, -1))
    return network.decode(frames, features, posterior.sample(3, lambda _: noise), topology), posterior, prior


# ------------------------------------------------------------------------------------------------ symmetries


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("topology", [GLOBE, TORUS])
def test_rolling_the_grid_rolls_everything(kind: str, topology: Topology) -> None:
    network, period = forecast_network(kind), PERIOD[kind]
    frames, truth = random_fields(2, 2, 2, 16, 24), random_fields(2, 2, 16, 24, seed=2)
    rows = period if topology is TORUS else 0
    members, *gaussians = one_step(network, frames, truth, topology)
    points, cells = (rows, period), (rows // network.factor, period // network.factor)
    rolled = one_step(network, frames.roll(points, (-2, -1)), truth.roll(points, (-2, -1)), topology, cells)
    torch.testing.assert_close(rolled[0], members.roll(points, (-2, -1)), rtol=1e-10, atol=1e-10)
    for plain, other in zip(gaussians, rolled[1:]):
        torch.testing.assert_close(other.mean, plain.mean.roll(cells, (-2, -1)), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(other.log_std, plain.log_std.roll(cells, (-2, -1)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_regional_tile_does_not_wrap(kind: str) -> None:
    network = forecast_network(kind)
    frames = random_fields(1, 2, 2, 16, 24)
    changed = frames.clone()
    changed[..., -4:] += 1
    one, other = (network.encode(f, REGIONAL).coarse for f in (frames, changed))
    around = [network.encode(f, GLOBE).coarse for f in (frames, changed)]
    assert not torch.equal(around[0][..., 0], around[1][..., 0])
    if kind == "convolutional":  # group normalisation of the transformer's down block sees the whole tile
        torch.testing.assert_close(one[..., 0], other[..., 0], rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_members_in_one_pass_equal_members_one_by_one(kind: str) -> None:
    network, frames = forecast_network(kind), random_fields(2, 2, 2, 16, 16)
    features = network.encode(frames, GLOBE)
    latent = network.prior(features, GLOBE).sample(3)
    together = network.decode(frames, features, latent, GLOBE)
    single = torch.cat([network.decode(frames, features, z[None], GLOBE) for z in latent])
    torch.testing.assert_close(together, single, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(together[0], together[1])
    unperturbed = network.decode(frames, features, torch.zeros_like(latent[:1]), GLOBE)
    torch.testing.assert_close(network.decode(frames, features, None, GLOBE), unperturbed, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_grids_that_are_no_whole_number_of_cells(kind: str) -> None:
    network = forecast_network(kind)
    frames = random_fields(1, 2, 2, 9, 8)
    features = network.encode(frames, GLOBE)
    assert network.decode(frames, features, None, GLOBE).shape == (1, 1, 2, 9, 8)
    assert torch.equal(pad_rows(frames, 4)[..., 9:, :], frames[..., 8:, :].expand(1, 2, 2, 3, 8))
    with pytest.raises(ValueError, match="longitudes must be a multiple of 4, got 10"):
        network.encode(random_fields(1, 2, 2, 8, 10), GLOBE)
    with pytest.raises(ValueError, match="rows of a torus must be a multiple of 4, got 9"):
        network.encode(frames, TORUS)


@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing_changes_no_gradient(kind: str) -> None:
    frames, truth = random_fields(1, 2, 2, 16, 16), random_fields(1, 2, 16, 16, seed=2)
    gradients = []
    for checkpointing in (False, True):
        network = forecast_network(kind, checkpointing=checkpointing)
        members, posterior, prior = one_step(network, frames, truth, GLOBE)
        (members.square().mean() + posterior.kl(prior).mean()).backward()
        gradients.append({name: p.grad for name, p in network.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-12, atol=1e-15)


def test_the_prior_never_sees_the_target() -> None:
    network, frames = forecast_network("transformer"), random_fields(1, 2, 2, 16, 16)
    priors = [one_step(network, frames, random_fields(1, 2, 16, 16, seed=s), GLOBE)[2] for s in (2, 3)]
    posteriors = [one_step(network, frames, random_fields(1, 2, 16, 16, seed=s), GLOBE)[1] for s in (2, 3)]
    assert torch.equal(priors[0].mean, priors[1].mean)
    assert not torch.allclose(posteriors[0].mean, posteriors[1].mean)


def test_the_published_size_of_fuxi() -> None:
    with torch.device("meta"):
        backbone = TransformerBackbone(78, 78, FUXI)
        frames = torch.empty(1, 2, 78, 64, 128)
    blocks = [*backbone.encoder, *backbone.decoder]
    assert len(blocks) == 48
    assert backbone.factor == 8
    assert tuple(backbone.cube.weight.shape) == (1536, 78, 2, 4, 4)
    features = backbone.encode(frames, GLOBE)
    assert features.coarse.shape == (1, 1536, 8, 16)
    assert backbone.decode(features, GLOBE).shape == (1, 78, 64, 128)
    assert sum(p.numel() for p in backbone.parameters()) == pytest.approx(1.5e9, rel=0.1)


# ------------------------------------------------------------------------------------------------ latents


def low_rank(mean: list[float], columns: list[list[float]], diagonal: float) -> LatentGaussian:
    """A Gaussian of three dimensions, laid out as a map of 1 × 3 cells."""
    factor = torch.tensor(columns, dtype=torch.float64).reshape(1, len(columns), 1, 1, 3)
    values = torch.tensor(mean, dtype=torch.float64).reshape(1, 1, 1, 3)
    return LatentGaussian(values, torch.full_like(values, diagonal).log() / 2, factor)


def test_low_rank_kl_of_known_gaussians() -> None:
    first, second = low_rank([1, 0, 0], [[0, 1, 0]], 0.5), low_rank([0, 0, 0], [[1, 0, 1]], 1.0)
    assert float(first.kl(second)) == pytest.approx(0.9563874375, abs=1e-10)
    assert float(second.kl(first)) == pytest.approx(2.7936125625, abs=1e-10)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3))
def test_low_rank_kl_equals_that_of_torch(seed: int, rank: int) -> None:
    pair = []
    for offset in (0, 1):
        values = random_fields(2, 2 + rank, 2, 2, 3, seed=2 * seed + offset)
        pair.append(LatentGaussian(values[:, 0], 0.3 * values[:, 1], values[:, 2:]))
    laws = [
        LowRankMultivariateNormal(g.mean.flatten(1), g.factor.flatten(2).mT, (2 * g.log_std).exp().flatten(1))
        for g in pair
    ]
    torch.testing.assert_close(pair[0].kl(pair[1]), kl_divergence(*laws), rtol=1e-8, atol=1e-8)
    variance = laws[0].variance.reshape_as(pair[0].mean)
    torch.testing.assert_close(pair[0].log_variance().exp(), variance, rtol=1e-10, atol=1e-12)


def test_low_rank_draws_have_their_covariance() -> None:
    torch.manual_seed(0)
    gaussian = low_rank([1, -1, 0], [[0.5, 1, 0], [0, 1, -1]], 0.25)
    draws = gaussian.sample(200_000).flatten(1)
    factor = gaussian.factor[0].flatten(1)
    expected = 0.25 * torch.eye(3, dtype=torch.float64) + factor.T @ factor
    torch.testing.assert_close(draws.T.cov(), expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(draws.mean(0), gaussian.mean.flatten(), rtol=0, atol=0.02)


def test_samples_have_the_gaussian_s_moments() -> None:
    torch.manual_seed(0)
    shape = (1, 2, 4, 4)
    gaussian = LatentGaussian(torch.full(shape, 1.5), torch.full(shape, 0.5).log())
    samples = gaussian.sample(20_000)
    assert float(samples.mean()) == pytest.approx(1.5, abs=0.003)
    assert float(samples.std()) == pytest.approx(0.5, abs=0.003)


def test_low_rank_networks_start_near_the_diagonal_and_all_patterns_learn() -> None:
    network = forecast_network("convolutional", rank=2)
    frames, truth = random_fields(2, 2, 2, 8, 8), random_fields(2, 2, 8, 8, seed=2)
    features = network.encode(frames, GLOBE)
    prior, posterior = network.prior(features, GLOBE), network.posterior(frames, truth, features, GLOBE)
    assert prior.factor is not None
    assert prior.factor.shape == (2, 2, 3, 2, 2)
    posterior.kl(prior).mean().backward()
    for head in (network.prior_head, network.posterior_head.head):
        gradient = head.head.convolution.weight.grad
        assert bool((gradient.flatten(1).abs().amax(1) > 0).all())


# ------------------------------------------------------------------------------------------------ roles of variables

ROLES = ("forced", "prognostic", "diagnostic", "accumulated")


@pytest.mark.parametrize("kind", KINDS)
def test_roles_decide_what_is_read_and_what_is_given(kind: str) -> None:
    network = forecast_network(kind, ROLES)
    assert (network.channels.inputs, network.channels.outputs) == ([0, 1, 3], [1, 2, 3])
    frames = random_fields(1, 2, 4, 8, 8)
    forecast = network.decode(frames, network.encode(frames, GLOBE), None, GLOBE)
    assert forecast.shape == (1, 1, 3, 8, 8)
    for channel, matters in ((0, True), (1, True), (2, False), (3, False)):
        changed = frames.clone()
        changed[:, :, channel] += random_fields(1, 2, 8, 8, seed=5)
        again = network.decode(changed, network.encode(changed, GLOBE), None, GLOBE)
        assert torch.equal(again, forecast) != matters


def test_only_prognostic_channels_have_persistence_as_base() -> None:
    network = forecast_network("convolutional", ROLES)
    assert network.base.flatten().tolist() == [pytest.approx(0.8 + 0.1 / 3), 0, 0]
    assert network.scale.flatten().tolist() == [pytest.approx(0.6 - 0.2 / 3), 1, 1]


def test_a_state_is_completed_with_what_is_forced() -> None:
    channels = Channels(ROLES)
    forecast, forcing = random_fields(5, 2, 3, 4, 4), random_fields(2, 1, 4, 4)
    state = channels.complete(forecast, forcing)
    assert torch.equal(state[:, :, 0], forcing[:, 0].expand(5, 2, 4, 4))
    assert torch.equal(state[:, :, 1:], forecast)
    with pytest.raises(ValueError, match="1 variables are forced: give their values at every step"):
        channels.complete(forecast, None)


def test_wrong_roles_are_refused() -> None:
    assert Channels.of(["a", "b"], {"a": {"role": "forced"}, "b": {}}).roles == ("forced", "prognostic")
    with pytest.raises(ConfigError, match="role 'boundary' of a variable is none of prognostic, forced"):
        Channels(("prognostic", "boundary"))
    with pytest.raises(ConfigError, match="nothing to forecast"):
        Channels(("forced",))


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_cells_are_read_as_zero_and_stay_unknown(kind: str) -> None:
    network, frames = forecast_network(kind), random_fields(1, 2, 2, 8, 8)
    land = torch.zeros(1, 2, 2, 8, 8, dtype=torch.bool)
    land[:, :, 1, 2:5, 3:6] = True
    once = land.clone()
    once[:, 0] = False  # unknown in the last frame alone: a gap, not land
    zero = frames.masked_fill(land, 0.0)
    expected = network.decode(zero, network.encode(zero, GLOBE), None, GLOBE)
    masked = frames.masked_fill(land, torch.nan)
    forecast = network.decode(masked, network.encode(masked, GLOBE), None, GLOBE)
    assert torch.equal(forecast.isnan()[0], land[:, 0])
    known = ~land[:, 0].expand_as(forecast[0])
    torch.testing.assert_close(forecast[0][known], expected[0][known], rtol=1e-12, atol=1e-12)
    gap = frames.masked_fill(once, torch.nan)
    assert bool(network.decode(gap, network.encode(gap, GLOBE), None, GLOBE).isfinite().all())
    truth = network.scored(masked, random_fields(1, 2, 8, 8))
    assert torch.equal(truth.isnan(), land[:, 0])
