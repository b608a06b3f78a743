"""Cross-entropy, label smoothing, knowledge distillation, and the toy plug-in against plain formulas."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from logit_batches import batches, few

from relent.manifest.catalogue import Catalogue, Run
from relent.methods.distillation.knowledge_distillation import Config, knowledge_distillation_terms
from relent.train.stage import build, load_module

TOY = load_module(str(Path(__file__).resolve().parents[1] / "plugins" / "toy" / "toy.py"))


def plain(student, teacher, labels, alpha, tau):
    """Hinton et al., by torch's own functions: KL of the teacher from the student, labels beside it."""
    soft = F.kl_div(
        (student / tau).log_softmax(-1), (teacher / tau).log_softmax(-1), reduction="batchmean", log_target=True
    )
    return alpha * F.cross_entropy(student, labels) + (1 - alpha) * tau**2 * soft


@few
@given(batches(least_classes=2), st.floats(0, 1), st.sampled_from([0.5, 1.0, 2.0, 4.0]))
def test_knowledge_distillation_is_its_formula_and_so_is_its_gradient(batch, alpha, tau):
    ours, theirs = (batch.student.clone().requires_grad_() for _ in range(2))
    found = sum(knowledge_distillation_terms(ours, batch.teacher, batch.labels, alpha, tau).values())
    expected = plain(theirs, batch.teacher, batch.labels, alpha, tau)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    found.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-11)


def test_defaults_are_those_of_the_comparison_in_the_pld_paper():
    assert (Config().alpha, Config().temperature) == (0.1, 2.0)


@few
@given(batches(least_classes=2))
def test_distillation_alone_vanishes_at_the_teacher_and_is_positive_elsewhere(batch):
    terms = knowledge_distillation_terms(batch.teacher, batch.teacher, batch.labels, 0.0, 2.0)
    assert terms["distillation"].item() == pytest.approx(0.0, abs=1e-12)
    assert knowledge_distillation_terms(*batch, 0.0, 2.0)["distillation"].item() >= 0.0


@few
@given(batches(least_classes=2))
def test_a_high_temperature_matches_centred_logits(batch):
    """τ²·KL tends to Σ (s_i − t_i − mean)²/(2C): arXiv 1503.02531, section 2.1."""
    student, teacher = batch.student.clamp(-3, 3), batch.teacher.clamp(-3, 3)
    found = knowledge_distillation_terms(student, teacher, batch.labels, 0.0, 1e4)["distillation"]
    gap = student - teacher
    expected = (gap - gap.mean(-1, keepdim=True)).square().mean(-1).mean() / 2
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=1e-7)


@few
@given(batches(least_classes=2), st.floats(0, 1))
def test_the_teacher_gets_no_gradient(batch, alpha):
    student, teacher = batch.student.clone().requires_grad_(), batch.teacher.clone().requires_grad_()
    sum(knowledge_distillation_terms(student, teacher, batch.labels, alpha, 2.0).values()).backward()
    assert teacher.grad is None
    torch.testing.assert_close(student.grad.sum(-1), torch.zeros(len(student), dtype=torch.float64), rtol=0, atol=1e-11)


@few
@given(batches(least_classes=2))
def test_logit_matching_is_half_the_squared_distance(batch):
    found = TOY.logit_matching(batch.student, batch.teacher)
    expected = torch.linalg.vector_norm(batch.student - batch.teacher, dim=-1).square() / 2
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_the_modules_train_by_the_formulas(catalogue: Catalogue, changed, smoothing):
    """The step of the module, on real batches, equals torch's own loss of the network's output."""
    spec = catalogue.stage_spec(Run("patterns", "label_smoothing", "default", "smoke", 0))
    module, datamodule, _ = build(changed(spec, smoothing=smoothing))
    plain_module, _, _ = build(catalogue.stage_spec(Run("patterns", "cross_entropy", "default", "smoke", 0)))
    batch = next(iter(datamodule.train_dataloader()))
    logits = module.network(batch["input"]).logits
    expected = F.cross_entropy(logits, batch["label"], label_smoothing=smoothing)
    torch.testing.assert_close(sum(module.terms(module.network(batch["input"]), batch).values()), expected)
    if smoothing == 0:
        ours, theirs = (sum(m.terms(m.network(batch["input"]), batch).values()) for m in (module, plain_module))
        assert ours.item() == theirs.item()
