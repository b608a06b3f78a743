from __future__ import annotations

import pytest

from relent.models.causal_lm import CausalLM
from tiny_models import tiny


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def network(request) -> CausalLM:
    """One network of each architecture; not to be changed."""
    return tiny(request.param)


@pytest.fixture(scope="session")
def gpt2() -> CausalLM:
    """A small GPT-2; not to be changed."""
    return tiny()
