"""A toy model for llama.cpp, adapters of it as its converter writes them, and its answers.

Of the architecture qwen2, which keeps the rows of q and k in their order.
"""

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import xllamacpp
from llama_cpp import write_base
from torch import Tensor

_PROMPT = (3, 17, 5, 22, 9)
_LAYERS = ("attn_q", "attn_v", "ffn_down")


@cache
def _model() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    config.head_dim = config.hidden_size // config.num_attention_heads
    return Qwen2ForCausalLM(config).eval()


@cache
def _base() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="gam-merge-formats-"))
    return write_base(_model(), "qwen2", folder / "base.gguf")


def save(path: Path, seed: int, *, rank: int, alpha: float) -> Path:
    """Save an adapter with random factors, in float32."""
    generator = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    sides = {tensor.name: tensor.shape for tensor in gguf.GGUFReader(_base()).tensors}
    for block in range(_model().config.num_hidden_layers):
        for layer in _LAYERS:
            name = f"blk.{block}.{layer}.weight"
            into, out = map(int, sides[name])  # as GGUF has it, the fast side first
            for role, shape in (("lora_a", (rank, into)), ("lora_b", (out, rank))):
                factor = 0.2 * generator.standard_normal(shape, dtype=np.float32)
                writer.add_tensor(f"{name}.{role}", factor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def log_probabilities(adapters: Sequence[Path], weights: Sequence[float]) -> Tensor:
    """Return those of the token after a prompt, with adapters that llama.cpp weighs itself."""
    params = xllamacpp.CommonParams()
    params.model.path = str(_base())
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 256, 1, 0
    params.warmup = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    pairs = zip(map(str, adapters), weights, strict=True)
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(*pair) for pair in pairs]
    request = {
        "prompt": list(_PROMPT),
        "n_predict": 1,
        "n_probs": 64,
        "temperature": 1.0,
        "seed": 0,
        "cache_prompt": False,
    }
    answer = xllamacpp.Server(params).handle_completions(request)
    (step,) = answer["choices"][0]["logprobs"]["content"]
    by_token = {entry["id"]: entry["logprob"] for entry in step["top_logprobs"]}
    return torch.tensor([by_token[token] for token in sorted(by_token)], dtype=torch.float64)
