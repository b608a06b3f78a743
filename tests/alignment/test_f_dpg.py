"""f-DPG as a method: targets and estimates, its step against enumeration, and what training reaches."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import zarr
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.nn.functional import pad

from relent.divergences.discrete import forward_kl
from relent.divergences.f_divergence import get_f_divergence
from relent.errors import ConfigError
from relent.evaluate.run import evaluate_run
from relent.language.exact import SequenceSpace, optimal_log_probs
from relent.language.log_probs import sequence_log_probs
from relent.methods.alignment.f_dpg import Config, f_dpg_loss, pseudo_rewards
from relent.methods.alignment.importance import RunningNormaliser, WindowBaseline
from relent.methods.alignment.lexical import base_samples, contains, word_nearest
from relent.methods.alignment.reinforce_kl import reinforce_kl_loss
from relent.methods.alignment.targets import reward_target
from relent.models.positionwise import PositionwiseLM
from relent.tasks.preference_alignment.data import Pairs, read_base
from relent.tasks.preference_alignment.evaluation import reference_and_rewards
from relent.train.stage import build, run_stage

WORD = {"target": "pointwise", "beta": None, "floor": 1e-4}
LORA = {"rank": 2, "alpha": 4.0, "target_modules": ["c_attn", "c_fc"]}


def gradient(module, loss) -> torch.Tensor:
    """Of a loss to the network, flat."""
    parameters = [p for p in module.network.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


@pytest.fixture
def enumerated(module_in_float64):
    """Give a function that builds a module with one prompt's exact tables: rows of all completions, log a and r."""

    def make(hyperparameters: dict):
        module, batch = module_in_float64("f_dpg", hyperparameters)
        texts = module.task.texts
        tokens, lengths = texts.space.sequences(padding=texts.end)
        rows = texts.completed([int(batch["prompt"][0])] * len(tokens), tokens, lengths)
        with torch.no_grad(), module.reference_policy() as network:
            base = sequence_log_probs(network(rows), rows)
        return module, rows, base, texts.reward(rows)

    return make


class TestStep:
    def test_the_contract_is_kept(self, keeps_contract):
        keeps_contract("f_dpg")

    @pytest.mark.parametrize("divergence", ["jensen_shannon_unhalved", "reverse_kl"])
    def test_gradient_in_expectation_is_that_of_the_divergence(self, enumerated, divergence):
        """By enumeration of all completions of a prompt, through the network, against automatic differentiation."""
        module, rows, base, rewards = enumerated({"divergence": divergence, "beta": 0.5})
        log_p = optimal_log_probs(base, rewards, 0.5)
        policy = sequence_log_probs(module.network(rows), rows)
        target = module.log_target(base, rewards, None)
        entry = get_f_divergence(divergence)
        returns = pseudo_rewards(policy, target, float(torch.logsumexp(target, 0)), entry)
        ours = gradient(module, (policy.detach().exp() * f_dpg_loss(policy, returns)).sum())
        policy = sequence_log_probs(module.network(rows), rows)
        exact = gradient(module, (policy.exp() * entry.f((log_p - policy).exp())).sum())
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-10)

    def test_reverse_kl_to_a_reward_target_is_the_kl_regularised_policy_gradient(self, enumerated):
        """In expectation, through the network: β times the gradient of f-DPG is that of REINFORCE with a KL penalty."""
        module, rows, base, rewards = enumerated({"divergence": "reverse_kl", "beta": 0.3})
        policy = sequence_log_probs(module.network(rows), rows)
        target = module.log_target(base, rewards, None)
        returns = pseudo_rewards(policy, target, 0.7, get_f_divergence("reverse_kl"))
        ours = gradient(module, (policy.detach().exp() * f_dpg_loss(policy, returns)).sum())
        policy = sequence_log_probs(module.network(rows), rows)
        alike = torch.ones(len(policy), 1, dtype=torch.bool)
        losses = reinforce_kl_loss(policy[:, None], base[:, None], rewards, alike, beta=0.3)
        theirs = gradient(module, (policy.detach().exp() * losses).sum())
        torch.testing.assert_close(0.3 * ours, theirs, rtol=0, atol=1e-10)

    def test_a_step_is_the_estimator_on_its_samples(self, module_in_float64, same_step):
        module, batch = module_in_float64("f_dpg", {"samples": 4, "baseline_window": 8})
        twin, _ = module_in_float64("f_dpg", {"samples": 4, "baseline_window": 8})
        twin.training_step(batch, 0)
        module.load_state_dict(twin.state_dict())
        rollout = module.rollout(batch, 4)
        rows = rollout.rows
        policy = sequence_log_probs(module.network(rows), rows)
        target = rollout.reference.sum(-1) + rollout.rewards
        # Z of a prompt: the mean of P/π over all that was drawn of it, twice the same samples here.
        ratios = (target - policy.detach()).exp()
        z = torch.stack([ratios[rollout.prompts == prompt].mean() for prompt in rollout.prompts])
        t = policy.detach().exp() / (target.exp() / z)
        returns = -torch.log(2 * t / (t + 1))
        expected = (-(returns - returns[-8:].mean()) * policy).mean()
        same_step(module, batch, expected)

    def test_sampled_gradients_agree_with_the_exact_one(self, module_in_float64):
        """The mean over 25 independent rollouts lies within 5 standard errors of the gradient by enumeration."""
        module, batch = module_in_float64("f_dpg", {"samples": 64, "divergence": "reverse_kl", "baseline_window": 0})
        batch = {name: values[:1] for name, values in batch.items()}
        texts = module.task.texts
        tokens, lengths = texts.space.sequences(padding=texts.end)
        rows = texts.completed([int(batch["prompt"][0])] * len(tokens), tokens, lengths)
        with torch.no_grad(), module.reference_policy() as network:
            base = sequence_log_probs(network(rows), rows)
        policy = sequence_log_probs(module.network(rows), rows)
        log_p = optimal_log_probs(base, texts.reward(rows), 1.0)
        exact = gradient(module, forward_kl(policy, log_p))
        found = []
        for number in range(25):
            module.seeds = lambda what, places, n, k=number: [[1000 * k + i for i in range(n)] for _ in places]
            found.append(gradient(module, module.training_step(batch, 0)))
        estimates = torch.stack(found)
        error = estimates.std(0) / math.sqrt(len(found))
        assert ((estimates.mean(0) - exact).abs() < 5 * error + 1e-9).all()
        assert (estimates.mean(0) - exact).norm() < 0.2 * exact.norm()

    def test_padding_changes_nothing(self, module_in_float64):
        module, batch = module_in_float64("f_dpg", WORD)
        wider = {n: pad(v, (3, 0)) if n.startswith("prompt_") else v for n, v in batch.items()}
        state = {name: value.clone() for name, value in module.state_dict().items()}
        first = module.training_step(batch, 0)
        module.load_state_dict(state)
        torch.testing.assert_close(module.training_step(wider, 0), first, rtol=0, atol=1e-10)

    def test_only_the_adapter_is_trained(self, module_in_float64):
        module, batch = module_in_float64("f_dpg", {"proposal": "offline"}, lora=LORA)
        module.training_step(batch, 0).backward()
        moved = [name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()]
        assert moved
        assert all(name.startswith("network.") and ".lora_" in name for name in moved)

    def test_prompts_without_a_sample_that_meets_the_constraint_are_left_out(self, module_in_float64):
        module, batch = module_in_float64("f_dpg", WORD | {"floor": 0.0})
        module.word = 10**6
        loss = module.training_step(batch, 0)
        assert loss.item() == 0.0
        assert int(module.window.seen) == 0


class TestTargets:
    def test_weighted_completions_of_pairs_are_samples_of_the_base_model(self):
        """Pairs of different completions under-represent likely ones; the weights mend it, exactly."""
        base = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
        both = base[:, None] * base
        both = both.fill_diagonal_(0) / both.fill_diagonal_(0).sum()
        counts = (both * 40_000).round().long().flatten()
        first, second = torch.arange(9).repeat_interleave(counts) // 3, torch.arange(9).repeat_interleave(counts) % 3
        tokens = torch.stack([first, second], 1).unsqueeze(-1) + 1
        pairs = Pairs(
            torch.zeros(len(tokens), dtype=torch.int64),
            tokens,
            torch.ones(len(tokens), 2, dtype=torch.int64),
            torch.zeros(len(tokens), 2),
            base.log()[tokens - 1],
        )
        samples = base_samples(pairs)
        rates = [float(samples.mean(contains(samples.tokens, samples.inside, word))) for word in (1, 2, 3)]
        assert rates == pytest.approx(base.tolist(), abs=1e-3)
        assert word_nearest(samples, 0.15, vocabulary=4, end=0) in (2, 3)
        assert word_nearest(samples, 0.6, vocabulary=4, end=0) == 1

    def test_the_stored_target_is_the_base_model_given_the_word(self, student, trained):
        spec = student("f_dpg", hyperparameters=WORD | {"max_steps": 0, "floor": 0.0})
        run_stage(spec)
        module, _, task = build(spec)
        base = read_base(spec.inputs["teacher"], task.texts, table=True)
        group = zarr.open_group(Path(spec.output) / "target.zarr", mode="r")
        satisfied = torch.from_numpy(group["satisfied"][...])
        assert task.texts.words[module.word] == group.attrs["word"]
        expected = base.table.exp() * satisfied
        found = torch.from_numpy(group["probs"][...])
        torch.testing.assert_close(found, expected / expected.sum(1, keepdim=True), rtol=0, atol=1e-12)
        scores = evaluate_run(Path(spec.output))
        # The policy is the base model still: KL(p‖a) = −log a(b) for the hard constraint, and TV = 1 − a(b).
        mass = expected.sum(1)
        assert scores.scores["target_forward_kl"] == pytest.approx(float(-mass.log().mean()), abs=1e-5)
        assert scores.scores["target_total_variation"] == pytest.approx(float(1 - mass.mean()), abs=1e-5)
        assert scores.scores["constraint_rate"] == pytest.approx(float(mass.mean()), abs=1e-5)
        assert "target_reverse_kl" not in scores.scores
        assert scores.settings["target_constraint_rate"] == pytest.approx(1.0)

    def test_the_moment_is_met_on_average_over_the_training_prompts(self, module_in_float64):
        module, _ = module_in_float64("f_dpg", {"target": "moments", "beta": None, "moment": 0.4, "word_rate": 0.3})
        texts = module.task.texts
        tokens, lengths = texts.space.sequences(padding=texts.end)
        inside = torch.arange(tokens.shape[1]) < lengths[:, None]
        met = []
        for prompt in module._pairs.prompt.unique().tolist():
            rows = texts.completed([prompt] * len(tokens), tokens, lengths)
            with torch.no_grad(), module.reference_policy() as network:
                base = sequence_log_probs(network(rows), rows)
            target = module.log_target(base, base, contains(tokens, inside, module.word)).softmax(0)
            met.append(target[contains(tokens, inside, module.word)].sum())
        # λ is fitted on the 192 completions of the pairs.
        assert float(torch.stack(met).mean()) == pytest.approx(0.4, abs=0.08)

    def test_the_reward_target_is_the_optimum_of_the_run_s_beta(self, student):
        spec = student("f_dpg", hyperparameters={"max_steps": 0, "beta": 0.4})
        run_stage(spec)
        scores = evaluate_run(Path(spec.output)).scores
        assert scores["target_forward_kl"] == pytest.approx(scores["kl_from_optimum"], abs=1e-9)
        assert scores["target_reverse_kl"] == pytest.approx(scores["kl_to_optimum"], abs=1e-9)

    def test_settings_that_do_not_fit_are_refused(self, student):
        with pytest.raises(ValidationError, match="set floor"):
            Config(target="pointwise", beta=None, divergence="reverse_kl")
        with pytest.raises(ValidationError, match="others need null"):
            Config(target="moments")
        with pytest.raises(ConfigError, match="'nosuch' is no word of the data"):
            build(student("f_dpg", hyperparameters=WORD | {"word": "nosuch"}))


class TestTraining:
    def test_the_policy_comes_near_a_reward_target(self, scores_after, reference_reward):
        found = scores_after("f_dpg", hyperparameters={"max_steps": 20, "learning_rate": 0.01, "samples": 4})
        assert found["objective"] > reference_reward + 0.2
        start = scores_after("f_dpg", "start", hyperparameters={"max_steps": 0})
        for name in ("target_forward_kl", "target_reverse_kl", "target_jensen_shannon"):
            assert found[name] < 0.7 * start[name], name

    def test_estimates_by_step_are_drawn(self, student):
        spec = student("f_dpg", hyperparameters={"max_steps": 4})
        run_stage(spec)
        evaluate_run(Path(spec.output))
        assert (Path(spec.output) / "figures" / "estimates.png").is_file()

    def test_a_proposal_gives_way_to_a_policy_that_is_nearer_to_the_target(self, student):
        spec = student("f_dpg", hyperparameters={"proposal": "offline", "proposal_interval": 4, "learning_rate": 0.01})
        module, _, _ = build(spec)
        start = {n: v.clone() for n, v in module.proposal.state_dict().items()}
        run_stage(spec)
        weights = load_file(Path(spec.output) / "weights.safetensors")
        name = "model.transformer.h.0.mlp.c_fc.weight"
        assert not torch.equal(weights[f"proposal.{name}"], start[name])
        assert not torch.equal(weights[f"proposal.{name}"], weights[f"network.{name}"])

    def test_more_micro_batches_draw_the_same(self, student):
        """Without the baseline, whose window moves with every micro-batch, and prompts that occur once in a batch."""
        found = []
        for accumulate in (1, 2):
            changes = {"accumulate": accumulate, "max_steps": 1, "baseline_window": 0, "batch_size": 4}
            spec = student("f_dpg", f"run{accumulate}", hyperparameters=changes)
            run_stage(replace(spec, model_options=spec.model_options | {"dtype": "float64"}))
            found.append(load_file(Path(spec.output) / "weights.safetensors"))
        for name, value in found[0].items():
            torch.testing.assert_close(found[1][name], value, rtol=0, atol=1e-10, msg=name)

    def test_a_policy_without_context_starts_at_the_shares_of_the_base_model_s_tokens(self, student, trained):
        spec = student("f_dpg", hyperparameters={"policy_class": "positions", "max_steps": 3, "beta": 0.3})
        run_stage(spec)
        scores = evaluate_run(Path(spec.output)).scores
        assert math.isfinite(scores["target_forward_kl"])
        module, _, task = build(spec)
        base = read_base(spec.inputs["teacher"], task.texts, table=True)
        reference, _ = reference_and_rewards(task.texts, base, spec.inputs["teacher"])
        table = module.completion_law().table()
        # Nearer to the base model than a uniform policy is.
        uniform = PositionwiseLM(torch.zeros_like(module.network.logits.detach()))
        other = task.network_law(uniform).table()
        assert forward_kl(reference, table).mean() < forward_kl(reference, other).mean()


class TestTwoModes:
    """A policy without context and a target of two modes: reverse KL chooses one of them, forward KL covers both.

    Six letters, six places, a uniform base, r = 1 where at least four places are A, or four are B, β = 0.1.
    """

    space = SequenceSpace(6, 6)

    def train(self, name: str, rewards: torch.Tensor, seed: int) -> torch.Tensor:
        """log π of all sequences after training from samples, from near the base model."""
        generator = torch.Generator().manual_seed(seed)
        network = PositionwiseLM(0.05 * torch.randn(7, 6, generator=generator))
        optimizer = torch.optim.Adam([network.logits], lr=0.05)
        normaliser, window, entry = RunningNormaliser(), WindowBaseline(1024), get_f_divergence(name)
        length = torch.full((512,), 6)
        for _ in range(250):
            log_probs = network.logits[1:].log_softmax(-1)
            drawn = torch.multinomial(log_probs.detach().exp(), 512, replacement=True, generator=generator)
            policy = log_probs.gather(1, drawn).sum(0)
            base = torch.full_like(policy, -6 * math.log(6))
            target = reward_target(base, rewards[self.space.index(drawn.T, length)], beta=0.1)
            normaliser.update(target, policy.detach())
            returns = pseudo_rewards(policy, target, normaliser.log_normaliser().float(), entry)
            loss = f_dpg_loss(policy, returns, baseline=window.value().float()).mean()
            window.update(returns)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return self.space.log_probs(network, [0])

    @pytest.mark.parametrize("seed", [0, 1])
    def test_mass_covering_and_mode_seeking(self, seed):
        tokens, _ = self.space.sequences()
        modes = torch.stack([(tokens == letter).sum(1) >= 4 for letter in (0, 1)], 1).float()
        low, high = {}, {}
        for name in ("forward_kl", "reverse_kl"):
            probs = self.train(name, modes.amax(1), seed).exp()
            low[name], high[name] = sorted((probs @ modes.double()).tolist())
        assert low["reverse_kl"] < 0.02
        assert high["reverse_kl"] > 0.75
        # The product of p's marginals has both modes alike and little reward.
        assert low["forward_kl"] > 0.5 * high["forward_kl"]
        assert low["forward_kl"] + high["forward_kl"] < 0.6
