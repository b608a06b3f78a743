"""The shared recipe: optimisers against their closed forms, learning rates step by step, what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from relent.contract.subject import differing
from relent.contract.trained import Dies, Killed
from relent.errors import ConfigError
from relent.manifest.catalogue import Catalogue, Run
from relent.manifest.hyperparameters import resolve
from relent.methods.base import Method
from relent.methods.config import MethodConfig
from relent.runspec import RunSpec
from relent.train.stage import run_stage

CROSS_ENTROPY = "relent.methods.distillation.cross_entropy:CrossEntropy"
STEPPED = {"optimizer": "sgd", "nesterov": True, "schedule": "step", "milestones": [0.5, 0.75]}


def factors(steps: Iterable[int], **recipe: Any) -> list[float]:
    """Factor of the peak learning rate at each step."""
    method: Any = SimpleNamespace(config=MethodConfig(**recipe))
    return [Method.learning_rate_factor(method, step) for step in steps]


class Linear(Method):
    """A method around one linear layer, without a task."""

    def __init__(self, **recipe: Any):
        nn.Module.__init__(self)
        self.config = MethodConfig(**recipe)
        self.network = nn.Linear(2, 1).double()

    def updates(self, gradients: list[Tensor]) -> list[Tensor]:
        """What the optimiser adds to the weight at each step; the bias has no gradient."""
        optimizer, weight, found = self.configure_optimizers()["optimizer"], self.network.weight, []
        for gradient in gradients:
            before, weight.grad = weight.detach().clone(), gradient
            optimizer.step()
            found.append(weight.detach() - before)
        return found


# ------------------------------------------------------------------------------------------ learning rates


@pytest.mark.parametrize(
    ("epochs", "falls"), [(240, [150, 180, 210]), (100, [30, 60, 90]), (200, [60, 120, 160])], ids=str
)
def test_steps_of_the_papers(epochs: int, falls: list[int]) -> None:
    """Seven optimiser steps an epoch: the rate is that of torch's MultiStepLR, which counts epochs."""
    recipe = {"schedule": "step", "milestones": [fall / epochs for fall in falls], "max_steps": 7 * epochs}
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls, gamma=0.1)
    for epoch in range(epochs):
        ours = factors(range(7 * epoch, 7 * epoch + 7), **recipe)
        assert ours == pytest.approx(7 * theirs.get_last_lr(), rel=1e-12)
        optimizer.step()
        theirs.step()


@settings(max_examples=40, deadline=None)
@given(
    share=st.floats(0.01, 0.99),
    max_steps=st.integers(2, 10_000),
    warmup=st.integers(0, 50),
    step_factor=st.floats(0.05, 0.9),
)
def test_the_rate_rises_to_its_peak_and_falls_once(
    share: float, max_steps: int, warmup: int, step_factor: float
) -> None:
    fall = round(share * max_steps)
    recipe = {"schedule": "step", "milestones": [share], "step_factor": step_factor, "warmup_steps": warmup}
    *rising, before, after = factors([*range(warmup), fall - 1, fall], max_steps=max_steps, **recipe)
    assert rising == [(step + 1) / (warmup + 1) for step in range(warmup)]
    if fall > warmup:
        assert (before, after) == (1.0, step_factor)


def test_cosine_and_constant_are_as_they_were() -> None:
    assert factors(range(4), max_steps=4, schedule="constant") == [1.0] * 4
    assert factors(range(5), max_steps=4) == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0])


# ------------------------------------------------------------------------------------------ optimisers


def test_nesterov_adds_the_momentum_that_is_to_come() -> None:
    """v ← μ·v + g, then w ← w − η·(g + μ·v); plain momentum: w ← w − η·v."""
    first, second = torch.tensor([[1.0, -2.0]]).double(), torch.tensor([[0.5, 3.0]]).double()
    recipe = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0, "learning_rate": 0.1}
    velocity = 0.9 * first + second
    plain = Linear(**recipe).updates([first, second])
    torch.testing.assert_close(plain, [-0.1 * first, -0.1 * velocity])
    nesterov = Linear(**recipe, nesterov=True).updates([first, second])
    torch.testing.assert_close(nesterov, [-0.1 * 1.9 * first, -0.1 * (second + 0.9 * velocity)])


@pytest.mark.parametrize(("decay_all", "decayed"), [(False, ["weight"]), (True, ["weight", "bias"])])
def test_what_weight_decay_acts_on(decay_all: bool, decayed: list[str]) -> None:
    module = Linear(optimizer="sgd", weight_decay=0.1, learning_rate=0.5, momentum=0.0, decay_all=decay_all)
    optimizer = module.configure_optimizers()["optimizer"]
    before = {name: value.detach().clone() for name, value in module.network.named_parameters()}
    for value in module.network.parameters():
        value.grad = torch.zeros_like(value)
    optimizer.step()
    for name, value in module.network.named_parameters():
        torch.testing.assert_close(value.detach(), before[name] * (0.95 if name in decayed else 1.0))


def test_lamb_takes_a_step_as_long_as_the_weight() -> None:
    """w ← w − η·‖w‖/‖u‖·u with u = m̂/(√v̂ + ε) + λ·w: after one step u is the sign of the gradient, and λ·w."""
    pytest.importorskip("timm.optim")
    module = Linear(optimizer="lamb", learning_rate=0.01, weight_decay=0.1)
    weight, gradient = module.network.weight.detach().clone(), torch.tensor([[0.3, -0.2]]).double()
    direction = gradient / (gradient.abs() + 1e-6) + 0.1 * weight
    expected = -0.01 * weight.norm() / direction.norm() * direction
    torch.testing.assert_close(module.updates([gradient]), [expected], rtol=1e-9, atol=1e-12)


def test_lamb_gets_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in takes timm's place, which need not be installed."""
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "timm.optim", SimpleNamespace(Lamb=torch.optim.AdamW))
    module = Linear(optimizer="lamb", learning_rate=5e-3, weight_decay=0.02, beta2=0.99)
    optimizer = module.configure_optimizers()["optimizer"]
    matrices, vectors = optimizer.param_groups
    assert (matrices["lr"], matrices["betas"]) == (5e-3, (0.9, 0.99))
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.02, 0.0)


def test_without_timm_the_user_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    with pytest.raises(ConfigError, match=r"optimizer: lamb needs the library timm: `pip install timm`"):
        Linear(optimizer="lamb").configure_optimizers()


# ------------------------------------------------------------------------------------------ settings


def test_what_came_later_is_no_part_of_a_run_that_does_not_use_it() -> None:
    """So that the plan of a run which was made before them is what it was."""
    later = {"decay_all", "nesterov", "milestones", "step_factor"}
    assert MethodConfig.model_fields.keys() - resolve(CROSS_ENTROPY).keys() == later
    assert later <= resolve(CROSS_ENTROPY, ("task", STEPPED | {"decay_all": True, "step_factor": 0.2})).keys()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"nesterov": True}, r"nesterov: needs optimizer sgd with momentum above 0, got adamw with 0\.9"),
        ({"nesterov": True, "optimizer": "sgd", "momentum": 0.0}, "nesterov: needs .* got sgd with 0.0"),
        ({"nesterov": True, "optimizer": "lamb"}, "nesterov: needs .* got lamb"),
        ({"schedule": "step"}, r"milestones: must be given, such as \[0.3, 0.6, 0.9\], with schedule step"),
        ({"milestones": [0.5]}, "milestones: has no effect with schedule cosine"),
        ({"schedule": "step", "milestones": [0.6, 0.3]}, r"milestones: must ascend, got \[0.6, 0.3\]"),
        ({"schedule": "step", "milestones": [0.5, 0.5]}, "milestones: must ascend"),
        ({"schedule": "step", "milestones": [30, 60, 90]}, "milestones: input should be less than 1, got 30"),
        ({"schedule": "step", "milestones": [0.5], "step_factor": 1.0}, "step_factor: input should be less than 1"),
        ({"optimizer": "lamp"}, "optimizer: input should be 'adamw', 'sgd' or 'lamb', got 'lamp'"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_told_with_file_and_key(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        resolve(CROSS_ENTROPY, ("tasks/mine.yaml: scales.cluster.training", recipe))
    assert str(refused.value).startswith("tasks/mine.yaml: scales.cluster.training")


# ------------------------------------------------------------------------------------------ runs


@pytest.fixture
def stepped(catalogue: Catalogue, changed: Callable[..., RunSpec]) -> RunSpec:
    """Twelve steps of cross-entropy by Nesterov's momentum, the rate falling after the sixth and the ninth."""
    return changed(catalogue.stage_spec(Run("patterns", "cross_entropy", "default", "smoke", 0)), **STEPPED)


def resumes(spec: RunSpec, killed_at: int) -> bool:
    """Whether a run that is killed ends with the bits of one that is not."""
    whole = replace(spec, output=f"{spec.output}-whole")
    run_stage(whole)
    with pytest.raises(Killed):
        run_stage(spec, callbacks=[Dies(killed_at)])
    run_stage(spec)
    expected, found = (load_file(Path(s.output) / "weights.safetensors") for s in (whole, spec))
    return not differing(expected, found)


@pytest.mark.parametrize("killed_at", [5, 7, 10])
def test_a_run_that_is_killed_between_milestones_resumes_to_the_same_bits(stepped: RunSpec, killed_at: int) -> None:
    assert resumes(stepped, killed_at)


def test_a_run_by_lamb_resumes_to_the_same_bits(stepped: RunSpec, changed: Callable[..., RunSpec]) -> None:
    pytest.importorskip("timm.optim")
    assert resumes(changed(stepped, optimizer="lamb", nesterov=False, warmup_steps=2), killed_at=7)


def test_milestones_and_nesterov_change_what_is_learned(stepped: RunSpec, changed: Callable[..., RunSpec]) -> None:
    weights = []
    for changes in ({}, {"nesterov": False}, {"milestones": [0.25]}, {"step_factor": 0.5}, {"decay_all": True}):
        spec = changed(replace(stepped, output=f"{stepped.output}-{len(weights)}"), **changes)
        run_stage(spec)
        weights.append(load_file(Path(spec.output) / "weights.safetensors"))
    assert all(differing(weights[0], other) for other in weights[1:])
