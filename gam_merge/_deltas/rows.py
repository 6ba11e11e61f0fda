"""How DoRA scales the rows of base weights, once its deltas are merged.

Tensor legend: ``L`` modules at a time, ``m`` out, ``n`` in, ``k`` rank of the merged deltas.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gam_kernels import leading_svd
from gam_merge._common.random import generator
from gam_merge._read.weight import BaseWeight

_ROWS = 256  # of a weight that are worked on at a time


@dataclass(frozen=True)
class RowScaling:
    """How the rows of the base are scaled in some modules: ``gain`` is c, (L, m) float64."""

    weights: tuple[BaseWeight, ...]
    gain: Tensor

    def select(self, index: Tensor) -> "RowScaling":
        return RowScaling(tuple(self.weights[j] for j in index.tolist()), self.gain[index])

    def magnitudes(self, b: Tensor, a: Tensor) -> Tensor:
        """Of the merged deltas b a: b (L, m, k), a (L, k, n) as they are written -> (L, m) float64."""
        wide = torch.promote_types(b.dtype, torch.float32)
        pairs = zip(self.weights, b.to(wide), a.to(wide), strict=True)
        norms = [weight.row_norms([(left, right)])[0] for weight, left, right in pairs]
        return self.gain.cpu() * torch.stack(norms)

    def flattened(
        self, names: Sequence[str], b: Tensor, a: Tensor, rank: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The plain deltas of low rank nearest to what the merge does to W, diag(c) (W + b a) - W.

        b: (L, m, k), a: (L, n, k) -> b (L, m, rank), a (L, n, rank), share of energy that they keep (L,).
        """
        found = [
            self._flatten(*parts, rank)
            for parts in zip(names, self.weights, self.gain, b, a, strict=True)
        ]
        left, right, kept = zip(*found, strict=True)
        return torch.stack(left), torch.stack(right), torch.stack(kept)

    def _flatten(
        self, name: str, weight: BaseWeight, gain: Tensor, b: Tensor, a: Tensor, rank: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        c = gain.to(b).unsqueeze(-1)  # (m, 1)
        base = weight.read(b.dtype).to(b.device)
        change = torch.addmm((c - 1) * base, c * b, a.mT)  # (m, n)
        m, n = change.shape
        random = generator(0, name)
        u, s, v, energy = leading_svd(lambda: change.split(_ROWS), (m, n), rank, generator=random)
        root = s.sqrt().to(b)
        share = s.square().sum() / energy.clamp(min=torch.finfo(energy.dtype).tiny)
        return u * root, v * root, torch.where(energy > 0, share, 1.0)
