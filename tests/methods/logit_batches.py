"""Random batches of student logits, teacher logits and labels, float64, for property-based tests."""

from __future__ import annotations

from typing import NamedTuple

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

few = settings(max_examples=30, deadline=None)


class Batch(NamedTuple):
    """`student` and `teacher` (B, C), `labels` (B,)."""

    student: Tensor
    teacher: Tensor
    labels: Tensor


@st.composite
def batches(draw: st.DrawFn, least_classes: int = 3) -> Batch:
    """Logits of any scale from tiny to saturated."""
    size, classes = draw(st.integers(1, 5)), draw(st.integers(least_classes, 9))
    scale = draw(st.sampled_from([0.01, 1.0, 5.0, 50.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    student, teacher = scale * torch.randn(2, size, classes, generator=generator, dtype=torch.float64)
    return Batch(student, teacher, torch.randint(classes, (size,), generator=generator))


def tensor(*values: float) -> Tensor:
    """One row, (1, C), float64."""
    return torch.tensor([values], dtype=torch.float64)
