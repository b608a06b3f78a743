"""Fused losses against the plain form: values, every gradient, odd sizes, masks, extremes, half precision, memory."""

import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from relent.divergences import discrete
from relent.divergences.fused import (
    OutputHead,
    engine,
    fused_cross_entropy,
    fused_forward_kl,
    fused_jensen_shannon,
    fused_reverse_kl,
    fused_token_log_probs,
    fused_top_k_forward_kl,
)
from relent.divergences.logits import label_cross_entropy, tempered_log_probs
from relent.divergences.reduction import reduce

REDUCTIONS = ["none", "sum", "mean", "sequence_mean", "sequence_sum"]
LOSSES = ["cross_entropy", "smoothed", "z_loss", "forward_kl", "reverse_kl", "jensen_shannon"]
TOP_K = ["drop", "renormalise", "bucket"]


def heads(shape=(3, 7), vocabulary=41, width=5, target_width=4, *, seed=0, dtype=torch.float64, spread=1.0):
    g = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return (torch.randn(*size, generator=g, dtype=torch.float64) * spread).to(dtype)

    target = OutputHead(draw(*shape, target_width), draw(vocabulary, target_width), draw(vocabulary))
    approx = OutputHead(draw(*shape, width), draw(vocabulary, width), draw(vocabulary))
    return target, OutputHead(*(part.requires_grad_() for part in approx))


def logits_of(head):
    return torch.nn.functional.linear(*head)


def top_k(target, k, temperature=1.0):
    log_probs, indices = tempered_log_probs(logits_of(target), temperature).topk(k, dim=-1)
    return indices, log_probs


def labels_for(target):
    return logits_of(target).argmax(-1)


def fused(name, target, approx, **options):
    if name in TOP_K:
        return fused_top_k_forward_kl(*top_k(target, 5, options.get("temperature", 1.0)), approx, rest=name, **options)
    if name == "cross_entropy":
        return fused_cross_entropy(labels_for(target), approx, **options)
    if name == "smoothed":
        return fused_cross_entropy(labels_for(target), approx, label_smoothing=0.1, **options)
    if name == "z_loss":
        return fused_cross_entropy(labels_for(target), approx, label_smoothing=0.1, z_loss=1e-2, **options)
    if name == "forward_kl":
        return fused_forward_kl(target, approx, **options)
    if name == "reverse_kl":
        return fused_reverse_kl(target, approx, **options)
    return fused_jensen_shannon(target, approx, beta=0.3, **options)


def plain(name, target, approx, *, temperature=1.0, scale="none", mask=None, reduction="mean"):
    """The same loss through the whole matrix of logits and the package's plain divergences."""
    factor = temperature**2 if scale == "tau_squared" else 1.0
    logits = logits_of(approx) / temperature
    lq, lp = torch.log_softmax(logits, -1), tempered_log_probs(logits_of(target), temperature)
    if name in TOP_K:
        items = discrete.top_k_forward_kl(lp, lq, 5, rest=name)
    elif name in ("cross_entropy", "smoothed", "z_loss"):
        items = label_cross_entropy(labels_for(target), lq, label_smoothing=0.0 if name == "cross_entropy" else 0.1)
        if name == "z_loss":
            items = items + 1e-2 * logits.logsumexp(-1).square()
    elif name == "jensen_shannon":
        items = discrete.jensen_shannon(lp, lq, beta=0.3)
    else:
        items = getattr(discrete, name)(lp, lq)
    return reduce(factor * items, mask, reduction)


def assert_same(name, target, approx, *, chunk_tokens=None, tolerance=1e-10, **options):
    got = fused(name, target, approx, chunk_tokens=chunk_tokens, **options)
    want = plain(name, target, approx, **options)
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance)
    upstream = torch.randn(got.shape, dtype=got.dtype, generator=torch.Generator().manual_seed(1))
    parts = [part for part in approx if part is not None and part.requires_grad]
    grads = [torch.autograd.grad(value, parts, upstream) for value in (got, want)]
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", LOSSES + TOP_K)
def test_equals_plain_form_with_mask_and_temperature(name, reduction):
    target, approx = heads()
    mask = torch.rand(3, 7, generator=torch.Generator().manual_seed(3)) > 0.3
    for options in ({}, {"mask": mask, "temperature": 2.5, "scale": "tau_squared"}):
        assert_same(name, target, approx, reduction=reduction, chunk_tokens=4, **options)


@pytest.mark.parametrize("vocabulary", [41, 401, 1271])
@pytest.mark.parametrize("name", LOSSES + TOP_K)
def test_odd_sizes_and_blocks(name, vocabulary, monkeypatch):
    monkeypatch.setattr(engine, "_BLOCK_ELEMENTS", 3 * vocabulary)  # three rows at a time, the last block shorter
    target, approx = heads((41,), vocabulary, 13, 7)
    for chunk in (1, 7, 41, 1000, None):
        assert_same(name, target, approx, chunk_tokens=chunk)


@given(
    st.sampled_from(LOSSES + TOP_K),
    st.integers(1, 12),
    st.integers(5, 60),
    st.integers(1, 13),
    st.integers(0, 10_000),
    st.floats(0.2, 5.0),
)
@settings(max_examples=40, deadline=None)
def test_equals_plain_form_for_any_size(name, tokens, vocabulary, chunk, seed, temperature):
    target, approx = heads((tokens,), vocabulary, 3, 6, seed=seed)
    assert_same(name, target, approx, chunk_tokens=chunk, temperature=temperature)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("name", LOSSES + TOP_K)
def test_gradcheck(name, reduction):
    target, approx = heads((5,), 11, 3, 4)

    def loss(hidden, weight, bias):
        return fused(
            name, target, OutputHead(hidden, weight, bias), reduction=reduction, chunk_tokens=2, temperature=1.3
        )

    assert torch.autograd.gradcheck(loss, tuple(approx))


@pytest.mark.parametrize("frozen", [(), (1, 2), (0,), (0, 2)])
def test_frozen_parts_get_no_gradient(frozen):
    target, approx = heads()
    approx = OutputHead(*(part.detach() if i in frozen else part for i, part in enumerate(approx)))
    assert_same("forward_kl", target, approx, chunk_tokens=4)
    assert_same("forward_kl", target, approx, chunk_tokens=4, reduction="none")
    fused_forward_kl(target, approx).backward()
    assert [part.grad is None for part in approx] == [i in frozen for i in range(3)]


def test_target_receives_no_gradient():
    target, approx = heads()
    target = OutputHead(*(part.requires_grad_() for part in target))
    fused_forward_kl(target, approx).backward()
    assert all(part.grad is None for part in target)


def test_without_bias_and_without_gradient():
    target, approx = heads()
    target, approx = target._replace(bias=None), approx._replace(bias=None)
    assert_same("reverse_kl", target, approx, chunk_tokens=4)
    with torch.no_grad():
        value = fused_reverse_kl(target, approx)
    assert not value.requires_grad
    torch.testing.assert_close(value, plain("reverse_kl", target, approx))


@pytest.mark.parametrize("name", LOSSES + TOP_K)
def test_padding_changes_nothing_and_may_hold_nan(name):
    target, approx = heads((2, 6))
    wide_target, wide = (
        head._replace(hidden=torch.cat((head.hidden, torch.full((2, 9, head.hidden.shape[-1]), math.nan)), 1))
        for head in (target, approx)
    )
    mask = torch.arange(15).expand(2, 15) < 6
    wide_target = wide_target._replace(hidden=wide_target.hidden.nan_to_num())
    value, padded = fused(name, target, approx), fused(name, wide_target, wide, mask=mask)
    torch.testing.assert_close(value, padded, rtol=0, atol=1e-12)
    narrow_grad, wide_grad = torch.autograd.grad(value, approx.weight)[0], torch.autograd.grad(padded, approx.weight)[0]
    torch.testing.assert_close(narrow_grad, wide_grad, rtol=0, atol=1e-12)


def test_ignored_labels_may_lie_outside_the_vocabulary():
    target, approx = heads()
    labels = labels_for(target)
    labels[0, :3] = -100
    mask = labels != -100
    want = torch.nn.functional.cross_entropy(logits_of(approx).flatten(0, 1), labels.flatten())
    torch.testing.assert_close(fused_cross_entropy(labels, approx, mask=mask), want, rtol=0, atol=1e-12)


def test_token_log_probs_of_sequences():
    target, approx = heads()
    tokens = labels_for(target)
    mask = torch.arange(7).expand(3, 7) < torch.tensor([[7], [4], [1]])
    want = torch.distributions.Categorical(logits=logits_of(approx) / 0.7).log_prob(tokens)
    got = fused_token_log_probs(tokens, approx, temperature=0.7, mask=mask, chunk_tokens=4)
    torch.testing.assert_close(got, want * mask, rtol=0, atol=1e-12)
    advantages = torch.randn(3, 7, dtype=torch.float64)
    grads = [torch.autograd.grad((value * advantages * mask).sum(), approx) for value in (got, want)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-10)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES + TOP_K)
def test_logits_of_ten_thousand(name, dtype, reduction):
    target, approx = heads((9,), 23, dtype=dtype)
    target, approx = (
        head._replace(hidden=(head.hidden.detach() * 3e3).requires_grad_(head.hidden.requires_grad))
        for head in (target, approx)
    )
    assert logits_of(approx).abs().max() > 1e4
    value = fused(name, target, approx, reduction=reduction)
    grads = torch.autograd.grad(value.sum(), approx)
    assert value.isfinite().all()
    assert all(g.isfinite().all() for g in grads)
    if dtype == torch.float64:
        torch.testing.assert_close(value, plain(name, target, approx, reduction=reduction), rtol=1e-12, atol=1e-9)
    if name == "jensen_shannon":
        assert value.max() <= -(0.3 * math.log(0.3) + 0.7 * math.log(0.7)) + 1e-6


def test_identical_heads_have_no_divergence_and_no_gradient():
    target, _ = heads(dtype=torch.float32, spread=3.0)
    approx = OutputHead(*(part.clone().requires_grad_() for part in target))
    for name in ("forward_kl", "reverse_kl", "jensen_shannon"):
        value = fused(name, target, approx)
        assert abs(value.item()) < 1e-6
        assert all(g.abs().max() < 1e-6 for g in torch.autograd.grad(value, approx))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES + TOP_K)
def test_half_precision_rounds_only_its_inputs_and_gradients(name, dtype):
    """The value is that of the rounded inputs in exact arithmetic, to float32; gradients are rounded once."""
    target, approx = heads((64,), 401, 32, 16, dtype=dtype, spread=0.5)
    exact_target = OutputHead(*(part.double() for part in target))
    exact = OutputHead(*(part.detach().double().requires_grad_() for part in approx))
    value = fused(name, exact_target if name in TOP_K else target, approx, chunk_tokens=10)
    want = plain(name, exact_target, exact)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), want, rtol=1e-5, atol=1e-6)
    grads = torch.autograd.grad(value, approx), torch.autograd.grad(want, exact)
    for mine, theirs in zip(*grads, strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - theirs).norm() <= torch.finfo(dtype).eps * theirs.norm() + 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", LOSSES)
def test_gpu_agrees_with_cpu(name, dtype):
    target, approx = heads((64,), 401, 32, 16, dtype=dtype, spread=0.5)
    there = OutputHead(*(part.detach().cuda().requires_grad_() for part in approx))
    target_there = OutputHead(*(part.cuda() for part in target))
    value, want = fused(name, target_there, there, chunk_tokens=10), fused(name, target, approx, chunk_tokens=10)
    torch.testing.assert_close(value.cpu(), want, rtol=1e-3, atol=1e-4)
    grads = torch.autograd.grad(value, there), torch.autograd.grad(want, approx)
    for mine, theirs in zip(*grads, strict=True):
        assert (mine.cpu().double() - theirs.double()).norm() <= 4 * torch.finfo(dtype).eps * theirs.norm() + 1e-3


def test_half_precision_sum_over_many_tokens_does_not_stall():
    """4,096 equal contributions added in bfloat16 would stop growing at 256 of them."""
    hidden = torch.ones(4096, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.zeros(4096, dtype=torch.long)
    value = fused_cross_entropy(labels, OutputHead(hidden, weight), reduction="sum", chunk_tokens=1)
    value.backward()
    assert value.item() == pytest.approx(4096 * math.log(2), rel=1e-6)
    assert weight.grad.flatten().tolist() == [-2048.0, 2048.0]


def test_autocast_casts_as_a_linear_layer():
    target, approx = heads((16,), 41, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = fused_forward_kl(target, approx)
        want = discrete.forward_kl(*(logits_of(h).float().log_softmax(-1) for h in (target, approx)), reduction="mean")
    torch.testing.assert_close(value, want, rtol=2e-2, atol=2e-2)
    grads = torch.autograd.grad(value, approx)
    assert all(g.dtype == torch.float32 for g in grads)
    narrow = OutputHead(*(part.detach().bfloat16() for part in approx))
    assert value == fused_forward_kl(OutputHead(*(part.bfloat16() for part in target)), narrow)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(each, Tensor):
                self.largest = max(self.largest, each.numel())
        return out


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("name", LOSSES + TOP_K)
def test_never_holds_tokens_by_vocabulary(name, reduction):
    target, approx = heads((600,), 401, 3, 3)
    indices, log_probs = top_k(target, 5)
    labels = labels_for(target)
    with LargestTensor() as seen:
        if name in TOP_K:
            value = fused_top_k_forward_kl(indices, log_probs, approx, rest=name, reduction=reduction, chunk_tokens=10)
        elif name in ("cross_entropy", "smoothed", "z_loss"):
            value = fused_cross_entropy(labels, approx, reduction=reduction, chunk_tokens=10)
        else:
            value = fused(name, target, approx, reduction=reduction, chunk_tokens=10)
        value.sum().backward()
    assert seen.largest <= 10 * 401


def test_default_chunk_is_bounded_by_its_budget(monkeypatch):
    monkeypatch.setattr(engine, "_CHUNK_ELEMENTS", 4000)
    target, approx = heads((600,), 401, 3, 3)
    with LargestTensor() as seen:
        fused_forward_kl(target, approx).backward()
    assert seen.largest <= 4000


def test_gradients_are_freed_after_backward():
    target, approx = heads()
    value = fused_forward_kl(target, approx)
    value.backward()
    alive = weakref.ref(value)
    del value
    assert alive() is None


def test_backward_twice_and_scaled_upstream():
    target, approx = heads()
    value = fused_forward_kl(target, approx)
    (3 * value).backward(retain_graph=True)
    first = approx.weight.grad.clone()
    value.backward()
    torch.testing.assert_close(approx.weight.grad, first * 4 / 3)


def test_retained_graph_gives_the_same_gradient_again():
    target, approx = heads()
    value = fused_forward_kl(target, approx)
    value.backward(retain_graph=True)
    first = approx.weight.grad.clone()
    approx.weight.grad.mul_(0.0)
    value.backward()
    torch.testing.assert_close(approx.weight.grad, first)


def test_weight_changed_between_forward_and_backward_is_noticed():
    target, approx = heads()
    value = fused_forward_kl(target, approx, reduction="none").sum()
    with torch.no_grad():
        approx.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_second_order_is_refused():
    target, approx = heads()
    (grad,) = torch.autograd.grad(fused_forward_kl(target, approx), approx.hidden, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        grad.sum().backward()


def test_views_and_expanded_tensors():
    target, approx = heads((4, 6))
    hidden = approx.hidden.detach().transpose(0, 1).requires_grad_()
    strided = OutputHead(hidden, approx.weight.detach().t().contiguous().t().requires_grad_(), approx.bias)
    turned = target._replace(hidden=target.hidden[:, :1].expand(4, 6, -1).transpose(0, 1))
    assert_same("forward_kl", turned, strided, chunk_tokens=5)


def test_one_class_one_token_and_no_token():
    target, approx = heads((1,), 1)
    assert fused_forward_kl(target, approx).item() == 0.0
    target, approx = heads((0,), 9)
    assert fused_forward_kl(target, approx, reduction="none").shape == (0,)
    assert fused_forward_kl(target, approx, reduction="sum").item() == 0.0


def test_top_k_of_the_whole_vocabulary_is_the_whole_kl():
    target, approx = heads((6,), 9)
    for rest in TOP_K:
        value = fused_top_k_forward_kl(*top_k(target, 9), approx, rest=rest)
        torch.testing.assert_close(value, plain("forward_kl", target, approx), rtol=0, atol=1e-12)


def test_top_k_takes_impossible_tokens():
    _, approx = heads((1,), 9)
    indices, log_probs = torch.tensor([[3, 1, 5]]), torch.tensor([[0.6, 0.4, 0.0]]).double().log()
    for rest in TOP_K:
        value = fused_top_k_forward_kl(indices, log_probs, approx, rest=rest)
        grads = torch.autograd.grad(value, approx)
        assert value.isfinite()
        assert all(g.isfinite().all() for g in grads)
    two = fused_top_k_forward_kl(indices[:, :2], log_probs[:, :2], approx, rest="drop")
    torch.testing.assert_close(fused_top_k_forward_kl(indices, log_probs, approx, rest="drop"), two)


def test_torch_compile_gives_the_same():
    target, approx = heads((6,), 41)
    compiled = torch.compile(lambda t, a: fused_forward_kl(t, a), backend="eager")
    value, want = compiled(target, approx), fused_forward_kl(target, approx)
    torch.testing.assert_close(value, want)
    torch.testing.assert_close(torch.autograd.grad(value, approx), torch.autograd.grad(want, approx))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t, a: fused_forward_kl(t._replace(weight=t.weight[:40], bias=None), a), ValueError, "40 entries.*41"),
        (lambda t, a: fused_forward_kl(t._replace(hidden=t.hidden[:2]), a), ValueError, "same tokens"),
        (lambda t, a: fused_forward_kl(t, a._replace(hidden=a.hidden[..., :2])), ValueError, "must share H"),
        (lambda t, a: fused_forward_kl(t, a._replace(bias=a.bias[:3])), ValueError, r"bias must have shape \(41,\)"),
        (lambda t, a: fused_forward_kl(t, a._replace(weight=a.weight.float())), TypeError, "one floating dtype"),
        (lambda t, a: fused_forward_kl(t, a, temperature=0.0), ValueError, "temperature must be a positive"),
        (lambda t, a: fused_forward_kl(t, a, scale="squared"), ValueError, "scale='squared' is unknown"),
        (lambda t, a: fused_forward_kl(t, a, reduction="batchmean"), ValueError, "reduction='batchmean' is unknown"),
        (lambda t, a: fused_forward_kl(t, a, chunk_tokens=0), ValueError, "chunk_tokens must be at least 1"),
        (lambda t, a: fused_forward_kl(t, a, mask=torch.zeros(3, 7).bool()), ValueError, "nothing to average"),
        (lambda t, a: fused_forward_kl(t, a, mask=torch.ones(7, dtype=torch.bool)), ValueError, "mask has shape"),
        (lambda t, a: fused_jensen_shannon(t, a, beta=1.0), ValueError, "strictly between 0 and 1"),
        (lambda t, a: fused_cross_entropy(torch.full((3, 7), -100), a), ValueError, "hold -100, outside a voc"),
        (lambda t, a: fused_cross_entropy(torch.full((3, 7), 41), a), ValueError, "hold 41, outside a vocabulary"),
        (lambda t, a: fused_cross_entropy(torch.zeros(3, 6).long(), a), ValueError, "labels have shape"),
        (lambda t, a: fused_cross_entropy(torch.zeros(3, 7), a), TypeError, "integer dtype"),
        (lambda t, a: fused_cross_entropy(torch.zeros(3, 7).long(), a, label_smoothing=2.0), ValueError, "smoothing"),
        (lambda t, a: fused_cross_entropy(torch.zeros(3, 7).long(), a, z_loss=-1.0), ValueError, "z_loss"),
        (lambda t, a: fused_top_k_forward_kl(*top_k(t, 5), a, rest="lump"), ValueError, "rest='lump' is unknown"),
        (
            lambda t, a: fused_top_k_forward_kl(top_k(t, 5)[0], top_k(t, 4)[1], a, rest="drop"),
            ValueError,
            "target_log_probs have shape",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_named(change, error, message):
    target, approx = heads()
    with pytest.raises(error, match=message):
        change(target, approx)
