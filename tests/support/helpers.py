"""Adapters made by hand, in memory and on disk, and comparisons."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gam_merge import Adapter, LoraModule
from gam_merge._common.tensors import MemoryTensor

Contents = dict[str, bytes] | None


def digest(directory: str | Path, file: str = "adapter_model.safetensors") -> str:
    """The SHA-256 of a file of an adapter directory."""
    return sha256((Path(directory) / file).read_bytes()).hexdigest()


def random_factors(
    generator: torch.Generator, m: int, n: int, r: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """B (m, r) and A (r, n) with entries of the size that makes |B A| about 1."""
    b = torch.randn(m, r, generator=generator, dtype=torch.float64) / m**0.5
    a = torch.randn(r, n, generator=generator, dtype=torch.float64) / n**0.5
    return b.to(dtype), a.to(dtype)


def adapter(
    factors: Mapping[str, tuple[Tensor, Tensor]], *, scale: float = 1.0, source: str = "adapter"
) -> Adapter:
    """An adapter in memory from (B, A) pairs."""
    modules = {
        name: LoraModule(name, MemoryTensor(a), MemoryTensor(b), scale)
        for name, (b, a) in sorted(factors.items())
    }
    return Adapter(source, modules, "base", {"base_model_name_or_path": "base"})


def stack(pairs: Sequence[tuple[Tensor, Tensor]], *, scale: float = 1.0) -> list[Adapter]:
    """One adapter a pair, all of one module ``w``."""
    return [
        adapter({"w": pair}, scale=scale, source=f"adapter-{i}") for i, pair in enumerate(pairs)
    ]


def delta(result: Adapter, name: str = "w") -> Tensor:
    return result.modules[name].delta()


def relative(x: Tensor, y: Tensor) -> float:
    """|x - y| / |y|, in float64."""
    x, y = x.double(), y.double()
    return float((x - y).norm() / y.norm())


def write_adapter(path: Path, factors: Mapping[str, tuple[Tensor, Tensor]], **config: Any) -> Path:
    """A PEFT adapter directory from (B, A) pairs, with ``config`` over what such a directory would say."""
    path.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (b, a) in factors.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.contiguous()
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    rank = max(a.shape[0] for _, a in factors.values())
    ranks = {name: a.shape[0] for name, (_, a) in factors.items() if a.shape[0] != rank}
    described = {
        "peft_type": "LORA",
        "base_model_name_or_path": "base",
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": ranks,
        "target_modules": sorted({name.rpartition(".")[2] for name in factors}),
        **config,
    }
    (path / "adapter_config.json").write_text(json.dumps(described))
    return path


def tree(folder: Path) -> dict[str, Any]:
    """All below a folder: kinds, targets of links, contents of files."""
    return {
        str(path.relative_to(folder)): (
            os.readlink(path)
            if path.is_symlink()
            else path.read_bytes()
            if path.is_file()
            else None
        )
        for path in sorted(folder.rglob("*"))
    }


def layers(folder: Path, *, modules: int, width: int, r: int = 2) -> list[Path]:
    """Two adapters of square modules."""
    generator = torch.Generator().manual_seed(0)
    names = [f"layers.{i}.q_proj" for i in range(modules)]
    return [
        write_adapter(
            folder / x,
            {name: random_factors(generator, width, width, r, torch.float32) for name in names},
        )
        for x in ("a", "b")
    ]


def contents(directory: Path | None) -> Contents:
    """The files of a directory, the paths in its recipe apart, which depend on where it is; None if it is not there."""
    assert directory is not None
    if not directory.exists():
        return None
    files = {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
    recipe = files.get("gam_merge_recipe.yaml", b"")
    return {**files, "gam_merge_recipe.yaml": re.sub(rb"path: .*", b"path: there", recipe)}


def restore(directory: Path, files: dict[str, bytes]) -> None:
    directory.mkdir(parents=True)
    for name, data in files.items():
        (directory / name).write_bytes(data)
