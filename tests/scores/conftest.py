"""Reference forms in float64 that the scores are held against, and seeded random ensembles."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


def pairwise_crps(members: Tensor, truth: Tensor, alpha: float) -> Tensor:
    """CRPS_α of (M, …) members by the definition: all M² pairs, differentiable, float64."""
    members, truth = members.double(), truth.double()
    count = len(members)
    error = (members - truth).abs().mean(0)
    pairs = (members[:, None] - members[None]).abs().sum((0, 1))
    return error - (count - 1 + alpha) / (2 * count**2 * max(count - 1, 1)) * pairs


@pytest.fixture
def reference_crps() -> Callable[[Tensor, Tensor, float], Tensor]:
    return pairwise_crps


@pytest.fixture
def draw() -> Callable[..., Tensor]:
    """Seeded standard normal tensors, float64 unless said otherwise."""
    generator = torch.Generator().manual_seed(20240517)

    def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return normal
