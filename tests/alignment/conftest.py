from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from synthetic_ratings import prepare, write_archive, write_manifests
from torch import Tensor

from relent.contract.check import check_method
from relent.evaluate.run import evaluate_run
from relent.language.batches import TokenBatch
from relent.manifest.catalogue import Catalogue, Run
from relent.manifest.paths import Layout
from relent.methods.alignment.preference import sequence_log_ratio
from relent.methods.alignment.rollout import OnPolicyMethod
from relent.methods.base import Method
from relent.runspec import RunSpec
from relent.tasks.preference_alignment.laws import completion_rewards
from relent.train.stage import build, run_stage

Batch = dict[str, Tensor]


@pytest.fixture(scope="session")
def ratings_catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """The catalogue of a small task with prepared data; its teachers and results are not to be changed."""
    root = tmp_path_factory.mktemp("ratings")
    prepare(write_archive(root / "archive"), root / "data" / "ratings" / "smoke")
    layout = Layout(f"{root}/data", f"{root}/teachers", f"{root}/results")
    return Catalogue.load(write_manifests(root / "config"), (), layout)


@pytest.fixture(scope="session")
def base(ratings_catalogue: Catalogue) -> RunSpec:
    """The trained base model with its pairs."""
    spec = ratings_catalogue.teacher_spec("ratings", "base", "smoke")
    run_stage(spec)
    return spec


@pytest.fixture(scope="session")
def trained(ratings_catalogue: Catalogue, base: RunSpec) -> RunSpec:
    """A policy trained by DPO."""
    spec = ratings_catalogue.stage_spec(Run("ratings", "dpo", "default", "smoke", 0))
    run_stage(spec)
    return spec


@pytest.fixture
def student(ratings_catalogue: Catalogue, base: RunSpec, tmp_path: Path):
    """Give a function that makes the specification of a run in a folder of the test's own."""

    def make(method: str = "dpo", output: str = "run", **changes) -> RunSpec:
        spec = ratings_catalogue.stage_spec(Run("ratings", method, "default", "smoke", 0))
        hyperparameters = spec.hyperparameters | changes.pop("hyperparameters", {})
        return replace(spec, output=str(tmp_path / output), hyperparameters=hyperparameters, **changes)

    return make


@pytest.fixture(scope="session")
def keeps_contract(ratings_catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory):
    """Give a function that runs the contract test on a method; all share the base model."""
    folder = tmp_path_factory.mktemp("contract")

    def check(method: str, passes: int = 8) -> None:
        results = check_method(ratings_catalogue, method, "ratings", folder)
        assert not [f"{r.check}: {r.detail}" for r in results if r.outcome == "fail"]
        assert sum(r.outcome == "pass" for r in results) >= passes

    return check


@pytest.fixture
def module_in_float64(student):
    """Give a function that builds a method in float64, its policy moved away from the base model, and a batch."""

    def make(method: str, hyperparameters: dict | None = None, lora: dict | None = None) -> tuple[Method, Batch]:
        spec = student(method, hyperparameters=hyperparameters or {})
        options = spec.model_options | {"dtype": "float64"} | ({"lora": lora} if lora else {})
        module, datamodule, _ = build(replace(spec, model_options=options))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in module.network.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        return module.double(), next(iter(datamodule.train_dataloader()))

    return make


def next_token_log_probs(network: torch.nn.Module, rows: TokenBatch) -> Tensor:
    """log π(·|h_t) of the state before every token but the first, (B, L − 1, V), from the whole logits."""
    output = network(rows)
    return output.layer(output.hidden)[:, :-1].log_softmax(-1)


@pytest.fixture(scope="session")
def whole_tables():
    """Give the function from a network and rows to the whole next-token log-probabilities."""
    return next_token_log_probs


@pytest.fixture(scope="session")
def sequence_ratios():
    """Give a function from a module and a batch to ρ of chosen and rejected completions, from the whole logits."""

    def ratios(module: Method, batch: Batch) -> list[Tensor]:
        found = []
        for side in ("chosen", "rejected"):
            rows = TokenBatch.from_tensors(batch, f"{side}_")
            taken = next_token_log_probs(module.network, rows).gather(-1, rows.ids[:, 1:, None]).squeeze(-1)
            found.append(sequence_log_ratio(taken, batch[f"teacher_{side}"][:, 1:], rows.loss[:, 1:]))
        return found

    return ratios


@pytest.fixture
def scores_after(student):
    """Give a function that trains a method and scores its policy exactly."""

    def scores(method: str, output: str | None = None, **changes) -> dict[str, float]:
        spec = student(method, output or f"{method}_{len(changes)}", **changes)
        run_stage(spec)
        return evaluate_run(Path(spec.output)).scores

    return scores


@pytest.fixture
def micro_batches_change_nothing(student):
    """Give a check that a training in four micro-batches a step ends with the weights of one in whole batches.

    In float64; the sums are of another order.
    """

    def check(method: str, steps: int) -> None:
        found = []
        for accumulate in (1, 4):
            spec = student(method, f"run{accumulate}", hyperparameters={"accumulate": accumulate, "max_steps": steps})
            run_stage(replace(spec, model_options=spec.model_options | {"dtype": "float64"}))
            found.append(load_file(Path(spec.output) / "weights.safetensors"))
        for name, value in found[0].items():
            torch.testing.assert_close(found[1][name], value, rtol=0, atol=1e-10, msg=name)

    return check


@pytest.fixture(scope="session")
def reference_reward(trained: RunSpec) -> float:
    """Expected reward of the base model: its objective, for it has no KL to itself."""
    return evaluate_run(Path(trained.output)).settings["reference_reward"]


@pytest.fixture(scope="session")
def same_step():
    """Give a check that a module's training step has the value, and in its network the gradient, of a loss."""

    def check(module: Method, batch: Batch, expected: Tensor) -> None:
        ours = module.training_step(batch, 0)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
        parameters = [p for p in module.network.parameters() if p.requires_grad]
        for found, wanted in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(expected, parameters)):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)

    return check


@pytest.fixture(scope="session")
def wider():
    """Give a function that pads the completions of a batch with three more places on the right."""

    def widened(batch: Batch) -> Batch:
        fields = ("ids", "attention", "loss", "segments", "positions")
        rows = {f"{side}_{field}" for side in ("chosen", "rejected") for field in fields}
        rows |= {"teacher_chosen", "teacher_rejected"}
        return {name: torch.nn.functional.pad(v, (0, 3)) if name in rows else v for name, v in batch.items()}

    return widened


class OnePrompt(NamedTuple):
    """The first test prompt, and all its completions.

    Attributes:
        batch: It alone, many times.
        rows: N completions.
        reference: (N,) log π_ref of each.
        rewards: (N,).
    """

    batch: Batch
    rows: TokenBatch
    reference: Tensor
    rewards: Tensor


@pytest.fixture(scope="session")
def one_prompt():
    """Give a function from an on-policy method and a size to a batch of one prompt, with all that is known of it."""

    def make(module: OnPolicyMethod, size: int) -> OnePrompt:
        texts = module.task.texts
        prompt = int(texts.items("test")[0])
        tokens, lengths = texts.space.sequences(padding=texts.end)
        rows = texts.completed([prompt] * len(tokens), tokens, lengths)
        batch = texts.prompt_batch([prompt] * size).tensors("prompt_") | {"prompt": torch.full((size,), prompt)}
        return OnePrompt(batch, rows, module.reference_log_probs(rows).sum(1), completion_rewards(texts)[0])

    return make


@pytest.fixture(scope="session")
def expected_step():
    """Give a check that the step of an on-policy method is, on average over 24 rollouts, the gradient of a scalar."""

    def flat(value: Tensor, parameters: list[Tensor]) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])

    def check(module: OnPolicyMethod, batch: Batch, expected: Tensor) -> None:
        parameters = list(module.network.parameters())
        exact = flat(expected, parameters)
        steps = []
        for module.micro_batch in range(24):
            steps.append(flat(torch.stack(list(module.terms(batch).values())).sum(), parameters))
        drawn = torch.stack(steps)
        error = drawn.std(0) / len(drawn) ** 0.5
        seen = error > 1e-12
        assert float(((drawn.mean(0) - exact)[seen] / error[seen]).square().mean().sqrt()) < 1.6
        torch.testing.assert_close(drawn.mean(0)[~seen], exact[~seen], rtol=0, atol=1e-10)

    return check
