"""The contract test itself: it passes what is right, and each kind of fault is found and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from relent.cli import main
from relent.contract.check import check_method
from relent.contract.declared import check_fingerprint, check_manifest
from relent.contract.objective import check_objective
from relent.contract.result import CheckResult
from relent.contract.subject import Subject
from relent.contract.trained import check_baseline_limit, check_evaluation, check_resume, check_seeds
from relent.errors import ConfigError, DataError
from relent.manifest.catalogue import Catalogue
from relent.manifest.paths import Layout

TOY = Path(__file__).resolve().parents[1] / "plugins" / "toy"
ALL = ("manifest", "code fingerprint", "finite objective", "gradient", "teacher is constant", "batch order")
ALL = (*ALL, "same seed", "other seed", "resume", "baseline limit", "evaluation")

HEAD = '''
import math
import numpy as np
import torch
from relent.methods.config import MethodConfig, hyperparameter
from relent.methods.classifier import ClassifierMethod


class Config(MethodConfig):
    """One hyperparameter."""

    weight: float = hyperparameter(0.5, "weight of the teacher", source="ours")


class Broken(ClassifierMethod):
    """Cross-entropy and a fault."""

'''

Make = Callable[..., Subject]


@pytest.fixture
def broken(manifests: Path, patterns: Path, tmp_path: Path) -> Make:
    """Give a function that makes the subject of a method whose class has the given body."""

    def make(body: str, head: str = HEAD, **manifest) -> Subject:
        folder = tmp_path / "plugin"
        folder.mkdir()
        lines = "\n".join("    " + line for line in body.strip("\n").splitlines())
        (folder / "broken.py").write_text(f"{head}{lines}\n")
        values = {
            "name": "broken",
            "title": "Broken",
            "family": "distillation",
            "implementation": "broken.py:Broken",
            "tasks": ["classification"],
            "stages": {"student": {"inputs": ["data", "teacher"]}},
        }
        (folder / "broken.yaml").write_text(yaml.safe_dump(values | manifest, sort_keys=False))
        catalogue = Catalogue.load(manifests, [str(folder)], Layout(str(patterns)))
        return Subject.of(catalogue, "broken", None, "smoke", tmp_path / "work")

    return make


def the(results: list[CheckResult], check: str) -> CheckResult:
    (found,) = [result for result in results if result.check == check]
    return found


def assert_failed(result: CheckResult, *words: str) -> None:
    assert result.outcome == "fail", result
    assert result.advice
    for word in words:
        assert word in result.detail


def test_the_toy_plugin_keeps_every_point(catalogue, tmp_path):
    results = check_method(catalogue, "toy", "patterns", tmp_path / "work")
    assert [(r.check, r.outcome) for r in results] == [(name, "pass") for name in ALL]


@pytest.mark.parametrize("name", ["label_smoothing", "knowledge_distillation", "uskd", "nkd", "pld"])
def test_objectives_of_the_distillation_family(catalogue, tmp_path, name):
    subject = Subject.of(catalogue, name, None, "smoke", tmp_path / "work")
    assert {r.outcome for r in check_objective(subject, "student")} <= {"pass", "not applicable"}
    assert check_manifest(subject).outcome == "pass"
    assert check_fingerprint(subject).outcome == "pass"


@pytest.mark.parametrize("name", ["label_smoothing", "knowledge_distillation", "uskd"])
def test_baseline_limits_are_bitwise(catalogue, tmp_path, name):
    result = check_baseline_limit(Subject.of(catalogue, name, None, "smoke", tmp_path / "work"))
    assert result.outcome == "pass"
    assert "bit for bit" in result.detail


def test_probabilities_in_place_of_log_probabilities_are_found(broken):
    subject = broken("""
def terms(self, output, batch):
    q = output.logits.softmax(-1)
    return {"loss": -torch.log(q.gather(-1, batch["label"][:, None])).mean()}
""")
    result = the(check_objective(subject, "student"), "finite objective")
    assert_failed(result, "images × 1e4")
    assert "log_softmax" in result.advice


def test_a_gradient_that_is_not_finite_is_found_although_the_loss_is(broken):
    subject = broken("""
def terms(self, output, batch):
    gap = output.logits - batch["teacher_logits"].detach() * 0 - output.logits.detach()
    return {"loss": gap.square().sum(-1).sqrt().mean()}
""")
    assert_failed(the(check_objective(subject, "student"), "finite objective"), "gradient", "data")


def test_a_gradient_into_the_teacher_is_found(broken):
    subject = broken("""
def terms(self, output, batch):
    return {"loss": (output.logits - batch["teacher_logits"]).square().mean()}
""")
    assert_failed(the(check_objective(subject, "student"), "teacher is constant"), "teacher_logits")


def test_a_detached_loss_is_found(broken):
    subject = broken("""
def terms(self, output, batch):
    return {"loss": output.logits.square().mean() * 0}
""")
    assert_failed(the(check_objective(subject, "student"), "gradient"), "no parameter")


PAIRS_NEIGHBOURS = """
def terms(self, output, batch):
    weights = torch.arange(1.0, 1 + len(output.logits))
    return {"loss": (weights * output.logits.square().sum(-1)).mean()}
"""


def test_dependence_on_the_order_of_a_batch_is_found(broken):
    results = check_objective(broken(PAIRS_NEIGHBOURS), "student")
    result = the(results, "batch order")
    assert_failed(result, "reversed")
    assert "batch_order_matters = True" in result.advice


def test_a_method_may_say_that_the_order_matters(broken):
    subject = broken("batch_order_matters = True\n" + PAIRS_NEIGHBOURS)
    assert the(check_objective(subject, "student"), "batch order").outcome == "not applicable"


def test_a_random_objective_is_told_from_one_that_depends_on_the_order(broken):
    subject = broken("""
def terms(self, output, batch):
    noise = torch.randn(len(output.logits))
    return {"loss": (noise * output.logits.square().sum(-1)).mean()}
""")
    assert "random" in the(check_objective(subject, "student"), "batch order").detail


def test_an_undocumented_hyperparameter_is_found(broken):
    head = HEAD.replace(', source="ours"', "")
    assert_failed(check_manifest(broken("pass", head)), "weight")


def test_foreign_random_numbers_are_found(broken):
    subject = broken("""
def terms(self, output, batch):
    return {"loss": (output.logits * float(np.random.default_rng().uniform())).square().mean()}
""")
    result = the(check_seeds(subject), "same seed")
    assert_failed(result, "differ")
    assert "torch's global generator" in result.advice


def test_random_predictions_are_found_although_the_weights_agree(broken):
    subject = broken("""
def forward(self, images):
    output = self.network(images)
    return output._replace(logits=output.logits + float(np.random.default_rng().uniform()))

def terms(self, output, batch):
    return {"loss": output.logits.square().mean()}
""")
    assert_failed(the(check_seeds(subject), "same seed"), "the predictions")


def test_a_method_that_fixes_its_own_seed_is_found(broken):
    subject = broken("""
def setup_method(self):
    with torch.no_grad():
        for number, parameter in enumerate(self.parameters()):
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape) * (number + 1) / 10)

def terms(self, output, batch):
    return {"loss": output.logits.mean() * 0 + sum(p.square().sum() for p in self.parameters())}
""")
    assert_failed(the(check_seeds(subject), "other seed"), "seed 1")


COUNTS = """
def setup_method(self):
    {counter}

def terms(self, output, batch):
    self.seen += 1
    return {{"loss": (output.logits - float(self.seen)).square().mean()}}
"""


def test_state_outside_the_checkpoint_is_found(broken):
    result = check_resume(broken(COUNTS.format(counter="self.seen = 0")))
    assert_failed(result, "resumed")
    assert "buffers" in result.advice


def test_state_in_a_buffer_resumes(broken):
    counter = 'self.register_buffer("seen", torch.zeros((), dtype=torch.int64))'
    assert check_resume(broken(COUNTS.format(counter=counter))).outcome == "pass"


def test_resume_of_a_method_with_two_stages_and_accumulation(broken):
    body = """
def terms(self, output, batch):
    return {"loss": (output.logits - torch.randn(())).square().mean()}
"""
    stages = {"warm": {"inputs": ["data"]}, "student": {"inputs": ["data", "teacher", "warm"]}}
    subject = broken(body, stages=stages, hyperparameters={"smoke": {"accumulate": 2}})
    assert check_resume(subject).outcome == "pass"
    assert {r.check for r in check_objective(subject, "warm")} >= {"gradient (warm)"}


READS = """
def setup_method(self):
    self.start = load_file(f"{self.spec.inputs['cross_entropy']}/weights.safetensors")

def terms(self, output, batch):
    return {"loss": (output.logits - float(next(iter(self.start.values())).sum())).square().mean()}
"""


@pytest.mark.parametrize("variant", ["default", "reading"])
def test_what_a_variant_reads_of_another_method_is_trained_first(broken, variant):
    """Once, whether it is the default variant or one that is asked for."""
    head = HEAD.replace("import torch\n", "import torch\nfrom safetensors.torch import load_file\n")
    subject = broken(READS, head=head, variants={"default": {}, variant: {"reads": ["cross_entropy"]}})
    subject = replace(subject, variant=variant)
    assert {r.outcome for r in check_objective(subject, "student")} <= {"pass", "not applicable"}
    assert check_resume(subject).outcome == "pass"
    (run,) = (subject.folder / "read").rglob("config.json")
    assert "cross_entropy" in run.parts


def test_an_unknown_variant(catalogue, tmp_path):
    with pytest.raises(ConfigError, match=r"method 'toy' has no variant 'defualt' \(did you mean 'default'"):
        Subject.of(catalogue, "toy", None, "smoke", tmp_path, "defualt")


def test_a_wrong_baseline_limit_is_found(broken):
    subject = broken("""
baseline_limit = ("cross_entropy", {"weight": 0.0})

def terms(self, output, batch):
    loss = -output.logits.log_softmax(-1).gather(-1, batch["label"][:, None]).mean()
    return {"loss": loss + (self.config.weight + 1e-3) * output.logits.square().mean()}
""")
    assert_failed(check_baseline_limit(subject), "cross_entropy", "weight = 0.0")


def test_a_claim_on_a_score_that_is_not_made_is_found(broken):
    claim = {"id": "c", "text": "t", "kind": "mechanism", "metric": "peer_ece", "baseline": "cross_entropy"}
    subject = broken("def terms(self, output, batch): return {'loss': output.logits.square().mean()}")
    claims = [*subject.catalogue.methods["pld"].claims[:1]]
    wanted = claims[0].model_copy(update=claim | {"direction": "higher"})
    method = subject.method.model_copy(update={"claims": [wanted]})
    assert_failed(check_evaluation(replace(subject, method=method)), "no score peer_ece")


def test_a_score_that_the_task_does_not_list_is_found(catalogue, tmp_path):
    subject = Subject.of(catalogue, "toy", None, "smoke", tmp_path / "work")
    listed = {name: metric for name, metric in subject.task.metrics.items() if name != "teacher_kl"}
    shorter = replace(subject, task=subject.task.model_copy(update={"metrics": listed}))
    result = check_evaluation(shorter)
    assert_failed(result, "does not list the score teacher_kl")
    assert "under metrics of the task patterns" in result.advice


def test_a_method_without_training_is_left_alone(broken):
    subject = broken(
        "def terms(self, output, batch): return {}",
        deterministic=True,
        stages={"student": {"inputs": ["data"]}},
    )
    results = [*check_objective(subject, "student"), *check_seeds(subject), check_resume(subject)]
    assert {r.check: r.outcome for r in results if r.outcome != "not applicable"} == {"same seed": "pass"}


def test_an_error_inside_a_check_is_a_failure_of_that_check(broken, tmp_path):
    subject = broken("def terms(self, output, batch): raise RuntimeError('no such luck')")
    results = check_method(subject.catalogue, "broken", None, tmp_path / "work")
    failures = [r for r in results if r.outcome == "fail"]
    assert failures
    assert all("RuntimeError: no such luck" in r.detail and r.advice for r in failures)


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [("tyo", None, "did you mean 'toy'"), ("toy", "pattern", "did you mean 'patterns'")],
)
def test_unknown_names(catalogue, tmp_path, name, task, message):
    with pytest.raises(ConfigError, match=message):
        Subject.of(catalogue, name, task, "smoke", tmp_path)


def test_missing_data_says_what_to_run(catalogue, tmp_path):
    elsewhere = replace(catalogue, layout=Layout(str(tmp_path / "none")))
    with pytest.raises(DataError, match="snakemake data --config scale=smoke tasks=patterns"):
        Subject.of(elsewhere, "toy", None, "smoke", tmp_path)


def test_the_command_prints_a_table_and_says_what_to_do(manifests, patterns, broken, capsys):
    subject = broken("def terms(self, output, batch): return {'loss': output.logits.square().mean() / 0}")
    plugin = Path(subject.method.implementation.partition(":")[0]).parent
    arguments = ["check-method", "broken", "--manifests", str(manifests), "--data", str(patterns)]
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--plugin", str(plugin)])
    assert left.value.code == 1
    printed = capsys.readouterr().out
    assert "To do:" in printed
    assert "checks failed" in printed
    with pytest.raises(SystemExit) as left:
        main(
            [
                "check-method",
                "cross_entropy",
                "--manifests",
                str(manifests),
                "--data",
                str(patterns),
                "--plugin",
                str(TOY),
            ]
        )
    assert left.value.code == 0
    assert "cross_entropy: keeps the contract" in capsys.readouterr().out
