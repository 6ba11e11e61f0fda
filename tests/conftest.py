"""Fixtures and the hypothesis profile of all tests."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "HF_HUB_OFFLINE", "1"
)  # a test that reaches for the network fails, everywhere alike
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes share the cores

import pytest
from hypothesis import settings

# The same examples each run: a failure is the code's, never the draw's. No deadline: shared machines stall.
settings.register_profile(
    "gam-merge", derandomize=True, deadline=None, max_examples=50, database=None
)
settings.load_profile("gam-merge")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny LlamaForCausalLM. Shared by the session: work on a copy."""
    from real import tiny_llama

    return tiny_llama(tmp_path_factory.mktemp("base") / "tiny-llama")


@pytest.fixture(scope="session")
def gpt2() -> Any:
    """A tiny GPT2LMHeadModel. Shared by the session: work on a copy."""
    from real import tiny_gpt2

    return tiny_gpt2()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from hub_server import connected

    with connected(tmp_path, monkeypatch) as server:
        yield server
        assert not server.leaks, "a token left the Hub"
