"""llama.cpp itself, on toy bases that are written as its converter writes models."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import xllamacpp
from numpy.typing import NDArray

_PERMUTED = {"llama"}  # conversion/llama.py: undo_permute
_SHIFTED = {"gemma2", "gemma3"}  # conversion/gemma.py: norms are stored plus one


def write_base(model: Any, architecture: str, path: Path) -> Path:
    """A language model of transformers as a GGUF file in float32, with a vocabulary of numbers."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(512)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    writer.add_rope_dimension_count(_head_dim(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if architecture in _SHIFTED:
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *map(str, range(3, config.vocab_size))])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types([2, 3, 3] + [1] * (config.vocab_size - 3))
    names = gguf.get_tensor_name_map(
        gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers
    )
    for key, value in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = value.float().numpy()
        if architecture in _SHIFTED and key.endswith("norm.weight"):
            array = array + 1
        if architecture in _PERMUTED and key.endswith("q_proj.weight"):
            array = _permuted(array, config.num_attention_heads)
        if architecture in _PERMUTED and key.endswith("k_proj.weight"):
            array = _permuted(array, config.num_key_value_heads)
        writer.add_tensor(names.get_name(key, try_suffixes=(".weight", ".bias")), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _permuted(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """``LlamaModel.permute`` of conversion/llama.py."""
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(weight.shape))


def log_probabilities(
    base: Path, prompts: Sequence[Sequence[int]], adapter: Path | None = None
) -> NDArray[np.float64]:
    """What llama.cpp expects after each prompt: (prompts, vocabulary).

    In a process of its own: llama.cpp aborts where a tensor does not fit.
    """
    request = json.dumps([str(base), prompts, adapter and str(adapter)])
    child = subprocess.run(
        [sys.executable, __file__, request], capture_output=True, text=True, timeout=300
    )
    assert child.returncode == 0, child.stderr[-2000:]
    return np.array(json.loads(child.stdout.splitlines()[-1]))


def _server(base: str, adapter: str | None) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = base
    params.n_ctx = 256
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    # float32 throughout: half-precision keys and values alone make 4e-3 of difference
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    if adapter is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    return xllamacpp.Server(params)


def _after(server: Any, prompt: Sequence[int]) -> list[float]:
    request = {"prompt": prompt, "n_predict": 1, "n_probs": 64, "cache_prompt": False}
    answer = server.handle_completions({**request, "temperature": 1.0, "seed": 0})
    (step,) = answer["choices"][0]["logprobs"]["content"]
    by_token = {entry["id"]: entry["logprob"] for entry in step["top_logprobs"]}
    return [by_token[token] for token in sorted(by_token)]


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


if __name__ == "__main__":
    _base, _prompts, _adapter = json.loads(sys.argv[1])
    _running = _server(_base, _adapter)
    print(json.dumps([_after(_running, prompt) for prompt in _prompts]))  # noqa: T201
