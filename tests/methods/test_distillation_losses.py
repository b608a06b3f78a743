"""SinKD, DKD, DIST, BD-KD and deep mutual learning against worked numbers, closed forms and their identities."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from logit_batches import batches, few, tensor
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from relent.divergences.discrete import forward_kl
from relent.methods.distillation.bd_kd import balance_weights, bd_kd_student_loss
from relent.methods.distillation.dist import correlation, dist_loss
from relent.methods.distillation.dkd import dkd_loss
from relent.methods.distillation.sinkd import Config as SinKDConfig
from relent.methods.distillation.sinkd import sinkhorn_distance


def rows(*values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class TestSinKD:
    student, teacher = rows((2, 0), (0, 2)), rows((4, 0), (0, 4))

    def test_one_row_is_twice_the_total_variation(self):
        found = sinkhorn_distance(tensor(1, 0, -1), tensor(2, 0, -2))
        assert found.item() == pytest.approx(0.3175211294, abs=1e-10)

    def test_worked_example(self):
        assert sinkhorn_distance(self.student, self.teacher).item() == pytest.approx(0.5991330050, abs=1e-10)
        assert sinkhorn_distance(self.teacher, self.teacher).item() == pytest.approx(7.39e-7, abs=1e-9)

    def test_it_does_not_know_which_teacher_row_belongs_to_which_student_row(self):
        swapped = sinkhorn_distance(self.student, self.teacher.flip(0))
        torch.testing.assert_close(swapped, sinkhorn_distance(self.student, self.teacher))

    def test_sample_wise_form(self):
        found = sinkhorn_distance(tensor(1, 0, -1), tensor(2, 0, -2), form="sample")
        assert found.item() == pytest.approx(0.4147259804, abs=1e-10)

    @few
    @given(batches())
    def test_bounds_shift_and_duplication(self, batch):
        student, teacher, _ = batch
        found = sinkhorn_distance(student, teacher)
        assert 0 <= found <= 2 * len(student)
        torch.testing.assert_close(sinkhorn_distance(student + 3, teacher - 2), found, rtol=1e-9, atol=1e-9)
        twice = sinkhorn_distance(torch.cat([student] * 2), torch.cat([teacher] * 2))
        torch.testing.assert_close(twice, 2 * found, rtol=1e-9, atol=1e-12)

    def test_between_the_mean_cost_and_the_assignment(self):
        generator = torch.Generator().manual_seed(0)
        student, teacher = 3 * torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
        p, q = (student / 2).softmax(-1), (teacher / 2).softmax(-1)
        cost = torch.cdist(p, q, p=1.0)
        loose = sinkhorn_distance(student, teacher, epsilon=1e4)
        torch.testing.assert_close(loose, 6 * cost.mean(), rtol=1e-3, atol=0)
        best = cost.numpy()[linear_sum_assignment(cost.numpy())].sum()
        tight = sinkhorn_distance(student, teacher, epsilon=0.01, iterations=2000).item()
        assert best - 1e-9 <= tight <= 1.01 * best

    def test_columns_sum_to_one_as_the_column_step_comes_last(self):
        """With a cost of one column, the distance is the mean cost of its mass, which is one."""
        student = tensor(1, 0, -1).repeat(4, 1)
        cost = (F.softmax(student / 2, -1) - F.softmax(tensor(2, 0, -2) / 2, -1)).abs().sum(-1)
        found = sinkhorn_distance(student, tensor(2, 0, -2).repeat(4, 1))
        torch.testing.assert_close(found, cost.sum())

    def test_detaching_the_plan_changes_the_gradient_and_not_the_value(self):
        generator = torch.Generator().manual_seed(1)
        student, teacher = 3 * torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
        student.requires_grad_()
        values = [sinkhorn_distance(student, teacher, detach_plan=detach) for detach in (False, True)]
        torch.testing.assert_close(*values)
        through, held = (torch.autograd.grad(value, student)[0] for value in values)
        assert 0.02 < (through - held).norm() / through.norm() < 0.5

    @pytest.mark.parametrize(
        ("size", "forward", "reverse", "jensen", "sinkhorn"),
        [(4, 1.34, 0.255, 0.0530, 0.159), (8, 1.41, 1.00e-2, 1.98e-3, 3.19e-2), (16, 1.41, 6.74e-6, 1.30e-6, 6.27e-4)],
    )
    def test_gradients_where_the_distributions_hardly_overlap(self, size, forward, reverse, jensen, sinkhorn):
        """Through the logits the Sinkhorn gradient vanishes too, only more slowly; the forward KL's does not."""
        from relent.divergences.discrete import jensen_shannon, reverse_kl

        teacher = tensor(0, size, 0)

        def length(loss) -> float:
            student = tensor(size, 0, 0).requires_grad_()
            return torch.autograd.grad(loss(student), student)[0].norm().item()

        log_teacher = teacher.log_softmax(-1)
        assert length(lambda s: forward_kl(log_teacher, s.log_softmax(-1)).sum()) == pytest.approx(forward, rel=0.01)
        assert length(lambda s: reverse_kl(log_teacher, s.log_softmax(-1)).sum()) == pytest.approx(reverse, rel=0.01)
        assert length(lambda s: jensen_shannon(log_teacher, s.log_softmax(-1)).sum()) == pytest.approx(jensen, rel=0.01)
        assert length(lambda s: sinkhorn_distance(s, teacher)) == pytest.approx(sinkhorn, rel=0.01)

    def test_defaults_are_those_of_the_official_scripts(self):
        config = SinKDConfig()
        assert (config.alpha, config.beta, config.kappa, config.epsilon, config.iterations) == (0.8, 0.8, 1e-3, 0.1, 20)


class TestDKD:
    @few
    @given(batches())
    def test_both_parts_make_up_the_classic_loss(self, batch):
        """KL(t ‖ s) = TCKD + (1 − t_y)·NCKD, equation 6 of the paper."""
        student, teacher, labels = batch
        parts = dkd_loss(student[:1], teacher[:1], labels[:1], 2.0, 1.0, 1.0)
        rest = 1 - (teacher[:1] / 2).softmax(-1)[0, labels[0]]
        classic = 4 * forward_kl((teacher[:1] / 2).log_softmax(-1), (student[:1] / 2).log_softmax(-1)).sum()
        torch.testing.assert_close(parts["target"] + rest * parts["non_target"], classic, rtol=1e-7, atol=1e-9)

    def test_only_the_target_part_is_left_with_two_classes(self):
        parts = dkd_loss(tensor(1, -1), tensor(0.5, 0), torch.tensor([0]))
        assert parts["non_target"].item() == 0

    @few
    @given(batches())
    def test_zero_for_a_student_that_is_its_teacher(self, batch):
        parts = dkd_loss(batch.teacher + 1.5, batch.teacher, batch.labels)
        assert max(part.abs() for part in parts.values()) < 1e-9


class TestDIST:
    @few
    @given(batches())
    def test_correlation_is_pearsons(self, batch):
        student, teacher = batch.student[:, :3], batch.teacher[:, :3]
        for row, other, found in zip(student, teacher, correlation(student, teacher)):
            expected = torch.corrcoef(torch.stack([row, other]))[0, 1]
            if row.std() > 1e-2 and other.std() > 1e-2:
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)

    def test_invariant_to_scale_and_shift_of_the_probabilities(self):
        first, second = rows((0.2, 0.5, 0.3), (0.6, 0.3, 0.1)), rows((0.1, 0.7, 0.2), (0.3, 0.4, 0.3))
        torch.testing.assert_close(correlation(3 * first + 1, second), correlation(first, second), rtol=1e-6, atol=1e-6)

    def test_zero_for_a_student_that_is_its_teacher_and_finite_for_one_row(self):
        logits = rows((2, 0, -1), (0, 1, 3), (1, 3, 0))
        assert max(value.item() for value in dist_loss(logits + 1, logits).values()) < 1e-4
        alone = dist_loss(logits[:1], logits[1:])
        assert alone["intra"].item() == pytest.approx(2 * 16)  # a column of one number has no correlation
        assert all(value.isfinite() for value in alone.values())


class TestBDKD:
    student, teacher, labels = rows((1, 0, -1), (3, 0, 0)), rows((2, 0, -2), (1, 1, 0)), torch.tensor([0, 1])

    def test_worked_example(self):
        hard = bd_kd_student_loss(self.student, self.teacher, 1.0)
        torch.testing.assert_close(hard, tensor(0.4358419911, 2.1618980521)[0], rtol=0, atol=1e-9)
        labels = F.cross_entropy(self.student, self.labels)
        assert (labels + hard.mean()).item() == pytest.approx(3.0501344820, abs=1e-9)
        soft = bd_kd_student_loss(self.student, self.teacher, 1.0, "soft")
        assert (labels + soft.mean()).item() == pytest.approx(2.6114997066, abs=1e-9)

    def test_the_surer_student_gets_more_of_the_forward_kl(self):
        entropies = torch.tensor([0.8323955818, 0.3665939609]), torch.tensor([0.4410574441, 1.0173572076])
        forward, reverse = balance_weights(*entropies, "hard", 2.0, 1.0, 1.0)
        assert forward.tolist() == [1, 2]
        assert reverse.tolist() == [2, 1]
        tie = balance_weights(entropies[0], entropies[0], "hard", 2.0, 1.0, 1.0)
        assert tie[0].tolist() == [1, 1]

    def test_gradients_are_those_of_the_two_divergences(self):
        student = self.student[:1].clone().requires_grad_()
        for high, low, expected in (
            (1.0, 0.0, (-0.2015723764, 0.1274180432, 0.0741543332)),
            (0.0, 1.0, (-0.2825874511, 0.1407703575, 0.1418170936)),
        ):
            loss = bd_kd_student_loss(student, self.teacher[:1], 1.0, "fixed", high, low).sum()
            (gradient,) = torch.autograd.grad(loss, student)
            torch.testing.assert_close(gradient, tensor(*expected), rtol=0, atol=1e-9)

    @few
    @given(batches())
    def test_identities(self, batch):
        student, teacher, _ = batch
        same = bd_kd_student_loss(student, student + 1.0)
        assert same.abs().max() < 1e-9
        forward = bd_kd_student_loss(student, teacher, 2.0, "fixed", 1.0, 0.0)
        reverse = bd_kd_student_loss(teacher, student, 2.0, "fixed", 0.0, 1.0)
        torch.testing.assert_close(forward, reverse, rtol=1e-9, atol=1e-9)

    def test_at_high_temperature_the_balance_does_not_matter(self):
        student, teacher = self.student, self.teacher
        forward, reverse = (
            bd_kd_student_loss(student, teacher, 1e3, "fixed", *weights) for weights in ((1, 0), (0, 1))
        )
        difference = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
        expected = difference.square().sum(-1) / (2 * 3)
        torch.testing.assert_close(forward, expected, rtol=5e-3, atol=0)
        torch.testing.assert_close(reverse, expected, rtol=5e-3, atol=0)

    def test_no_gradient_reaches_the_teacher_nor_flows_through_the_weights(self):
        student, teacher = self.student.clone().requires_grad_(), self.teacher.clone().requires_grad_()
        loss = bd_kd_student_loss(student, teacher, 1.0, "soft").sum()
        by_student, by_teacher = torch.autograd.grad(loss, (student, teacher), allow_unused=True)
        assert by_teacher is None
        log_s, log_t = student.log_softmax(-1), teacher.detach().log_softmax(-1)
        gap = (-(log_t.exp() * log_t).sum(-1) + (log_s.exp() * log_s).sum(-1)).detach()
        delta = 2 * torch.sigmoid(gap)
        plain = (delta * forward_kl(log_t, log_s) + (2 - delta) * forward_kl(log_s, log_t)).sum()
        torch.testing.assert_close(by_student, torch.autograd.grad(plain, student)[0], rtol=1e-9, atol=1e-12)
        assert math.isfinite(loss.item())
