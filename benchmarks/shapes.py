"""Adapters with the shapes of real models and random entries, made on the spot."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file


@dataclass(frozen=True)
class Shapes:
    """The adapted modules of a model: (out, in) by name, repeated over layers."""

    base: str
    layers: int
    modules: dict[str, tuple[int, int]]
    prefix: str = "model.layers.{}."  # of the names, with the layer

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        for layer in range(self.layers):
            for name, (m, n) in self.modules.items():
                yield f"{self.prefix.format(layer)}{name}", m, n

    @property
    def width(self) -> int:
        """Sum of out + in over all modules: entries of one adapter per unit of rank."""
        return sum(m + n for _, m, n in self)


def _llama(base: str, layers: int, hidden: int, kv: int, inner: int) -> Shapes:
    attention = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qo"}
    attention |= {f"self_attn.{name}_proj": (kv, hidden) for name in "kv"}
    mlp = {
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    return Shapes(base, layers, attention | mlp)


def _experts(base: str, layers: int, experts: int, hidden: int, inner: int) -> Shapes:
    modules: dict[str, tuple[int, int]] = {}
    for expert in range(experts):
        modules |= {f"mlp.experts.{expert}.{name}_proj": (inner, hidden) for name in ("gate", "up")}
        modules[f"mlp.experts.{expert}.down_proj"] = (hidden, inner)
    return Shapes(base, layers, modules)


def _sdxl() -> Shapes:
    """The 722 linear layers of SDXL's UNet that trainers adapt: attention and feed-forward."""
    modules: dict[str, tuple[int, int]] = {}
    for place, attentions, blocks, width in (
        ("down_blocks.1", 2, 2, 640),
        ("down_blocks.2", 2, 10, 1280),
        ("mid_block", 1, 10, 1280),
        ("up_blocks.0", 3, 10, 1280),
        ("up_blocks.1", 3, 2, 640),
    ):
        for i in range(attentions):
            attention = f"{place}.attentions.{i}"
            modules |= {f"{attention}.{name}": (width, width) for name in ("proj_in", "proj_out")}
            for j in range(blocks):
                block = f"{attention}.transformer_blocks.{j}"
                modules |= {f"{block}.{name}": size for name, size in _block(width).items()}
    return Shapes("stabilityai/stable-diffusion-xl-base-1.0", 1, modules, prefix="")


def _block(width: int, text: int = 2048) -> dict[str, tuple[int, int]]:
    """Return the layers of a transformer block that also attends to the embedded text."""
    sizes: dict[str, tuple[int, int]] = {}
    for attention, into in (("attn1", width), ("attn2", text)):
        sizes |= {f"{attention}.{name}": (width, width) for name in ("to_q", "to_out.0")}
        sizes |= {f"{attention}.{name}": (width, into) for name in ("to_k", "to_v")}
    return sizes | {"ff.net.0.proj": (8 * width, width), "ff.net.2": (width, 4 * width)}


MODELS = {
    "smollm2-135m": _llama("HuggingFaceTB/SmolLM2-135M-Instruct", 30, 576, 192, 1536),
    "qwen3-8b": _llama("Qwen/Qwen3-8B", 36, 4096, 1024, 12288),
    "qwen3-8b-72": _llama("Qwen/Qwen3-8B", 72, 4096, 1024, 12288),  # twice the layers
    "llama3-70b": _llama("meta-llama/Meta-Llama-3-70B", 80, 8192, 1024, 28672),
    "sdxl": _sdxl(),
    "moe-128": _experts("Qwen/Qwen3-30B-A3B", 4, 128, 2048, 768),  # 4 of 48 layers
}
for _layers in range(1, 49):
    MODELS[f"moe-128-{_layers}"] = replace(MODELS["moe-128"], layers=_layers)


def make_adapters(
    folder: Path,
    model: str,
    *,
    count: int,
    rank: int,
    dtype: torch.dtype = torch.bfloat16,
    layers: int | None = None,
) -> list[Path]:
    """Return ``count`` PEFT directories below ``folder``, which are made once.

    layers: how many they adapt, if not all of the model. A is as PEFT initialises it; B is of the
    size that training leaves, and one part of it is common to all adapters.
    """
    shapes, name = MODELS[model], model
    if layers is not None:
        shapes, name = replace(shapes, layers=layers), f"{model}-{layers}-layers"
    paths: list[Path] = []
    for i in range(count):
        path = folder / f"{name}-r{rank}-{i}"
        paths.append(path)
        if (path / "adapter_config.json").exists():
            continue
        path.mkdir(parents=True, exist_ok=True)
        common, private = torch.Generator().manual_seed(0), torch.Generator().manual_seed(i + 1)
        tensors = {}
        for module, m, n in shapes:
            a = (torch.rand(rank, n, generator=private) * 2 - 1) / n**0.5
            shared = torch.randn(m, rank, generator=common)
            b = 1e-3 * (shared + torch.randn(m, rank, generator=private))
            tensors[f"base_model.model.{module}.lora_A.weight"] = a.to(dtype)
            tensors[f"base_model.model.{module}.lora_B.weight"] = b.to(dtype)
        save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "peft_type": "LORA",
            "base_model_name_or_path": shapes.base,
            "r": rank,
            "lora_alpha": 2 * rank,
            "target_modules": sorted({part.rpartition(".")[2] for part in shapes.modules}),
            "task_type": "CAUSAL_LM",
        }
        (path / "adapter_config.json").write_text(json.dumps(config, indent=2))
    return paths
