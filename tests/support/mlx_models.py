"""A toy model of MLX-LM, its adapters, and what MLX-LM makes of them."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.tuner import utils as tuner
from numpy.typing import NDArray

ARGUMENTS = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 50,
}


def model() -> Any:
    mx.random.seed(0)
    return llama.Model(llama.ModelArgs(**ARGUMENTS))


def save(path: Path, seed: int, *, rank: int, scale: float, keys: list[str]) -> Path:
    """An adapter with random factors, as ``mlx_lm.lora`` saves it."""
    adapted = model()
    adapted.freeze()
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys}
    tuner.linear_to_lora_layers(adapted, 3, parameters)
    mx.random.seed(seed)
    tensors = {}
    for name, value in tree_flatten(adapted.trainable_parameters()):
        tensors[name] = 0.1 * mx.random.normal(value.shape)
    path.mkdir()
    mx.save_safetensors(str(path / "adapters.safetensors"), tensors)
    config = {"fine_tune_type": "lora", "num_layers": 3, "model": "org/base", "seed": seed}
    (path / "adapter_config.json").write_text(json.dumps({**config, "lora_parameters": parameters}))
    return path


def deltas(path: Path) -> dict[str, NDArray[np.float32]]:
    """What MLX-LM makes of an adapter: fused weights less those of the base."""
    base = dict(tree_flatten(model().parameters()))
    adapted = model()
    tuner.load_adapters(adapted, str(path))
    changes = {}
    for name, module in adapted.named_modules():
        if hasattr(module, "lora_a"):
            changes[name] = np.array(module.fuse().weight - base[f"{name}.weight"])
    return changes
