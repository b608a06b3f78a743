"""OPL, the Z-loss with its factored layer, and the harmonic loss against worked numbers and their identities."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from logit_batches import batches, few, tensor
from torch import Tensor

from relent.methods.representation.harmonic import Config as HarmonicConfig
from relent.methods.representation.harmonic import HarmonicHead, distances, harmonic_logits
from relent.methods.representation.opl import opl_loss
from relent.methods.representation.z_loss import (
    FactoredOutputLayer,
    spherical_softmax_loss,
    squared_error_loss,
    taylor_softmax_loss,
    z_loss,
)
from relent.scores.features import pair_similarities


def rows(*values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gradient(loss, *values: Tensor) -> tuple[Tensor, ...]:
    leaves = [value.clone().requires_grad_() for value in values]
    return torch.autograd.grad(loss(*leaves), leaves)


FORMS = ("signed", "mean_abs", "abs_mean")


class TestOPL:
    features, labels = rows((1, 0), (0.6, 0.8), (0, 2), (-1, 0)), torch.tensor([0, 0, 1, 1])

    @pytest.mark.parametrize(
        ("form", "gamma", "d", "loss"),
        [
            ("signed", 0.5, -0.2, 0.6),
            ("mean_abs", 0.5, 0.6, 1.0),
            ("abs_mean", 0.5, 0.2, 0.8),
            ("mean_abs", 2, 0.6, 1.9),
        ],
    )
    def test_worked_example(self, form, gamma, d, loss):
        same, different = pair_similarities(self.features, self.labels, form)
        assert same.item() == pytest.approx(0.3, abs=2e-6)
        assert different.item() == pytest.approx(d, abs=2e-6)
        assert opl_loss(self.features, self.labels, gamma, form).item() == pytest.approx(loss, abs=2e-6)

    @pytest.mark.parametrize("form", FORMS)
    def test_the_perfect_geometry_costs_nothing(self, form):
        features = rows((1, 0), (3, 0), (0, 1), (0, 2))
        assert opl_loss(features, self.labels, 0.5, form).item() == pytest.approx(0, abs=1e-6)

    def test_the_signed_form_prefers_a_simplex_to_orthogonality(self):
        angles = torch.tensor([0, 0, 1, 1, 2, 2]) * 2 * math.pi / 3
        features = torch.stack([angles.cos(), angles.sin()], -1).double()
        labels = torch.tensor([0, 0, 1, 1, 2, 2])
        assert opl_loss(features, labels, 0.5, "signed").item() == pytest.approx(-0.25, abs=2e-6)
        assert opl_loss(features, labels, 0.5, "mean_abs").item() == pytest.approx(0.25, abs=2e-6)

    @few
    @given(batches())
    def test_invariances(self, batch):
        features, _, labels = batch
        found = opl_loss(features, labels)
        generator = torch.Generator().manual_seed(0)
        scales = torch.rand(len(features), 1, generator=generator).double() + 0.1
        torch.testing.assert_close(opl_loss(scales * features, labels), found, rtol=1e-9, atol=1e-9)
        rotation = torch.linalg.qr(torch.randn(features.shape[1], features.shape[1], generator=generator).double())[0]
        torch.testing.assert_close(opl_loss(features @ rotation, labels), found, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(opl_loss(features.flip(0), labels.flip(0)), found, rtol=1e-9, atol=1e-9)
        positive = [opl_loss(features.abs(), labels, 0.5, form) for form in FORMS]
        torch.testing.assert_close(positive[0], positive[1])
        torch.testing.assert_close(positive[0], positive[2])
        (by_features,) = gradient(lambda f: opl_loss(f, labels), features)
        assert (features * by_features).sum(-1).abs().max() < 1e-9

    def test_batches_without_one_kind_of_pair(self):
        one = opl_loss(self.features, torch.zeros(4, dtype=torch.long), 0.5)
        assert one.item() == pytest.approx(1 - pair_similarities(self.features, torch.zeros(4)).same.item())
        all_different = opl_loss(self.features, torch.arange(4), 0.5, "signed")
        d = pair_similarities(self.features, torch.arange(4), "signed").different
        assert all_different.item() == pytest.approx(1 + 0.5 * d.item())
        assert opl_loss(self.features[:1], self.labels[:1]).item() == 1

    def test_a_zero_row_gets_no_gradient_and_leaves_the_others_theirs(self):
        features = torch.cat([self.features, torch.zeros(1, 2).double()])
        labels = torch.tensor([0, 0, 1, 1, 0])
        (found,) = gradient(lambda f: opl_loss(f, labels, 0.5), features)
        assert found[-1].abs().max() == 0
        tiny = features.clone()
        tiny[-1] = 1e-9 * torch.ones(2)
        assert bool(found.isfinite().all())
        assert gradient(lambda f: opl_loss(f, labels, 0.5), tiny)[0].isfinite().all()

    @pytest.mark.parametrize("form", FORMS)
    def test_equal_features_cost_gamma(self, form):
        assert opl_loss(torch.ones(4, 3).double(), self.labels, 0.7, form).item() == pytest.approx(0.7, abs=2e-6)


OUTPUTS, TARGET = tensor(2, 1, 0, -1), torch.tensor([0])


class TestZLoss:
    @pytest.mark.parametrize(
        ("label", "a", "b", "expected"),
        [
            (0, 1, 0, 0.2322352071),
            (0, 1, 1, 0.5368461838),
            (0, 2, 1, 0.2043822351),
            (0, 0.1, 10, 12.1698544181),
            (3, 1, 1, 2.4334628123),
            (3, 1, 0, 1.5738759936),
        ],
    )
    def test_worked_example(self, label, a, b, expected):
        assert z_loss(OUTPUTS, torch.tensor([label]), a, b).item() == pytest.approx(expected, abs=1e-9)

    def test_worked_gradients(self):
        (found,) = gradient(lambda o: z_loss(o, TARGET, 1, 1).sum(), OUTPUTS)
        expected = tensor(-0.1114664589, 0.1486219452, 0.0371554863, -0.0743109726)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        (found,) = gradient(lambda o: z_loss(o, TARGET).sum(), OUTPUTS)
        expected = tensor(-0.0556084243, 0.0741445657, 0.0185361414, -0.0370722828)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)

    @few
    @given(batches(least_classes=3))
    def test_shift_and_scale(self, batch):
        outputs, labels = batch.student + torch.arange(batch.student.shape[1]), batch.labels
        found = z_loss(outputs, labels, 0.7, 0.5)
        torch.testing.assert_close(z_loss(3 * outputs - 7, labels, 0.7, 0.5), found, rtol=1e-6, atol=1e-9)
        (by_outputs,) = gradient(lambda o: z_loss(o, labels, 0.7, 0.5).sum(), outputs)
        assert by_outputs.sum(-1).abs().max() < 1e-9 * by_outputs.abs().max() + 1e-12
        assert (outputs * by_outputs).sum(-1).abs().max() < 1e-8
        lowest = F.softplus(torch.tensor(0.7 * (0.5 - (outputs.shape[1] - 1) ** 0.5))) / 0.7
        assert bool((found >= lowest - 1e-6).all())

    def test_the_minimum_is_at_a_one_hot_output(self):
        hot = tensor(1, 0, 0, 0)
        assert z_loss(hot, TARGET).item() == pytest.approx(0.1629018815, abs=1e-9)
        assert gradient(lambda o: z_loss(o, TARGET).sum(), hot)[0].abs().max() < 1e-9

    def test_limits(self):
        assert z_loss(OUTPUTS, TARGET, 50, 2).item() == pytest.approx(2 - 1.3416407865, abs=0.02)
        line = z_loss(OUTPUTS, TARGET, 1e-6, 2).item() - math.log(2) / 1e-6
        assert line == pytest.approx((2 - 1.3416407865) / 2, abs=1e-4)
        (found,) = gradient(lambda o: z_loss(o, TARGET).sum(), tensor(2, -1))
        assert found.abs().max() < 1e-9

    def test_equal_outputs_are_finite(self):
        equal = tensor(1, 1, 1, 1)
        assert z_loss(equal, TARGET, 1, 1).item() == pytest.approx(math.log1p(math.e), abs=1e-9)
        (found,) = gradient(lambda o: z_loss(o, TARGET).sum(), equal)
        torch.testing.assert_close(found, tensor(-375000, 125000, 125000, 125000), rtol=1e-6, atol=0)

    def test_large_float32_outputs_keep_their_variance(self):
        outputs = 1000 + 0.01 * torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
        found = z_loss(outputs, TARGET, 1, 1)
        torch.testing.assert_close(found.double(), z_loss(outputs.double(), TARGET, 1, 1), rtol=1e-2, atol=1e-3)

    def test_the_others_of_the_family(self):
        assert taylor_softmax_loss(OUTPUTS, TARGET).item() == pytest.approx(0.5877866649, abs=1e-9)
        assert spherical_softmax_loss(OUTPUTS, TARGET).item() == pytest.approx(0.4453110167, abs=1e-9)
        assert squared_error_loss(OUTPUTS, TARGET).item() == pytest.approx(3)
        expected = (OUTPUTS - tensor(1, 0, 0, 0)).square().sum()
        torch.testing.assert_close(squared_error_loss(OUTPUTS, TARGET).sum(), expected)

    @pytest.mark.parametrize("fold_every", [3, 1000])
    def test_the_factored_layer_makes_the_dense_steps(self, fold_every):
        """The loss, the gradient by the features and the weights after each of twenty SGD steps, with equal labels."""
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(50, 7, generator=generator, dtype=torch.float64)
        layer, dense = FactoredOutputLayer(weight, fold_every), weight.clone()
        for _ in range(20):
            features = torch.randn(9, 7, generator=generator, dtype=torch.float64)
            labels = torch.randint(50, (9,), generator=generator)
            labels[1] = labels[0]
            loss = lambda w, h: z_loss(h @ w.T, labels, 0.7, 2.0).mean()  # noqa: E731, B023
            by_weight, by_features = gradient(loss, dense, features)
            expected = loss(dense, features)
            found, by_features_found = layer.z_loss_step(features, labels, 0.7, 2.0, rate=0.5)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
            torch.testing.assert_close(by_features_found, by_features, rtol=1e-8, atol=1e-10)
            dense = dense - 0.5 * by_weight
            torch.testing.assert_close(layer.weight, dense, rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(layer.gram, dense.T @ dense, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(layer.column_sums, dense.sum(0), rtol=1e-9, atol=1e-9)


PROTOTYPES, X = rows((1, 0), (0, 1), (-1, 0)), tensor(0.8, 0.6)


def loss_of(distance: str, exponent: float, label: int = 0, x: Tensor = X) -> float:
    logits = harmonic_logits(distances(x, PROTOTYPES, distance), exponent)
    return -logits.log_softmax(-1)[0, label].item()


class TestHarmonic:
    @pytest.mark.parametrize(
        ("distance", "exponent", "label", "expected"),
        [
            ("euclidean", 1, 0, 0.7131655270),
            ("euclidean", 2, 0, 0.4769240721),
            ("euclidean", 4, 0, 0.2329716436),
            ("cosine", 1, 0, 0.4769240721),
            ("cosine", 1, 1, 1.1700712527),
            ("cosine", 2, 0, 0.2329716436),
            ("manhattan", 1, 0, math.log(2)),
            ("bray_curtis", 1, 1, math.log(3)),
        ],
    )
    def test_worked_examples(self, distance, exponent, label, expected):
        assert loss_of(distance, exponent, label) == pytest.approx(expected, abs=5e-9)

    def test_distances_are_those_of_scipy(self):
        from scipy.spatial.distance import cdist

        generator = torch.Generator().manual_seed(0)
        u, v = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64)
        for ours, theirs, more in (
            ("euclidean", "euclidean", {}),
            ("manhattan", "cityblock", {}),
            ("minkowski", "minkowski", {"p": 1.5}),
            ("cosine", "cosine", {}),
            ("chebyshev", "chebyshev", {}),
            ("canberra", "canberra", {}),
        ):
            expected = torch.from_numpy(cdist(u.numpy(), v.numpy(), theirs, **more))
            torch.testing.assert_close(distances(u, v, ours), expected, rtol=1e-7, atol=1e-9)

    def test_mahalanobis(self):
        head = HarmonicHead(2, 3, HarmonicConfig(distance="mahalanobis_diagonal", exponent=1)).double()
        with torch.no_grad():
            head.weight.copy_(PROTOTYPES)
            plain = head(X).softmax(-1)
            head.log_scale.copy_(torch.tensor([4.0, 1.0]).log())
            scaled = head(X).softmax(-1)
        expected = harmonic_logits(distances(X, PROTOTYPES, "euclidean"), 1).softmax(-1)
        torch.testing.assert_close(plain, expected)
        torch.testing.assert_close(scaled, tensor(0.6116880213, 0.2674528287, 0.1208591499), rtol=0, atol=1e-9)
        full = HarmonicHead(2, 3, HarmonicConfig(distance="mahalanobis_cholesky", exponent=1)).double()
        with torch.no_grad():
            full.weight.copy_(PROTOTYPES)
            full.factor.copy_(torch.tensor([[2.0, 9.0], [0.5, 1.0]]))  # what lies above the diagonal is not used
            lower = torch.tensor([[2.0, 0.0], [0.5, 1.0]]).double()
            gap = X - PROTOTYPES
            squares = ((gap @ (lower @ lower.T)) * gap).sum(-1)
            torch.testing.assert_close(full(X)[0], -0.5 * (squares + 1e-12).log())

    def test_gradient_by_the_feature(self):
        (found,) = gradient(
            lambda x: F.cross_entropy(harmonic_logits(distances(x, PROTOTYPES, "euclidean"), 2), TARGET), X
        )
        torch.testing.assert_close(found, tensor(-1.0689655172, 1.4252873563), rtol=0, atol=1e-8)

    @pytest.mark.parametrize("distance", ["euclidean", "manhattan", "minkowski", "cosine", "canberra", "bray_curtis"])
    def test_scale_invariance_and_the_nearest_prototype_wins(self, distance):
        generator = torch.Generator().manual_seed(0)
        x, w = torch.randn(6, 3, generator=generator).double(), torch.randn(4, 3, generator=generator).double()
        gaps = distances(x, w, distance)
        logits = harmonic_logits(gaps, 3)
        scaled = harmonic_logits(distances(2.5 * x, 2.5 * w, distance), 3)
        torch.testing.assert_close(scaled.softmax(-1), logits.softmax(-1), rtol=1e-6, atol=1e-8)
        assert torch.equal(logits.argmax(-1), gaps.argmin(-1))

    @pytest.mark.parametrize("distance", ["euclidean", "manhattan", "cosine", "canberra", "hamming"])
    def test_first_and_second_derivatives(self, distance):
        """The second ones are what the sharpness of the loss needs."""
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(3, 4, generator=generator, dtype=torch.float64).requires_grad_()
        w = torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(lambda a, b: distances(a, b, distance), (x, w))
        assert torch.autograd.gradgradcheck(lambda a, b: distances(a, b, distance), (x, w))

    def test_translation(self):
        moved = {d: loss_of(d, 2) for d in ("euclidean", "manhattan")}
        for distance, value in moved.items():
            logits = harmonic_logits(distances(X + 3, PROTOTYPES + 3, distance), 2)
            assert -logits.log_softmax(-1)[0, 0].item() == pytest.approx(value, abs=1e-9)

    @pytest.mark.parametrize(
        "distance", ["euclidean", "manhattan", "minkowski", "cosine", "chebyshev", "canberra", "bray_curtis", "hamming"]
    )
    def test_on_a_prototype_loss_and_gradient_are_finite(self, distance):
        on = PROTOTYPES[:1].clone().requires_grad_()
        loss = F.cross_entropy(harmonic_logits(distances(on, PROTOTYPES, distance), 2), TARGET)
        (found,) = torch.autograd.grad(loss, on)
        assert bool(found.isfinite().all())
        assert loss.item() < 1e-6
        if distance == "euclidean":
            assert loss.item() < 1e-11

    def test_small_exponents_are_uniform(self):
        assert loss_of("euclidean", 1e-9) == pytest.approx(math.log(3), abs=1e-8)

    def test_an_unknown_distance_is_refused(self):
        with pytest.raises(ValueError, match="'euclid' is unknown"):
            distances(X, PROTOTYPES, "euclid")
