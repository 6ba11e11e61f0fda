"""Files as LyCORIS saves them, and what its forward makes of files. Its merge_to is wrong."""

from pathlib import Path
from typing import Any

import torch
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.wrapper import create_lycoris_from_weights
from safetensors.torch import save_file
from torch import Tensor, nn

_ALGORITHMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "LoCon": (LoConModule, {}),
    "LoHa": (LohaModule, {}),
    "LoKr": (LokrModule, {"factor": 2}),
}


def _zeros() -> nn.Module:
    """Return linear layers of zeros, so that their output is that of LyCORIS alone."""
    sizes = {"q": (12, 16), "v": (16, 12)}
    layers = {name: nn.Linear(*size, bias=False) for name, size in sizes.items()}
    for layer in layers.values():
        nn.init.zeros_(layer.weight)
    return nn.ModuleDict(layers)


def save(path: Path, seed: int, algorithm: str, *, rank: int, alpha: float) -> Path:
    """Save modules with random factors."""
    torch.manual_seed(seed)
    kind, arguments = _ALGORITHMS[algorithm]
    tensors: dict[str, Tensor] = {}
    for name, layer in _zeros().named_children():
        module = kind(f"lycoris_{name}", layer, lora_dim=rank, alpha=alpha, **arguments)
        for parameter in module.parameters():
            nn.init.normal_(parameter)
        for role, tensor in module.custom_state_dict().items():
            tensors[f"{module.lora_name}.{role}"] = tensor.detach().contiguous()
    save_file(tensors, path)
    return path


@torch.no_grad()
def deltas(path: Path) -> dict[str, Tensor]:
    """Return the change of each weight, from the outputs for unit vectors."""
    network, _ = create_lycoris_from_weights(1.0, str(path), _zeros())
    changes: dict[str, Tensor] = {}
    for module in network.loras:
        width = module.org_module[0].in_features
        changes[module.lora_name] = module(torch.eye(width)).mT  # (out, in)
    return changes
