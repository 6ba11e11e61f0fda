"""KnOTS (arXiv 2410.19735): one left singular basis for all deltas, entries of the rest of each.

    [delta_1 ... delta_N] = U S [V_1^T ... V_N^T],    delta_i is seen as P_i = S V_i^T    (K x n)

The result is U times the merged P. A sum or mean in this space is the sum or mean of the deltas.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gam_merge._deltas.bucket import Merged
from gam_merge._deltas.core import Core
from gam_merge._methods._entries import Blocks, Part, View
from gam_merge._methods._rule import space


@space(
    "knots",
    summary="the deltas in one left singular basis: R x in matrices",
    reference="arXiv 2410.19735 (ICLR 2025)",
    rank="sum",
    gives="merged",
    single=True,
)
def knots(core: Core, weights: Tensor) -> View:
    p = torch.linalg.svd(torch.cat(core.m.unbind(1), -1), full_matrices=False)[0]  # (L, K, K)
    p, _ = core.orient(p, p.new_zeros(len(p), core.v.shape[-1], 0))
    v = core.right_basis()[0]  # (n, J)
    left = p[0].mT @ core.m[0]  # (N, K, J)

    def rows(block: slice) -> Tensor:
        return (left[:, block] @ v.mT).unsqueeze(0)  # (1, N, p, n)

    def lift(merged: Sequence[Blocks]) -> Merged:
        left, s, right, a = singular_pairs(p, merged[0])
        return Merged(core.u @ left, right, s=s, a=a)

    shape = left.shape[1], len(v)
    return View([Part.in_blocks("knots", shape, len(left), rows)], lift)


def singular_pairs(p: Tensor, rows: Blocks) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return p x as balanced singular pairs, from blocks of the rows of x (1, K, n).

    p: (1, J, K) -> left (1, J, k), s (1, k), right (1, k, k) and a (1, n, k), with p x = left
    right^T a^T.
    """
    x = torch.cat(list(rows()), -2)  # (1, K, n)
    a, t = torch.linalg.qr(x.mT)  # (1, n, k), (1, k, K): x = t^T a^T
    left, s, right = torch.linalg.svd(p @ t.mT, full_matrices=False)
    root = s.sqrt().unsqueeze(-2)
    return left * root, s, right.mT * root, a
