"""The changes that fusing an adapter makes to a tensor of its base model.

Tensor legend: ``S`` matrices in a tensor, ``m`` out, ``n`` in, ``r`` rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot
from typing import Protocol

import torch
from torch import Tensor

from gam_kernels import product_norm
from gam_merge._common.tensors import read
from gam_merge._read.adapter import Extra, LoraModule
from gam_merge._read.layout import ConvLayout

_BLOCK = 1 << 21  # elements of a weight that are worked on at a time


@dataclass(frozen=True)
class FusedModule:
    """A module that was fused: Frobenius norms of its delta and of the weight it was added to.

    Example:
        >>> import os, torch
        >>> from safetensors.torch import save_file
        >>> os.mkdir("base")
        >>> save_file({"layers.0.q_proj.weight": torch.eye(4)}, "base/model.safetensors")
        >>> prefix = "base_model.model.layers.0.q_proj.lora"
        >>> a, b = torch.ones(1, 4), torch.ones(4, 1)
        >>> factors = {f"{prefix}_A.weight": a, f"{prefix}_B.weight": b}
        >>> adapter = gm.from_state_dict(factors, {"r": 1, "lora_alpha": 1})
        >>> gm.fuse("base", adapter, "fused").modules[0]
        FusedModule(name='layers.0.q_proj', shape=(4, 4), delta_norm=4.0, weight_norm=2.0)
    """

    name: str
    shape: tuple[int, int]  # (out, in) of each of its matrices
    delta_norm: float
    weight_norm: float


class Edit(Protocol):
    """A change to one tensor."""

    def apply(self, weight: Tensor) -> FusedModule | None:
        """Change the tensor in place."""
        ...


@dataclass(frozen=True)
class AddDelta:
    """weight + scale * B A, each element rounded to the dtype of the weight once.

    The rows of a DoRA are then scaled to its magnitudes. ``transposed``: the weight is kept as
    (in, out).
    """

    module: LoraModule
    transposed: bool

    def apply(self, weight: Tensor) -> FusedModule:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        b, a = self.module.factors(dtype)  # (S, m, r), (S, r, n)
        b = b * self.module.scale
        matrices = self._matrices(weight)
        if self.module.magnitude is None:
            norms = [_add(*matrix) for matrix in zip(matrices, b, a, strict=True)]
            delta_norm = float(product_norm(b.double(), a.double().mT).norm())
            weight_norm = hypot(*norms)
        else:
            magnitude = read(self.module.magnitude).to(b).flatten()  # (m,)
            (matrix,) = matrices
            delta_norm, weight_norm = _add_and_scale(matrix, b[0], a[0], magnitude)
        return FusedModule(self.module.name, self.module.shape, delta_norm, weight_norm)

    def _matrices(self, weight: Tensor) -> Tensor:
        """View the tensor as (S, m, n)."""
        if isinstance(self.module.layout, ConvLayout):
            return weight.flatten(1).unsqueeze(0)
        if weight.dim() == 2:
            weight = weight.unsqueeze(0)
        return weight.mT if self.transposed else weight


def _add(weight: Tensor, b: Tensor, a: Tensor) -> float:
    """Add b a to a matrix, in blocks of rows; return its norm before."""
    rows = max(1, _BLOCK // weight.shape[1])
    norms: list[float] = []
    for block, left in zip(weight.split(rows), b.split(rows), strict=True):
        norms.append(float(torch.linalg.vector_norm(block, dtype=torch.float64)))
        block.copy_(torch.addmm(block.to(b.dtype), left, a))
    return hypot(*norms)


def _add_and_scale(weight: Tensor, b: Tensor, a: Tensor, magnitude: Tensor) -> tuple[float, float]:
    """Add b a to a matrix and scale its rows to ``magnitude``.

    Returns the norm of the change, and that of the matrix before.
    """
    rows = max(1, _BLOCK // weight.shape[1])
    changes, norms = list[float](), list[float]()
    for block, left, lengths in zip(
        weight.split(rows), b.split(rows), magnitude.split(rows), strict=True
    ):
        before = block.to(b.dtype)
        moved = torch.addmm(before, left, a)
        moved *= (lengths / torch.linalg.vector_norm(moved, dim=1)).unsqueeze(1)
        changes.append(float(torch.linalg.vector_norm(moved - before, dtype=torch.float64)))
        norms.append(float(torch.linalg.vector_norm(before, dtype=torch.float64)))
        block.copy_(moved)
    return hypot(*changes), hypot(*norms)


@dataclass(frozen=True)
class AddExtra:
    """weight + scale * value: the effect of lora_bias on a bias."""

    extra: Extra

    def apply(self, weight: Tensor) -> None:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        weight.copy_(weight.to(dtype) + self.extra.scale * read(self.extra.tensor).to(dtype))


@dataclass(frozen=True)
class Replace:
    """The value of the adapter, rounded to the dtype of the weight; with ``rows`` only in those."""

    extra: Extra
    rows: Sequence[int] | None = None

    def apply(self, weight: Tensor) -> None:
        value = read(self.extra.tensor).to(weight.dtype)
        if self.rows is None:
            weight.copy_(value)
        else:
            weight[torch.tensor(self.rows)] = value
