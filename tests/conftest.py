"""Fixtures and the hypothesis profile of all tests."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for the network fails, everywhere alike
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes share the cores

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


@pytest.fixture(scope="session")
def gpt2() -> Any:
    """A tiny GPT2LMHeadModel. Shared by the session: work on a copy."""
    from real import tiny_gpt2

    return tiny_gpt2()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Hub on loopback with an empty cache, which huggingface_hub of this process talks to without a token.

    huggingface_hub reads its environment once, when it is imported, hence the patched constants. Its waits between
    retries are left out.
    """
    from hub_server import Hub
    from huggingface_hub import constants

    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            constants, "HF_HUB_DISABLE_XET", True, raising=False
        )  # Xet goes to servers of its own: not measured
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
        yield server
        assert not server.leaks, "a token left the Hub"
