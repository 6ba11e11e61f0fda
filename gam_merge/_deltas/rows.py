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
        """Return the modules of ``index``."""
        return RowScaling(tuple(self.weights[j] for j in index.tolist()), self.gain[index])

    def magnitudes(self, b: Tensor, a: Tensor) -> Tensor:
        """Return the magnitudes of the merged deltas b a: (L, m) float64.

        b: (L, m, k), a: (L, k, n), as they are written.
        """
        wide = torch.promote_types(b.dtype, torch.float32)
        modules = zip(self.weights, b.to(wide), a.to(wide), strict=True)
        norms = [weight.row_norms([(left, right)])[0] for weight, left, right in modules]
        return self.gain.cpu() * torch.stack(norms)

    def flattened(
        self, names: Sequence[str], b: Tensor, a: Tensor, rank: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the plain deltas of low rank nearest to diag(c) (W + b a) - W, the merge's change.

        b: (L, m, k), a: (L, n, k) -> b (L, m, rank), a (L, n, rank), share of energy that they keep
        (L,).
        """
        modules = zip(names, self.weights, self.gain, b, a, strict=True)
        flattened = [_flatten(*module, rank) for module in modules]
        left, right, kept = zip(*flattened, strict=True)
        return torch.stack(left), torch.stack(right), torch.stack(kept)


def _flatten(
    name: str, weight: BaseWeight, gain: Tensor, b: Tensor, a: Tensor, rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The plain delta of one module: gain (m,), b (m, k), a (n, k)."""
    c = gain.to(b).unsqueeze(-1)  # (m, 1)
    base = weight.read(b.dtype).to(b.device)
    change = torch.addmm((c - 1) * base, c * b, a.mT)  # (m, n)
    m, n = change.shape
    random = generator(0, name)
    u, s, v, energy = leading_svd(lambda: change.split(_ROWS), (m, n), rank, generator=random)
    root = s.sqrt().to(b)
    share = s.square().sum() / energy.clamp(min=torch.finfo(energy.dtype).tiny)
    return u * root, v * root, torch.where(energy > 0, share, 1.0)
