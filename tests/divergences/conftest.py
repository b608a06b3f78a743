"""Shared by the divergence tests: one thread, so that timings and sums do not depend on the machine, and a seed."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(20260711)
