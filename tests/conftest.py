"""Fixtures and the hypothesis profile of all tests."""

import os
from typing import Any

os.environ.setdefault(
    "HF_HUB_OFFLINE", "1"
)  # a test that reaches for the network fails, with the same error everywhere

import pytest
from hypothesis import settings

# The same examples each run: a failure is the code's, never the draw's. No deadline: shared machines stall.
settings.register_profile("gam-merge", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("gam-merge")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny LlamaForCausalLM. Shared by the session: work on a copy."""
    from real import tiny_llama

    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama")
