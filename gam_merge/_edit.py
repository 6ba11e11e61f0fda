"""What becomes of a weight of the base model when an adapter is fused into it.

Tensor legend: ``m`` out, ``n`` in, ``r`` rank.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor

from gam_kernels import product_norm
from gam_merge._adapter import LoraModule
from gam_merge._tensors import read

_BLOCK = 1 << 21  # elements of a weight that are worked on at a time


@dataclass(frozen=True)
class FusedModule:
    """One module that was fused: Frobenius norms of its delta and of the weight that it was added to."""

    name: str
    shape: tuple[int, int]  # (out, in)
    delta_norm: float
    weight_norm: float


class Edit(Protocol):
    """What is done to one tensor."""

    def apply(self, weight: Tensor) -> FusedModule | None:
        """Change the tensor where it is."""
        ...


@dataclass(frozen=True)
class AddDelta:
    """weight + scale * B A, or its transpose, each element rounded to the dtype of the weight once."""

    module: LoraModule
    transposed: bool

    def apply(self, weight: Tensor) -> FusedModule:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        b, a = read(self.module.b).to(dtype) * self.module.scale, read(self.module.a).to(dtype)  # (m, r), (r, n)
        view = weight.mT if self.transposed else weight  # (m, n)
        rows, energy = max(1, _BLOCK // view.shape[1]), 0.0
        for block, left in zip(view.split(rows), b.split(rows), strict=True):
            energy += float(torch.linalg.vector_norm(block, dtype=torch.float64)) ** 2
            block.copy_(torch.addmm(block.to(dtype), left, a))
        delta = product_norm(b.double()[None], a.double().mT[None])
        return FusedModule(self.module.name, self.module.shape, float(delta), sqrt(energy))
