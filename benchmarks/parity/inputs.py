"""Adapters that the comparison merges: made up in float64, and modules of the example adapters."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

import gam_merge as gm
from gam_merge._common.tensors import MemoryTensor

EXAMPLES = Path(__file__).parents[2] / "examples" / "adapters"
_REAL = ("layers.14.self_attn.q_proj", "layers.14.mlp.down_proj")
_SHAPES = ((2, 8, 40, 36), (3, 4, 30, 28), (5, 4, 50, 44), (8, 4, 70, 64))  # N, r, m, n


@dataclass(frozen=True)
class Problem:
    """Some adapters of one module."""

    name: str
    factors: tuple[tuple[Tensor, Tensor], ...]  # B (m, r) and A (r, n), the scale in B

    @property
    def adapters(self) -> list[gm.Adapter]:
        adapters = []
        for i, (b, a) in enumerate(self.factors):
            module = gm.LoraModule("w", MemoryTensor(a), MemoryTensor(b), 1.0)
            adapters.append(gm.Adapter(f"adapter-{i}", {"w": module}, "base", {}))
        return adapters

    @property
    def real(self) -> bool:
        """Whether these are trained adapters."""
        return "layers" in self.name

    @property
    def rank(self) -> int:
        return max(b.shape[1] for b, _ in self.factors)

    @cached_property
    def deltas(self) -> list[Tensor]:
        return [b @ a for b, a in self.factors]

    @cached_property
    def core(self) -> "Core":
        left = torch.linalg.svd(torch.cat(self.deltas, 1), full_matrices=False)[0]
        right = torch.linalg.svd(torch.cat(self.deltas, 0), full_matrices=False)[2].T
        total = sum(b.shape[1] for b, _ in self.factors)
        return Core(left[:, :total], right[:, :total], self.deltas)


@dataclass(frozen=True)
class Core:
    """The deltas in orthonormal bases of all they span: dense code has no null space to fill."""

    left: Tensor  # (m, R)
    right: Tensor  # (n, R)
    wide: list[Tensor]

    @cached_property
    def deltas(self) -> list[Tensor]:
        return [self.left.T @ delta @ self.right for delta in self.wide]

    def lift(self, x: Tensor) -> Tensor:
        return self.left @ x @ self.right.T


def problems() -> Iterator[Problem]:
    """Yield every problem."""
    for seed, (count, rank, m, n) in enumerate(_SHAPES):
        generator = torch.Generator().manual_seed(seed)
        shared = _factors(generator, m, n, rank)
        factors = []
        for _ in range(count):
            b, a = _factors(generator, m, n, rank)
            factors.append((0.7 * b + 0.3 * shared[0], 0.7 * a + 0.3 * shared[1]))
        yield Problem(f"{count} x {rank}", tuple(factors))
    adapters = [gm.load(EXAMPLES / name) for name in ("addition", "sorting", "spelling")]
    for name in adapters[0].modules:
        if name.endswith(_REAL):
            factors = [_scaled(adapter.modules[name]) for adapter in adapters]
            yield Problem(name.removeprefix("model."), tuple(factors))


def _scaled(module: gm.LoraModule) -> tuple[Tensor, Tensor]:
    b, a = module.factors()  # (1, m, r), (1, r, n)
    return module.scale * b[0], a[0]


def _factors(generator: torch.Generator, m: int, n: int, r: int) -> tuple[Tensor, Tensor]:
    b = torch.randn(m, r, generator=generator, dtype=torch.float64) / m**0.5
    return b, torch.randn(r, n, generator=generator, dtype=torch.float64) / n**0.5
