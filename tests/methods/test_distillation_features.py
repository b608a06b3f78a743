"""The ND loss and LELP against worked numbers, closed forms and their identities."""

from __future__ import annotations

import pytest
import torch
from logit_batches import tensor
from torch import Tensor

from relent.divergences.discrete import cross_entropy, forward_kl
from relent.methods.distillation.lelp import (
    Config,
    Projections,
    class_logits,
    null_space_projector,
    principal_directions,
    project,
    random_rotation,
    subclass_log_targets,
)
from relent.methods.distillation.nd_loss import direction_loss, nd_loss
from relent.scores.features import means_by_class


def rows(*values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


ZERO = torch.tensor([0])


class TestNDLoss:
    @pytest.mark.parametrize(
        ("student", "teacher", "centre", "expected"),
        [((1, 1), (3, 4), (3, 4), 0.72), ((0, 5), (0, 2), (0, 2), 0.0), ((3, 4), (1, 0), (1, 0), 0.4)],
    )
    def test_worked_examples(self, student, teacher, centre, expected):
        found = nd_loss(rows(student), rows(teacher), rows(centre), ZERO)
        assert found.item() == pytest.approx(expected, abs=1e-12)

    def test_a_short_feature_is_turned_and_lengthened(self):
        student = rows((1, 1)).requires_grad_()
        (gradient,) = torch.autograd.grad(nd_loss(student, rows((3, 4)), rows((3, 4)), ZERO).sum(), student)
        torch.testing.assert_close(gradient, tensor(-0.12, -0.16), rtol=0, atol=1e-12)

    def test_a_long_feature_is_only_turned(self):
        student = rows((6, 6)).requires_grad_()
        loss = nd_loss(student, rows((3, 4)), rows((3, 4)), ZERO)
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        assert loss.item() == pytest.approx(0.0100505, abs=1e-7)
        torch.testing.assert_close(gradient, tensor(0.0117851, -0.0117851), rtol=0, atol=1e-7)
        assert abs(float((student.detach() * gradient).sum())) < 1e-12

    def test_with_a_teacher_of_length_zero_it_is_the_direction_alone(self):
        student, centre = rows((1, 1), (6, 6)), rows((3, 4))
        labels = torch.tensor([0, 0])
        found = nd_loss(student, torch.zeros_like(student), centre, labels)
        torch.testing.assert_close(found, direction_loss(student, centre, labels))
        assert found[0].item() == pytest.approx(0.0100505, abs=1e-7)

    def test_class_means_count_by_direction_and_get_no_gradient(self):
        generator = torch.Generator().manual_seed(0)
        student, teacher, means = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
        labels = torch.tensor([0, 4, 2, 2, 1])
        found = nd_loss(student, teacher, means, labels)
        scales = torch.tensor([1.0, 0.1, 7, 3, 2], dtype=torch.float64)[:, None]
        torch.testing.assert_close(nd_loss(student, teacher, scales * means, labels), found)
        one_by_one = [
            1 - (s @ (means[y] / means[y].norm())) / max(s.norm(), t.norm())
            for s, t, y in zip(student, teacher, labels)
        ]
        torch.testing.assert_close(found, torch.stack(one_by_one), rtol=0, atol=1e-12)
        leaves = [value.clone().requires_grad_() for value in (student, teacher, means)]
        gradients = torch.autograd.grad(nd_loss(*leaves, labels).sum(), leaves, allow_unused=True)
        assert gradients[1] is None
        assert gradients[2] is None
        assert bool(((found >= 0) & (found <= 2)).all())

    def test_zero_features_are_finite(self):
        student = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
        loss = nd_loss(student, torch.zeros(1, 2).double(), rows((3, 4)), ZERO)
        (gradient,) = torch.autograd.grad(loss.sum(), student)
        assert loss.item() == 1
        assert bool(gradient.isfinite().all())

    def test_means_by_class(self):
        features, labels = rows((1, 0), (3, 0), (0, 5)), torch.tensor([0, 0, 2])
        torch.testing.assert_close(means_by_class(features, labels, 3), rows((2, 0), (0, 0), (0, 5)))


W = rows((1, 0, 0), (-1, 0, 0))


class TestLELP:
    embeddings = rows(
        (2, 1, 0), (2, -1, 0), (3, 0, 0.5), (3, 0, -0.5), (-2, 0, 2), (-2, 0, -2), (-3, 1, 0), (-3, -1, 0)
    )
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])

    def test_null_space_and_directions_of_the_toy(self):
        torch.testing.assert_close(null_space_projector(W), torch.diag(tensor(0, 1, 1)[0]))
        seen = self.embeddings @ null_space_projector(W)
        torch.testing.assert_close(principal_directions(seen[:4], 2), rows((0, 1, 0), (0, 0, 1)))
        torch.testing.assert_close(principal_directions(seen[4:], 2), rows((0, 0, 1), (0, 1, 0)))

    def test_worked_targets(self):
        axes = rows((0, 1, 0), (0, 0, 1))
        plain = Projections(torch.stack([axes, axes]), torch.zeros(2, 3).double(), torch.ones(2).double())
        embedding = tensor(2, 1, 0)
        shares = plain.log_shares(embedding, 1.0)
        torch.testing.assert_close(shares.exp()[0], tensor(0.7310585786, 0.2689414214).repeat(2, 1), rtol=0, atol=1e-9)
        targets = subclass_log_targets(shares, embedding @ W.T, 2.0).exp()
        expected = tensor(0.6439142599, 0.2368828181, 0.0871443187, 0.0320586033)
        torch.testing.assert_close(targets, expected, rtol=0, atol=1e-9)

    def test_chain_rule_in_numbers(self):
        shares = tensor(0.7310585786, 0.2689414214).log().repeat(1, 2, 1).reshape(1, 2, 2)
        log_p = tensor(0.8807970780, 0.1192029220).log()
        target = (log_p.unsqueeze(-1) + shares).flatten(1)
        outputs = tensor(1, 0, -1, 0)
        approx = outputs.log_softmax(-1)
        assert cross_entropy(target, approx).item() == pytest.approx(1.0697534339, abs=1e-9)
        assert forward_kl(target, approx).item() == pytest.approx(0.1222164699, abs=1e-9)
        by_class = class_logits(outputs, 2).softmax(-1)
        torch.testing.assert_close(by_class, tensor(0.7310585786, 0.2689414214), rtol=0, atol=1e-9)
        conditional = approx.unflatten(1, (2, 2)) - class_logits(approx, 2).unsqueeze(-1)
        split = forward_kl(log_p, class_logits(approx, 2)) + (log_p.exp() * forward_kl(shares, conditional)).sum(-1)
        torch.testing.assert_close(split, forward_kl(target, approx))

    def found(self, **changes) -> Projections:
        return project(self.embeddings, self.labels, W, Config(subclasses=2, **changes), 0)

    def test_subclasses_sum_to_the_class(self):
        shares = self.found().log_shares(self.embeddings, 1.0)
        logits = self.embeddings @ W.T
        sums = subclass_log_targets(shares, logits, 2.0).exp().unflatten(1, (2, 2)).sum(-1)
        torch.testing.assert_close(sums, (logits / 2).softmax(-1), rtol=0, atol=1e-12)

    def test_what_the_logits_see_leaves_the_subclasses_alone(self):
        found = self.found()
        seen, unseen = tensor(5, 0, 0), tensor(0, 0.5, 0.2)
        before = found.log_shares(self.embeddings, 1.0)
        torch.testing.assert_close(found.log_shares(self.embeddings + seen, 1.0), before)
        assert (found.log_shares(self.embeddings + unseen, 1.0) - before).abs().max() > 0.01
        assert float((unseen @ W.T).abs().max()) == 0

    def test_limits_of_the_subclass_temperature_and_of_one_subclass(self):
        found = self.found()
        blurred = found.log_shares(self.embeddings, 1e6).exp()
        torch.testing.assert_close(blurred, torch.full_like(blurred, 0.5), rtol=0, atol=1e-5)
        assert found.log_shares(self.embeddings, 1e-6).exp().amax(-1).min() > 0.99
        one = project(self.embeddings, self.labels, W, Config(subclasses=1), 0)
        logits = self.embeddings @ W.T
        torch.testing.assert_close(
            subclass_log_targets(one.log_shares(self.embeddings, 1.0), logits, 2.0), (logits / 2).log_softmax(-1)
        )

    def test_a_haar_rotation_shares_out_the_variance(self):
        generator = torch.Generator().manual_seed(0)
        variances = torch.tensor([8.0, 4, 2, 1]).double()
        rotations = torch.stack([random_rotation(4, generator) for _ in range(4000)])
        shared = (rotations.square() * variances).sum(-1).mean(0)
        torch.testing.assert_close(shared, torch.full_like(shared, 3.75), rtol=0.02, atol=0)
        torch.testing.assert_close(rotations @ rotations.mT, torch.eye(4).double().expand(4000, 4, 4))

    def test_rotations_come_from_the_seed(self):
        first, same = self.found(), self.found()
        other = project(self.embeddings, self.labels, W, Config(subclasses=2), 1)
        assert torch.equal(first.directions, same.directions)
        assert not torch.equal(first.directions, other.directions)
        plain = self.found(rotate=False)
        torch.testing.assert_close(plain.directions[0], rows((0, 1, 0), (0, 0, 1)))

    def test_the_sign_of_a_direction_changes_subclasses_and_not_the_law_of_losses(self):
        """Features mirrored along a principal direction are its other sign; seeds average over it."""
        mirrored, outputs = self.embeddings * tensor(1, -1, 1), tensor(1, 0, -1, 0.5)

        def losses(embeddings: Tensor, seeds: range, **changes) -> Tensor:
            settings = Config(subclasses=2, **changes)
            found = [project(embeddings, self.labels, W, settings, seed).log_shares(embeddings, 1.0) for seed in seeds]
            targets = torch.stack([subclass_log_targets(shares, embeddings @ W.T, 2.0) for shares in found])
            return forward_kl(targets, outputs.log_softmax(-1).expand_as(targets))[:, 0]

        fixed = [losses(features, range(1), rotate=False) for features in (self.embeddings, mirrored)]
        assert abs(float(fixed[0] - fixed[1])) > 1e-3
        first, second = losses(self.embeddings, range(400)), losses(mirrored, range(400, 800))
        error = float((first.var() / 400 + second.var() / 400).sqrt())
        assert error > 0
        assert abs(float(first.mean() - second.mean())) < 4 * error

    def test_standardised_coordinates_do_not_depend_on_the_scale_of_features(self):
        shares = self.found().log_shares(self.embeddings, 1.0)
        larger = project(10 * self.embeddings, self.labels, W, Config(subclasses=2), 0)
        torch.testing.assert_close(larger.log_shares(10 * self.embeddings, 1.0), shares)

    def test_too_few_directions_are_refused_by_class(self):
        with pytest.raises(ValueError, match=r"class 0: .* 2 directions with variance, 3 subclasses need 3"):
            project(self.embeddings, self.labels, W, Config(subclasses=3), 0)
