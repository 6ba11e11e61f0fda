"""A weight of the base model: read for DoRA alone, whose deltas depend on it, block by block.

Tensor legend: ``m`` out, ``n`` in, ``r`` rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from gam_merge._common.tensors import LazyTensor, blocks, read

_BLOCK = 1 << 20  # elements of a weight that are worked on at a time

Factors = tuple[Tensor, Tensor]  # b (m, r), a (r, n)


@dataclass(frozen=True)
class BaseWeight:
    """The weight of a module as a matrix (m, n); what is beyond two dimensions is flattened into n.

    ``transposed``: it is kept as (n, m).
    """

    tensor: LazyTensor
    transposed: bool

    def read(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix: (m, n)."""
        value = read(self.tensor).to(dtype).flatten(1)
        return value.mT if self.transposed else value

    def row_norms(self, deltas: Sequence[Factors]) -> list[Tensor]:
        """Return |rows of W + b a| for each delta: (m,) float64, in one pass over W."""
        size = self.tensor.shape[1 if self.transposed else 0]
        sums = [torch.zeros(size, dtype=torch.float64, device=b.device) for b, _ in deltas]
        for rows, columns, block in self._blocks():
            for total, (b, a) in zip(sums, deltas, strict=True):
                moved = torch.addmm(block.to(b), b[rows], a[:, columns])
                total[rows] += torch.linalg.vector_norm(moved, dim=1, dtype=torch.float64).square()
        return [total.sqrt() for total in sums]

    def _blocks(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield pieces (p, q) of the matrix, with their rows and columns."""
        width = prod(self.tensor.shape[1:])
        whole = slice(None)
        for part, flat in blocks(self.tensor, max(1, _BLOCK // width) * width):
            lines, block = slice(part.start // width, part.stop // width), flat.view(-1, width)
            if self.transposed:
                yield whole, lines, block.mT
            else:
                yield lines, whole, block
