"""SAF, MESA, SAM, the attacks and DONE against worked numbers, closed forms and their identities."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from logit_batches import tensor
from torch import Tensor, nn

from relent.attacks import PixelBox, input_gradient, projected_gradient_attack
from relent.methods.robustness.done_at import (
    Barrier,
    example_weights,
    implicit_term,
    robust_value,
    running_log_mean,
    solve_barrier,
)
from relent.methods.robustness.saf import LogitMemory, trajectory_loss

PRESENT, PAST = tensor(2, 0, -1), tensor(1, 1, 0)


class TestTrajectoryLoss:
    @pytest.mark.parametrize(("temperature", "expected"), [(1, 0.4632136190), (5, 0.4730361635)])
    def test_worked_example_tells_the_direction(self, temperature, expected):
        assert trajectory_loss(PAST, PRESENT, temperature).item() == pytest.approx(expected, abs=1e-9)
        other = {1: 0.3797382535, 5: 25 * 0.0194213933}[temperature]
        assert trajectory_loss(PRESENT, PAST, temperature).item() == pytest.approx(other, abs=1e-8)

    @pytest.mark.parametrize(
        ("temperature", "expected"),
        [(5, (0.4792854975, -0.2635274609, -0.2157580365)), (1, (0.4214759362, -0.3081235989, -0.1133523374))],
    )
    def test_gradient(self, temperature, expected):
        present, past = PRESENT.clone().requires_grad_(), PAST.clone().requires_grad_()
        loss = trajectory_loss(past, present, temperature).sum()
        by_present, by_past = torch.autograd.grad(loss, (present, past), allow_unused=True)
        torch.testing.assert_close(by_present, tensor(*expected), rtol=0, atol=1e-9)
        assert by_past is None

    def test_limits(self):
        assert trajectory_loss(PAST, PRESENT, 1000).item() == pytest.approx(0.44461715, abs=1e-7)
        assert trajectory_loss(PRESENT + 3, PRESENT).abs().max() < 1e-12
        assert bool(trajectory_loss(1e4 * PAST, -1e4 * PRESENT, 1).isfinite().all())


class TestLogitMemory:
    @pytest.mark.parametrize("lag", [1, 2, 3])
    @pytest.mark.parametrize("place", ["ram", "disk"])
    def test_each_epoch_reads_what_was_written_lag_epochs_ago(self, lag, place, tmp_path):
        memory = LogitMemory(10, 3, lag, tmp_path if place == "disk" else None)
        generator = torch.Generator().manual_seed(0)
        for epoch in range(10):
            for index in torch.randperm(10, generator=generator).split(4):
                memory.write(epoch, index, index[:, None] + torch.full((1, 3), 100.0 * epoch))
                if epoch >= lag:
                    past = memory.read(epoch - lag, index)
                    assert torch.equal(past, index[:, None] + torch.full((len(index), 3), 100.0 * (epoch - lag)))
            memory.forget(epoch)
            assert len(memory.tables) <= lag + 1
        if place == "disk":
            assert len(list(tmp_path.iterdir())) <= lag + 1

    def test_memory_does_not_grow_between_checkpoints(self):
        memory = LogitMemory(4, 2, 2)
        for epoch in range(9):
            memory.write(epoch, torch.arange(4), torch.full((4, 2), float(epoch)))
            assert list(memory.tables) == list(range(max(0, epoch - 2), epoch + 1))

    def test_items_that_an_epoch_left_out_are_nan(self):
        memory = LogitMemory(4, 2, 1)
        memory.write(0, torch.tensor([1]), torch.ones(1, 2))
        assert memory.read(0, torch.tensor([0, 1])).isnan().all(1).tolist() == [True, False]

    def test_files_outlive_the_process(self, tmp_path):
        LogitMemory(4, 2, 1, tmp_path).write(3, torch.arange(4), torch.full((4, 2), 7.0))
        assert torch.equal(LogitMemory(4, 2, 1, tmp_path).read(3, torch.arange(4)), torch.full((4, 2), 7.0))


BOX = PixelBox(-0.5, 2.5)


def images(size: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return BOX.black + BOX.scale * torch.rand(size, 1, 4, 4, generator=generator, dtype=torch.float64)


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3)).double()


def losses_of(network: nn.Module, labels: Tensor):
    return lambda x: nn.functional.cross_entropy(network(x), labels, reduction="none")


class TestAttacks:
    @given(st.sampled_from(["linf", "l2"]), st.floats(0.01, 2.0), st.integers(0, 5), st.integers(0, 100))
    @settings(max_examples=25, deadline=None)
    def test_the_ball_and_the_range_of_pixels_hold(self, norm, radius, steps, seed):
        inputs, labels = images(), torch.arange(6) % 3
        torch.manual_seed(seed)
        found = projected_gradient_attack(
            losses_of(model(), labels), inputs, BOX, norm=norm, radius=radius, steps=steps, step_size=radius / 2
        )
        change = (found - inputs) / BOX.scale
        size = change.abs().flatten(1).amax(1) if norm == "linf" else change.flatten(1).norm(dim=1)
        assert bool((size <= radius * (1 + 1e-9)).all())
        assert found.min() >= BOX.black - 1e-9
        assert found.max() <= BOX.white + 1e-9
        assert not found.requires_grad

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_a_linear_loss_is_maximised(self, norm):
        """In the middle of the range the maximum is r·‖gradient‖ in the dual norm."""
        inputs = torch.full((2, 1, 4, 4), 1.0, dtype=torch.float64)
        slope = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        loss = lambda x: (slope * x).flatten(1).sum(1)  # noqa: E731
        found = projected_gradient_attack(loss, inputs, BOX, norm=norm, radius=0.1, steps=20, step_size=0.05)
        gain = (loss(found) - loss(inputs)) / BOX.scale
        dual = slope.abs().sum() if norm == "linf" else slope.norm()
        torch.testing.assert_close(gain, (0.1 * dual).expand(2), rtol=1e-6, atol=0)

    def test_radius_zero_leaves_the_image_and_the_generator_alone(self):
        inputs = images()
        torch.manual_seed(5)
        found = projected_gradient_attack(
            losses_of(model(), torch.zeros(6).long()), inputs, BOX, norm="linf", radius=0.0, steps=3, step_size=0.1
        )
        torch.manual_seed(5)
        assert torch.equal(found, inputs)

    def test_more_steps_hurt_more(self):
        inputs, labels, network = images(32), torch.arange(32) % 3, model()
        loss = losses_of(network, labels)
        means = []
        for steps in (0, 1, 10):
            torch.manual_seed(1)
            attacked = projected_gradient_attack(loss, inputs, BOX, norm="linf", radius=0.2, steps=steps, step_size=0.1)
            means.append(loss(attacked).mean().item())
        assert loss(inputs).mean().item() < means[1] < means[2]


LOSSES = torch.tensor([0.2, 1.0, 2.0], dtype=torch.float64)


class TestRobustWeights:
    def test_worked_example(self):
        weights = example_weights(LOSSES, 1.0)
        torch.testing.assert_close(weights, tensor(0.1078145217, 0.2399456307, 0.6522398477)[0], rtol=0, atol=1e-9)
        assert robust_value(LOSSES, 1.0).item() == pytest.approx(1.3287306315, abs=1e-9)
        divergence = (weights * (3 * weights).log()).sum()
        assert divergence.item() == pytest.approx(0.2372575988, abs=1e-9)
        torch.testing.assert_close((weights * LOSSES).sum() - divergence, robust_value(LOSSES, 1.0))

    @pytest.mark.parametrize(("temperature", "value"), [(0.1, 1.8901433125), (10, 1.0938491178), (1e6, 1.0666668)])
    def test_from_the_maximum_to_the_mean(self, temperature, value):
        assert robust_value(LOSSES, temperature).item() == pytest.approx(value, abs=1e-6)

    @given(st.lists(st.floats(0, 20), min_size=2, max_size=8), st.floats(0.05, 50))
    @settings(max_examples=30, deadline=None)
    def test_envelope_bounds_and_shift(self, values, temperature):
        losses = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        value = robust_value(losses, temperature)
        (by_losses,) = torch.autograd.grad(value, losses)
        torch.testing.assert_close(by_losses, example_weights(losses, temperature), rtol=1e-7, atol=1e-9)
        assert losses.mean() - 1e-9 <= value <= losses.max() + 1e-9
        torch.testing.assert_close(robust_value(losses + 3, temperature), value + 3)
        generator = torch.Generator().manual_seed(0)
        other = torch.rand(len(losses), generator=generator).double()
        other = other / other.sum()
        bound = (other * losses).sum() - temperature * (other * (len(losses) * other).log()).sum()
        assert bound <= value + 1e-9

    def test_the_running_mean_is_exact_at_first_and_settles_geometrically(self):
        start = running_log_mean(torch.tensor(torch.nan).double(), LOSSES, 1.0, 0.1)
        assert start.exp().item() == pytest.approx(3.7762468952, abs=1e-9)
        far = torch.tensor(0.0, dtype=torch.float64)
        gaps = []
        for _ in range(3):
            gaps.append(far.exp() - start.exp())
            far = running_log_mean(far, LOSSES, 1.0, 0.1)
        torch.testing.assert_close(gaps[1] / gaps[0], torch.tensor(0.9).double())
        torch.testing.assert_close(gaps[2] / gaps[1], torch.tensor(0.9).double())
        huge = running_log_mean(far, 1e4 * LOSSES, 0.1, 0.1)
        assert bool(huge.isfinite())


class TestBarrier:
    radius = 8 / 255

    def barrier(self, weight: float) -> Barrier:
        wall = torch.full((1, 1), self.radius, dtype=torch.float64)
        return Barrier(-wall, wall, weight)

    @pytest.mark.parametrize(("weight", "share"), [(1e-2, 0.7308), (1e-3, 0.9686), (1e-4, 0.9968)])
    def test_optimum_of_a_linear_loss(self, weight, share):
        """δ* = (−c + √(c² + g²ε²))/g for slope g = 1."""
        found = solve_barrier(
            lambda x: x[:, 0],
            torch.zeros(1, 1).double(),
            PixelBox(-1, 0),
            torch.zeros(1, 1).double(),
            self.barrier(weight),
            60,
        )
        closed = -weight + math.sqrt(weight**2 + self.radius**2)
        assert found.item() == pytest.approx(closed, rel=1e-6)
        assert found.item() / self.radius == pytest.approx(share, abs=1e-4)

    def test_reaction_of_the_optimum(self):
        barrier = self.barrier(1e-2)
        at = torch.tensor([[0.0229277517]]).double()
        assert barrier.curvature(at).item() == pytest.approx(143.6152665, rel=1e-6)
        step = 1e-6
        optimum = lambda g: (-0.01 + math.sqrt(1e-4 + g * g * self.radius**2)) / g  # noqa: E731
        slope = (optimum(1 + step) - optimum(1 - step)) / (2 * step)
        assert slope == pytest.approx(1 / 143.6152665, rel=1e-5)

    def test_the_walls_are_never_reached(self):
        barrier = self.barrier(1e-2)
        inside = barrier.inside(torch.tensor([[5.0]]).double())
        assert inside.item() < self.radius
        assert bool(barrier.gradient(inside).isfinite().all())


def test_the_hypergradient_is_that_of_the_robust_value_through_a_solved_attack():
    """Against finite differences of r·log mean exp(ℓ/r) at the solved barrier problem, on a smooth network. The true
    curvature of the loss is left out of H, so that a small difference remains; without the implicit term it is larger,
    with the wrong sign larger still."""
    network, inputs, labels = model(3), images(6, 1), torch.arange(6) % 3
    temperature, radius, weight = 0.7, 0.12, 0.01
    barrier = Barrier(*BOX.bounds(inputs, radius), weight)

    def solved() -> Tensor:
        loss = losses_of(network, labels)
        start = barrier.inside(torch.zeros_like(inputs))
        found = solve_barrier(loss, inputs, BOX, start, barrier, 200)
        residual = barrier.gradient(found) - input_gradient(loss, inputs, found, BOX)
        assert residual.abs().max() < 1e-6
        return found

    parameter = network[1].weight
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def value(shift: float) -> float:
        with torch.no_grad():
            parameter.add_(shift * direction)
        result = robust_value(losses_of(network, labels)(inputs + BOX.scale * solved()), temperature).item()
        with torch.no_grad():
            parameter.sub_(shift * direction)
        return result

    expected = (value(1e-5) - value(-1e-5)) / 2e-5
    perturbation = solved()
    loss = losses_of(network, labels)
    losses = loss(inputs + BOX.scale * perturbation)
    weights = example_weights(losses, temperature)
    extra = implicit_term(loss, inputs, BOX, perturbation, barrier)
    errors = {}
    for sign in (1.0, 0.0, -1.0):
        (gradient,) = torch.autograd.grad((weights * (losses + sign * extra)).sum(), parameter, retain_graph=True)
        errors[sign] = abs(float((gradient * direction).sum()) - expected)
    assert errors[1.0] < 0.35 * errors[0.0] < 0.35 * errors[-1.0]
