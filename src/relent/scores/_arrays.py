"""The bridge between numpy or dask arrays and the scores, which are written once, on torch tensors.

- torch tensors go through untouched, on any device, with gradients.
- numpy arrays share their memory with the tensor that is scored (`torch.from_numpy`); a copy is made only where torch
  cannot look at the memory (read-only, byte-swapped or negatively strided arrays). The result is a numpy array.
- dask arrays are scored chunk by chunk through `dask.array.apply_gufunc` and stay lazy. Dimensions that a score reduces
  (members, event) must lie in one chunk; they are merged if they do not.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

NanPolicy = Literal["propagate", "omit", "raise"]
Estimator = Literal["fair", "biased", "almost_fair"]


def as_tensor(value: Any) -> Any:
    """`value` as a tensor on the same memory if it is a numpy array, else `value` itself."""
    if not isinstance(value, np.ndarray):
        return value
    shareable = value.flags.writeable and value.dtype.isnative and all(step >= 0 for step in value.strides)
    return torch.from_numpy(value if shareable else np.array(value, dtype=value.dtype.newbyteorder("=")))


def as_numpy(value: Any) -> Any:
    """`value` as a numpy array if it is a tensor; tuples, named ones included, entry by entry."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, tuple):
        entries = [as_numpy(entry) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else tuple(entries)
    return value


def _is_dask(value: Any) -> bool:
    return type(value).__module__.startswith("dask.array")


def takes_arrays(
    signature: str | None = None, **axes: Callable[[dict[str, Any]], tuple[int, ...]]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a score written on tensors take numpy and dask arrays too.

    Args:
        signature: core dimensions of the array arguments in numpy's notation, such as `"(m),()->()"`; None where the
            score is a mean over everything, which streams over dask through `relent.scores.streaming` instead.
        axes: for each array argument that has core dimensions, a function from the call's arguments to the positions of
            these dimensions. The dimension arguments themselves (`member_dim`, `event_dim`) are rewritten to the end.
    """

    def decorate(score: Callable[P, R]) -> Callable[P, R]:
        names = inspect.signature(score)

        @functools.wraps(score)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            given = (*args, *kwargs.values())
            if torch.compiler.is_compiling() or not any(isinstance(v, np.ndarray) or _is_dask(v) for v in given):
                return score(*args, **kwargs)
            bound = names.bind(*args, **kwargs)
            values = bound.arguments
            if any(_is_dask(value) for value in values.values()):
                if signature is None:
                    raise TypeError(f"{score.__name__} does not take dask arrays: use relent.scores.streaming.evaluate")
                bound.apply_defaults()
                return cast(R, _on_dask(wrapper, signature, axes, dict(bound.arguments)))
            bound.arguments.update({name: as_tensor(value) for name, value in values.items()})
            return cast(R, as_numpy(score(*bound.args, **bound.kwargs)))

        return wrapper

    return decorate


def _on_dask(
    score: Callable[..., Any],
    signature: str,
    axes: dict[str, Callable[[dict[str, Any]], tuple[int, ...]]],
    values: dict[str, Any],
) -> Any:
    """Apply `score` to the chunks of its dask arguments, core dimensions last."""
    import dask.array as da  # only where dask arrays come in: torch users do not pay for this import

    operands = signature.split("->")[0].count("(")
    names = list(values)[:operands]
    positions = [axes[name](values) if name in axes else () for name in names]
    options = {name: value for name, value in values.items() if name not in names}
    if "member_dim" in options:
        options["member_dim"] = -2 if "event_dim" in options else -1
    if "event_dim" in options:
        options["event_dim"] = -1

    def on_chunk(*chunks: Any) -> Any:
        return score(*chunks, **options)

    arrays = [values[name] for name in names]
    dtype = np.result_type(np.float32, *(array.dtype for array in arrays if hasattr(array, "dtype")))
    return da.apply_gufunc(on_chunk, signature, *arrays, axes=[*positions, ()], output_dtypes=dtype, allow_rechunk=True)


def check_floating(**tensors: Tensor) -> None:
    """Raise TypeError unless every tensor is of a floating dtype."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch tensor, a numpy or a dask array, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(
                f"{name} must be of a floating dtype, got {tensor.dtype}: convert it with .to(torch.float32)"
            )


def common_dtype(*tensors: Tensor) -> torch.dtype:
    """The widest dtype of the tensors, float32 at least: scores of half-precision values are computed in float32."""
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def apply_nan_policy(nan_policy: str, **tensors: Tensor) -> None:
    """Refuse unknown policies, and NaN where the policy is "raise".

    Raises:
        ValueError: if `nan_policy` is unknown, or is "raise" and a tensor holds NaN (the message counts them).
    """
    if nan_policy not in ("propagate", "omit", "raise"):
        raise ValueError(f'nan_policy must be "propagate", "omit" or "raise", got {nan_policy!r}')
    if nan_policy == "raise":
        for name, tensor in tensors.items():
            if missing := int(torch.isnan(tensor).sum()):
                raise ValueError(f'{name} holds {missing} NaN of {tensor.numel()} values and nan_policy is "raise"')


def members_first(members: Tensor, truth: Tensor, member_dim: int) -> tuple[Tensor, Tensor]:
    """`members` with the member dimension first, and `truth`, both in their common dtype, shapes checked.

    Raises:
        ValueError: if `truth` is not shaped like `members` without `member_dim`, or if there are no members.
        TypeError: if either is not of a floating dtype.
    """
    check_floating(members=members, truth=truth)
    if not -members.dim() <= member_dim < members.dim():
        raise ValueError(f"member_dim {member_dim} is out of range for members of shape {tuple(members.shape)}")
    dtype = common_dtype(members, truth)
    first = members.to(dtype).movedim(member_dim, 0)
    if first.shape[1:] != truth.shape:
        raise ValueError(
            f"truth must have the shape of members without member_dim={member_dim}, {tuple(first.shape[1:])}, "
            f"got {tuple(truth.shape)}"
        )
    if len(first) == 0:
        raise ValueError("the ensemble has no members")
    return first, truth.to(dtype)
