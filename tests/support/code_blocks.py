"""The code blocks of the pages, and the files that a reader of them is said to have."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import repository
import yaml
from markdown_it import MarkdownIt
from real import save_adapter
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import gam_merge as gm

SMOLLM = "HuggingFaceTB/SmolLM2-135M-Instruct"
PAGES = [path for path in repository.repository_files() if path.endswith(".md")]
_ENVIRONMENT = {"PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True)
class Block:
    """A block of code: fenced, or indented (of no language)."""

    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def needs(self) -> str:
        """What a reader needs that tests do not have; empty for a block that runs."""
        return self.title.removeprefix("needs ") if self.title.startswith("needs ") else ""


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page, in order."""
    every: list[Block] = []
    for token in MarkdownIt().parse((repository.ROOT / page).read_text("utf-8")):
        if token.type in ("fence", "code_block"):
            language, _, rest = token.info.partition(" ")
            title = rest.removeprefix('title="').removesuffix('"')
            line = (token.map or [0])[0] + 1
            every.append(Block(page, line, language, title, token.content))
    return every


def run(block: Block, names: dict[str, Any]) -> None:
    """Run a block in the working directory; ``names`` are those of the Python of the page."""
    if block.title:
        Path(block.title).write_text(block.text, "utf-8")
    elif block.language == "python":
        code = compile(block.text, f"{block.page}:{block.line}", "exec")
        exec(code, names)
    else:
        _RUN[block.language](block.text)


def _bash(text: str) -> None:
    """As in a shell whose ``gam-merge`` and ``python`` are those of the tests."""
    python = sys.executable
    functions = f'gam-merge() {{ "{python}" -m gam_merge "$@"; }}; python() {{ "{python}" "$@"; }}'
    script = f"set -euo pipefail\n{functions}\nexport -f gam-merge python\n{text}"
    environment = {**os.environ, **_ENVIRONMENT}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def _yaml(text: str) -> None:
    assert yaml.safe_load(text)


def _toml(text: str) -> None:
    assert tomllib.loads(text)


def _mermaid(text: str) -> None:
    """A drawing: nothing to run."""


_RUN: Mapping[str, Callable[[str], None]] = {
    "bash": _bash, "mermaid": _mermaid, "toml": _toml, "yaml": _yaml
}  # fmt: skip
LANGUAGES = {"python", *_RUN}


def save_smollm(path: Path) -> None:
    """A model of SmolLM2's shapes with random weights and few words, for the example adapters."""
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2, "Question:": 3, "Answer:": 4}
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        eos_token_id=1,
        pad_token_id=0,
        dtype="bfloat16",
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(path)
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)


def training_outputs(folder: Path) -> None:
    """Two finished runs, a run with its checkpoints, and a model that was tuned as a whole."""
    base = AutoModelForCausalLM.from_pretrained(folder / SMOLLM)
    runs = ["outputs/math-lora", "saves/llama3-8b/lora/code"]
    runs += [f"outputs/run/checkpoint-{step}" for step in (10, 20, 30)]
    for seed, run in enumerate(runs):
        save_adapter(base, folder / run, seed=seed, r=4)
        state = {"global_step": int(run.rpartition("-")[2]) if "checkpoint" in run else 30}
        (folder / run / "trainer_state.json").write_text(json.dumps(state))
    gm.fuse(folder / SMOLLM, folder / runs[0], out=folder / "tuned")


def image_files(folder: Path) -> None:
    """Two LoRAs of Stable Diffusion in kohya's grammar, and a toy pipeline for them."""
    import pipelines
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer

    for seed, name in enumerate(("style", "person")):
        pipelines.save_kohya(folder / f"{name}.safetensors", seed, rank=4, alpha=2.0)
    pipeline = pipelines.stable_diffusion()
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[])
    vae = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2)
    pipeline.register_modules(tokenizer=tokenizer, vae=vae)
    pipeline.save_pretrained(folder / "stable-diffusion")
