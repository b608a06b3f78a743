"""The chunked autograd function: from hidden states to per-token losses and gradients, a few tokens at a time.

The logits of a chunk of tokens are one matrix product; the loss of a token and its gradient with respect to these
logits are then computed a few rows at a time, so that temporaries stay in the processor's cache. Where the result is a
known weighted sum over the tokens, gradients are formed in the forward pass while the logits are at hand (Hsu et al.,
"Liger Kernel: Efficient Triton Kernels for LLM Training", arXiv 2410.10989, section 3.2). Where the caller wants a
value per token, its weight is unknown until the backward pass, which computes the logits again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from relent.divergences.logits import TemperatureScale, temperature_factor
from relent.divergences.reduction import Reduction, as_mask, reduce, upcast

__all__ = ["OutputHead", "RowLoss", "chunked_loss"]

# Elements of the chunk of logits held at a time, and of the block of rows that a loss works on at a time.
_CHUNK_ELEMENTS = 2**23
_BLOCK_ELEMENTS = 2**17

RowLoss = Callable[..., tuple[Tensor, Tensor]]
"""(logits (r, V), target logits (r, V) if any, row data (r, ...)...) -> loss (r,), d loss / d logits (r, V)."""


class OutputHead(NamedTuple):
    r"""Hidden states and the output embedding that turns them into logits, :math:`z = h W^\top + b`.

    Attributes:
        hidden: (..., H) hidden states, one a token.
        weight: (V, H) output embedding, of the dtype of ``hidden``.
        bias: (V,) or None; finite.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None


def _multiply(left: Tensor, right: Tensor, out: Tensor, *, add: bool = False) -> None:
    """Set (or add to) ``out`` the matrix product, in the dtype of ``out`` even where the factors are of half precision.

    A product rounded to bfloat16 before it is summed over chunks leaves a bias that training shows.
    """
    wider: dict[str, Any] = {} if left.dtype == out.dtype else {"out_dtype": out.dtype}
    if add:
        torch.addmm(out, left, right, out=out, **wider)
    else:
        torch.mm(left, right, out=out, **wider)


class _Logits:
    """Temperature-scaled logits of one chunk after another, in one buffer of at least float32."""

    def __init__(self, head: OutputHead, rows: int, scale: float) -> None:
        self.head, self.scale = head, scale
        self.values = upcast(head.weight.new_empty(0)).new_empty(rows, head.weight.shape[0])

    def __call__(self, rows: slice) -> Tensor:
        chunk = self.head.hidden[rows]
        values = self.values[: len(chunk)]
        _multiply(chunk, self.head.weight.t(), values)
        if self.head.bias is not None:
            values.add_(self.head.bias)
        return values.mul_(self.scale) if self.scale != 1.0 else values


def _computable(head: OutputHead) -> OutputHead:
    """Widen a half-precision head on a CPU, which has no half-precision product with a float32 result."""
    if head.hidden.device.type != "cpu":
        return head
    return OutputHead(upcast(head.hidden), upcast(head.weight), None if head.bias is None else upcast(head.bias))


@dataclass
class _Gradients:
    """Running gradients of a weighted sum of losses for hidden states, embedding and bias; None where not wanted."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def zeros(cls, head: OutputHead, wanted: tuple[bool, ...], dtype: torch.dtype) -> _Gradients:
        def zeros(part: Tensor | None, want: bool) -> Tensor | None:
            return torch.zeros(part.shape, dtype=dtype, device=part.device) if want and part is not None else None

        return cls(*(zeros(part, want) for part, want in zip(head, wanted, strict=True)))

    def add(self, chunk: slice, head: OutputHead, slopes: Tensor, weights: Tensor) -> None:
        """Add the part of one chunk, whose d loss / d logits are ``slopes`` (r, V) and whose weights are (r,)."""
        factors = slopes.to(head.weight.dtype)
        if self.hidden is not None:
            _multiply(factors, head.weight, self.hidden[chunk])
            self.hidden[chunk].mul_(weights[:, None])
        if self.weight is not None:
            # Weighting the hidden states takes H/V of the work of weighting the slopes.
            weighted = (head.hidden[chunk] * weights[:, None]).to(factors.dtype)
            _multiply(factors.t(), weighted, self.weight, add=True)
        if self.bias is not None:
            self.bias.addmv_(slopes.t(), weights)

    def scaled(self, factor: Tensor, head: OutputHead) -> tuple[Tensor | None, ...]:
        parts = zip((self.hidden, self.weight, self.bias), head, strict=True)
        return tuple(None if g is None or part is None else g.mul_(factor).to(part.dtype) for g, part in parts)


@dataclass(frozen=True)
class _Job:
    """All that a pass over the chunks needs besides the head that is trained."""

    row_loss: RowLoss
    row_data: tuple[Tensor, ...]
    target: OutputHead | None
    scale: float
    chunk_tokens: int
    block_tokens: int

    def losses(self, head: OutputHead) -> Tensor:
        """Return the loss of every token, (N,)."""
        return self._run(head, None, None)

    def gradients(
        self, head: OutputHead, weights: Tensor, wanted: tuple[bool, ...]
    ) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Return the losses (N,), and the gradients of their weighted sum for hidden states, embedding and bias."""
        # The products are taken with weights of largest size one: 1/N would make half-precision factors underflow.
        size = weights.abs().amax() if len(weights) else weights.new_ones(())
        size = torch.where(size > 0, size, torch.ones_like(size))
        grads = _Gradients.zeros(head, wanted, weights.dtype)
        losses = self._run(head, weights / size, grads)
        return losses, grads.scaled(size * self.scale, head)

    def _run(self, head: OutputHead, weights: Tensor | None, grads: _Gradients | None) -> Tensor:
        head, target_head = _computable(head), None if self.target is None else _computable(self.target)
        n = head.hidden.shape[0]
        rows = max(min(self.chunk_tokens, n), 1)
        approx = _Logits(head, rows, self.scale)
        target = None if target_head is None else _Logits(target_head, rows, self.scale)
        losses = approx.values.new_empty(n)
        # The heads have been cast already where autocast is on, and what follows must not be.
        with torch.no_grad(), torch.autocast(head.hidden.device.type, enabled=False):
            for start in range(0, n, rows):
                chunk = slice(start, min(start + rows, n))
                logits = approx(chunk)
                beside = [] if target is None else [target(chunk)]
                beside += [data[chunk] for data in self.row_data]
                self._rows(logits, beside, losses[chunk], grads is not None)
                if grads is not None and weights is not None:
                    grads.add(chunk, head, logits, weights[chunk])
        return losses

    def _rows(self, logits: Tensor, beside: list[Tensor], losses: Tensor, want_slopes: bool) -> None:
        """Fill in the losses of a chunk block by block, and overwrite its logits by their slopes where wanted."""
        for first in range(0, len(logits), self.block_tokens):
            block = slice(first, first + self.block_tokens)
            losses[block], slopes = self.row_loss(logits[block], *(each[block] for each in beside))
            if want_slopes:
                logits[block] = slopes


class _ChunkedLoss(torch.autograd.Function):
    """Losses per token (``weights`` None), or their weighted sum with the gradients made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: _Job, weights: Tensor | None, train: bool
    ) -> Tensor:
        head = OutputHead(hidden, weight, bias)
        ctx.job, ctx.wanted, ctx.summed = job, ctx.needs_input_grad[:3], weights is not None
        if weights is None:
            ctx.save_for_backward(*head)
            return job.losses(head)
        if not train or not any(ctx.wanted):
            return (job.losses(head) * weights).sum()
        losses, grads = job.gradients(head, weights, ctx.wanted)
        ctx.save_for_backward(*grads)
        return (losses * weights).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.summed:
            grads = ctx.job.gradients(OutputHead(*ctx.saved_tensors), grad_output.contiguous(), ctx.wanted)[1]
        elif bool(grad_output == 1):  # the usual case, spared a second (V, H) tensor
            grads = ctx.saved_tensors
        else:
            grads = tuple(None if g is None else g * grad_output.to(g.dtype) for g in ctx.saved_tensors)
        return (*grads, None, None, None)


def _flat_head(head: OutputHead, name: str) -> OutputHead:
    """Check a head, cast it as a linear layer would be under autocast, and flatten its tokens to (N, H)."""
    head = OutputHead(*head)
    device = head.hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        head = OutputHead(
            head.hidden.to(dtype), head.weight.to(dtype), None if head.bias is None else head.bias.to(dtype)
        )
    hidden, weight, bias = head
    dtypes = {str(part.dtype) for part in head if part is not None}
    if len(dtypes) > 1 or not hidden.dtype.is_floating_point:
        raise TypeError(f"{name}: hidden, weight and bias must share one floating dtype, got {sorted(dtypes)}")
    if hidden.ndim < 1 or weight.ndim != 2 or hidden.shape[-1] != weight.shape[1]:
        shapes = f"{tuple(hidden.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"{name}: hidden (..., H) and weight (V, H) must share H, got {shapes}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{name}: bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    return OutputHead(hidden.reshape(-1, hidden.shape[-1]), weight, bias)


def _checked_target(target: OutputHead, approx: OutputHead, shape: torch.Size) -> OutputHead:
    with torch.no_grad():
        flat = _flat_head(target, "target_head")
    if flat.weight.shape[0] != approx.weight.shape[0]:
        raise ValueError(
            f"the target's vocabulary has {flat.weight.shape[0]} entries, the approximation's "
            f"{approx.weight.shape[0]}; cut both embeddings to the entries that the tokenizer uses"
        )
    if target.hidden.shape[:-1] != shape:
        tokens = f"{tuple(target.hidden.shape[:-1])} and {tuple(shape)}"
        raise ValueError(f"target_head and approx_head must hold the same tokens, got shapes {tokens}")
    return flat


def _token_weights(shape: torch.Size, mask: Tensor | None, reduction: Reduction, like: Tensor) -> Tensor:
    """Weight of each token in the named reduction: the gradient of the reduction itself, so that it is written once."""
    with torch.enable_grad():
        ones = torch.ones(shape, dtype=like.dtype, device=like.device, requires_grad=True)
        return torch.autograd.grad(reduce(ones, mask, reduction), ones)[0].flatten()


def chunked_loss(
    row_loss: RowLoss,
    approx_head: OutputHead,
    *row_data: Tensor,
    target_head: OutputHead | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    temperature: float = 1.0,
    scale: TemperatureScale = "none",
    chunk_tokens: int | None = None,
) -> Tensor:
    """Reduce a loss of each token, computed chunk by chunk from hidden states; masked tokens cost nothing.

    Args:
        row_loss: loss of a block of rows with its slopes, see :data:`RowLoss`.
        approx_head: head with tokens (...); gradients flow to those of its parts that require them.
        row_data: tensors (..., *) that the loss needs beside the logits, such as labels.
        target_head: second head with the same tokens and vocabulary, without gradient, or None.
        mask: (...) boolean or 0/1 integer, or None.
        reduction: see :func:`relent.divergences.reduction.reduce`.
        temperature: logits are divided by it; positive.
        scale: ``"tau_squared"`` multiplies the loss by τ².
        chunk_tokens: tokens whose logits are held at a time; by default as many as make 2²³ logits.

    Raises:
        ValueError: shapes that do not fit, a temperature or chunk that is not positive, an empty mask.
        TypeError: dtypes that do not fit.
    """
    factor = temperature_factor(temperature, scale)
    if chunk_tokens is not None and chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    approx_head = OutputHead(*approx_head)
    shape = approx_head.hidden.shape[:-1]
    head = _flat_head(approx_head, "approx_head")
    beside = None if target_head is None else _checked_target(OutputHead(*target_head), head, shape)
    data = tuple(each.reshape(head.hidden.shape[0], *each.shape[len(shape) :]) for each in row_data)
    exact = upcast(head.weight.new_empty(0))
    weights = None if reduction == "none" else _token_weights(shape, mask, reduction, exact) * factor
    if mask is not None:
        kept = as_mask(mask, shape).flatten().nonzero().squeeze(-1)
        head = head._replace(hidden=head.hidden[kept])
        beside = None if beside is None else beside._replace(hidden=beside.hidden[kept])
        data = tuple(each[kept] for each in data)
        weights = None if weights is None else weights[kept]
    vocabulary = max(head.weight.shape[0], 1)
    chunk = chunk_tokens or max(_CHUNK_ELEMENTS // vocabulary, 1)
    # On an accelerator a block is the whole chunk: launches cost more there than memory traffic.
    block = max(_BLOCK_ELEMENTS // vocabulary, 1) if head.hidden.device.type == "cpu" else chunk
    job = _Job(row_loss, data, beside, 1.0 / temperature, chunk, block)
    result = _ChunkedLoss.apply(*head, job, weights, torch.is_grad_enabled())
    if weights is not None:
        return result
    result = result * factor
    return (
        result.reshape(shape)
        if mask is None
        else result.new_zeros(shape.numel()).index_put((kept,), result).reshape(shape)
    )
