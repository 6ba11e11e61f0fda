"""What the real readers make of files of LoRA, on toy models: the change of each weight.

A reader gets several files and their weights, and returns the weighted sum of what it makes of
them, by name. Packages are imported by the readers that need them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

Changes = dict[str, Tensor]
Reader = Callable[[Sequence[Path], Sequence[float]], Changes]


def summed(read: Callable[[Path], Changes]) -> Reader:
    """Return the reader that sums what another one makes of each file."""

    def total(paths: Sequence[Path], weights: Sequence[float]) -> Changes:
        changes: Changes = {}
        for path, weight in zip(paths, weights, strict=True):
            for name, change in read(path).items():
                changes[name] = changes.get(name, torch.zeros(())) + weight * change.double()
        return changes

    return total


def by_peft(path: Path) -> Changes:
    """Return what PEFT makes of a directory, on a toy Llama."""
    from variants import load

    changes: Changes = {}
    for name, layer in load("llama", path).get_base_model().named_modules():
        if hasattr(layer, "get_delta_weight"):
            changes[name] = layer.get_delta_weight("default").detach()
    return changes


def by_diffusers_unet(path: Path) -> Changes:
    """Return what diffusers makes of a file or a directory, on a toy UNet."""
    from pipelines import deltas

    return deltas(path)


def by_diffusers_flux(path: Path) -> Changes:
    """Return what diffusers makes of a file, on a toy transformer of Flux."""
    from pipelines import flux_deltas

    return flux_deltas(path)


def by_diffusers_wan(path: Path) -> Changes:
    """Return what diffusers makes of a file, on a toy transformer of Wan."""
    from pipelines import wan_deltas

    return wan_deltas(path)


def by_mlx(path: Path) -> Changes:
    """Return what MLX-LM makes of a directory, on a toy Llama."""
    from mlx_models import deltas

    return {name: torch.from_numpy(change) for name, change in deltas(path).items()}


def by_lycoris(path: Path) -> Changes:
    """Return what LyCORIS's forward makes of a file, on linear layers of zeros."""
    from benchmarks.formats.lycoris_models import deltas

    return deltas(path)


def by_llama_cpp(paths: Sequence[Path], weights: Sequence[float]) -> Changes:
    """Return the change of llama.cpp's log-probabilities, which weighs adapters itself."""
    from benchmarks.formats.gguf_models import log_probabilities

    return {"log-probabilities": log_probabilities(paths, weights) - log_probabilities([], [])}
