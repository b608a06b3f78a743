from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from relent.divergences import discrete, logits

X = torch.tensor([[2.0, 1, 0, -1]], dtype=torch.float64)
U = torch.tensor([[3.0, 0, 1, 0]], dtype=torch.float64)
Y = torch.tensor([0])


def test_target_and_non_target_split_by_numbers() -> None:
    split = logits.binary_target_log_probs(U, Y)
    assert split.exp()[0, 0].item() == pytest.approx(0.8097759915, abs=1e-10)
    assert logits.binary_target_log_probs(X, Y)[0, 0].item() == pytest.approx(-0.4401896986, abs=1e-10)
    teacher, student = logits.non_target_log_probs(U, Y), logits.non_target_log_probs(X, Y)
    assert teacher.exp()[0].tolist() == pytest.approx([0.2119415576, 0.5761168848, 0.2119415576], abs=1e-10)
    assert student.exp()[0].tolist() == pytest.approx([0.6652409558, 0.2447284711, 0.0900305732], abs=1e-10)
    assert discrete.cross_entropy(teacher, student).item() == pytest.approx(1.4076059644, abs=1e-10)


@pytest.mark.parametrize("label", [0, 1, 2, 3])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_decomposes_into_target_and_non_target(label: int, temperature: float) -> None:
    """Zhao et al. (DKD), equation 5: KL = TCKD + (1 − p_y) NCKD."""
    y = torch.tensor([label])
    full = discrete.from_logits(discrete.forward_kl, U, X, temperature=temperature)
    binary = [logits.binary_target_log_probs(z, y, temperature) for z in (U, X)]
    others = [logits.non_target_log_probs(z, y, temperature) for z in (U, X)]
    parts = discrete.forward_kl(*binary) + binary[0][:, 1].exp() * discrete.forward_kl(*others)
    torch.testing.assert_close(parts, full, atol=1e-12, rtol=0)


@given(st.integers(0, 4), st.integers(2, 5))
@settings(max_examples=25, deadline=None)
def test_dropping_the_target_keeps_the_order(label: int, classes: int) -> None:
    label = label % classes
    values = torch.arange(float(classes)).repeat(3, 1)
    kept = logits.non_target_logits(values, torch.full((3,), label))
    assert kept[1].tolist() == [float(i) for i in range(classes) if i != label]


def test_gradient_at_a_logit_gap_where_masking_breaks() -> None:
    """Softmax, add −1000 to the target, log: NaN gradient at a gap of 90, infinite loss at 110 (float32)."""
    student = torch.tensor([[110.0, 0.0, 5.0]], requires_grad=True)
    masked = torch.log(torch.softmax(student, -1) * torch.tensor([[0.0, 1.0, 1.0]]))
    assert not torch.isfinite(masked).all()
    for gap in (90.0, 110.0, 1e4):
        student = torch.tensor([[gap, 0.0, 5.0]], requires_grad=True)
        teacher = torch.tensor([[0.0, 3.0, -gap]])
        loss = discrete.forward_kl(
            logits.binary_target_log_probs(teacher, Y), logits.binary_target_log_probs(student, Y)
        )
        loss = loss + discrete.forward_kl(
            logits.non_target_log_probs(teacher, Y), logits.non_target_log_probs(student, Y)
        )
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert torch.isfinite(student.grad).all()


def test_non_target_part_ignores_the_target_logit() -> None:
    student = X.clone().requires_grad_()
    teacher = logits.non_target_log_probs(U, Y)
    loss = discrete.cross_entropy(teacher, logits.non_target_log_probs(student, Y))
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    expected = torch.tensor([[0.0, 0.4532993982, -0.3313884137, -0.1219109844]], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected, atol=1e-9, rtol=0)


@given(st.integers(2, 6), st.integers(0, 2**16), st.sampled_from([1.0, 4.0]))
@settings(max_examples=25, deadline=None)
def test_the_other_classes_in_place_are_the_non_targets_with_a_hole(
    classes: int, seed: int, temperature: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(7, classes, dtype=torch.float64, generator=generator, requires_grad=True)
    teacher = torch.randn(7, classes, dtype=torch.float64, generator=generator)
    y = torch.randint(classes, (7,), generator=generator)
    found = logits.other_class_log_probs(scores, y, temperature)
    dropped = logits.non_target_log_probs(scores, y, temperature)
    assert bool((found.gather(1, y[:, None]) == -math.inf).all())
    torch.testing.assert_close(logits.non_target_logits(found, y), dropped, atol=1e-14, rtol=0)
    for divergence in (discrete.forward_kl, discrete.reverse_kl, discrete.cross_entropy):
        pairs = [
            divergence(of(teacher, y, temperature), of(scores, y, temperature)).sum()
            for of in (logits.other_class_log_probs, logits.non_target_log_probs)
        ]
        torch.testing.assert_close(*pairs, atol=1e-12, rtol=1e-12)
        gradients = [torch.autograd.grad(value, scores)[0] for value in pairs]
        torch.testing.assert_close(*gradients, atol=1e-13, rtol=1e-12)
        assert bool((gradients[0].gather(1, y[:, None]) == 0).all())


def test_temperature() -> None:
    torch.testing.assert_close(logits.tempered_log_probs(X, 2.0), torch.log_softmax(X / 2, -1))
    torch.testing.assert_close(logits.tempered_log_probs(torch.log_softmax(X, -1), 2.0), torch.log_softmax(X / 2, -1))
    both = logits.tempered_log_probs(torch.cat((X, X)), torch.tensor([[1.0], [2.0]], dtype=torch.float64))
    torch.testing.assert_close(both[1:], torch.log_softmax(X / 2, -1))
    assert logits.tempered_log_probs(X.half()).dtype == torch.float32
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="positive finite"):
            logits.tempered_log_probs(X, bad)
    with pytest.raises(ValueError, match="'tau' is unknown"):
        logits.temperature_factor(2.0, "tau")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one class"):
        logits.tempered_log_probs(torch.zeros(3, 0))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_cross_entropy_equals_torch(smoothing: float, rng: torch.Generator) -> None:
    scores = torch.randn(6, 4, generator=rng, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, -100, 1])
    mask = labels >= 0
    ours = logits.label_cross_entropy(
        labels, torch.log_softmax(scores, -1), label_smoothing=smoothing, mask=mask, reduction="mean"
    )
    torch.testing.assert_close(ours, F.cross_entropy(scores, labels, label_smoothing=smoothing))
    soft = (1 - smoothing) * F.one_hot(labels[mask], 4) + smoothing / 4
    kept = torch.log_softmax(scores, -1)[mask]
    torch.testing.assert_close(
        logits.label_cross_entropy(labels[mask], kept, label_smoothing=smoothing),
        discrete.cross_entropy(soft.log(), kept),
    )


def test_label_cross_entropy_of_an_impossible_class() -> None:
    log_probs = torch.tensor([[0.0, -math.inf]])
    assert logits.label_cross_entropy(torch.tensor([0]), log_probs).item() == 0.0
    assert logits.label_cross_entropy(torch.tensor([1]), log_probs).item() == math.inf
    assert logits.label_cross_entropy(torch.tensor([0]), log_probs, label_smoothing=0.1).item() == math.inf


def test_label_errors() -> None:
    with pytest.raises(TypeError, match="integer dtype"):
        logits.label_cross_entropy(torch.tensor([0.0]), X)
    with pytest.raises(ValueError, match="one label for each"):
        logits.non_target_logits(X, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="at least two classes"):
        logits.non_target_logits(torch.zeros(1, 1), Y)
    with pytest.raises(ValueError, match="at least two classes"):
        logits.other_class_log_probs(torch.zeros(1, 1), Y)
    with pytest.raises(ValueError, match=r"\[0, 1\], got 1.5"):
        logits.label_cross_entropy(Y, X, label_smoothing=1.5)
    with pytest.raises(ValueError, match="between 1 and the number of classes 4, got 5"):
        logits.top_k_classes(X, 5)


def test_check_normalised() -> None:
    logits.check_normalised(torch.log_softmax(X, -1))
    logits.check_normalised(torch.log_softmax(X.float(), -1).bfloat16())
    logits.check_normalised(torch.tensor([0.0, -math.inf]))
    with pytest.raises(ValueError, match=r"teacher are not normalised: 1 of 1 .* exp\(2\.44"):
        logits.check_normalised(X, name="teacher")
    with pytest.raises(ValueError, match="not normalised"):
        logits.check_normalised(torch.full((3,), math.nan))
    with pytest.raises(ValueError, match="not normalised"):
        logits.check_normalised(torch.full((3,), -math.inf))


def test_log_space_helpers_at_infinity() -> None:
    nothing = torch.full((2, 3), -math.inf, dtype=torch.float64, requires_grad=True)
    total = logits.log_sum_exp(nothing)
    assert (total == -math.inf).all()
    mixed = logits.log_mixture(nothing, nothing, 0.3)
    assert (mixed == -math.inf).all()
    sums = torch.where(torch.isinf(mixed), 0.0, mixed).sum() + torch.where(torch.isinf(total), 0.0, total).sum()
    assert torch.isfinite(torch.autograd.grad(sums, nothing)[0]).all()
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        logits.log_mixture(X, U, -0.1)
    assert logits.log_mixture(X, U, 1.0) is X


def test_log_mixture_against_logaddexp_and_second_order() -> None:
    a, b = X.clone().requires_grad_(), U.clone().requires_grad_()
    expected = torch.logaddexp(a + math.log(0.3), b + math.log(0.7))
    torch.testing.assert_close(logits.log_mixture(a, b, 0.3), expected, atol=1e-14, rtol=0)
    assert torch.autograd.gradgradcheck(lambda x, y: logits.log_mixture(x, y, 0.3), (a, b))
    far = torch.tensor([1e4, -1e4], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(logits.log_mixture(far, far.flip(0), 0.3).sum(), far, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.square().sum(), far)
    assert torch.isfinite(curvature).all()


def test_vmap_over_labels() -> None:
    scores = torch.randn(5, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0])
    mapped = torch.func.vmap(logits.non_target_logits)(scores, labels)
    torch.testing.assert_close(mapped, logits.non_target_logits(scores, labels), rtol=0, atol=0)
    mapped = torch.func.vmap(lambda z: logits.top_k_classes(z, 2))(scores)
    assert (mapped == logits.top_k_classes(scores, 2)).all()
