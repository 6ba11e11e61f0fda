"""Decom-Renorm-Merge (arXiv 2505.23117): KnOTS with entries trimmed at equal lengths of rows.

    [delta_1 ... delta_N] = U S [V_1^T ... V_N^T],    row j of S V_i^T has the length l_ij
    of the rows of length one only the largest entries stay, those of all adapters ranked together
    delta_i is seen as these rows times l_ij    (K x n)

That is DRM-H; DRM-V does the same with the deltas on top of each other. Directions with less than a
hundredth of the largest singular value are dropped. An election of signs follows, without further
trimming: ``drm_h`` is short for ``elect@drm_h``.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from gam_merge._deltas.bucket import Merged
from gam_merge._deltas.core import Core
from gam_merge._methods._entries import Blocks, Part, View, largest
from gam_merge._methods._rule import space
from gam_merge._methods._schema import Range
from gam_merge._methods.spaces.knots import singular_pairs

Keep = Annotated[float, Range(0, 1), "share of the entries that is kept, of all adapters together"]
Least = Annotated[
    float, Range(0, 1), "share of the largest singular value below which directions are dropped"
]
_ROUNDED = 1 - 1e-12  # entries of one product round differently in blocks of other shapes
_BREAKS = {
    "identity": "small entries and weak directions of a single adapter are dropped",
    "equal": "as for a single adapter",
}


@space(
    "drm_h",
    summary="the deltas in one left singular basis, trimmed at equal lengths: R x in matrices",
    reference="arXiv 2505.23117",
    breaks=_BREAKS,
    rank="sum",
    gives="merged",
    single=True,
)
def drm_h(core: Core, weights: Tensor, *, keep: Keep = 0.2, least: Least = 0.01) -> View:
    p = _shared(core.m, least)  # (1, K, k)
    p, _ = core.orient(p, core.m.new_zeros(1, core.m.shape[-1], 0))

    def lift(merged: Sequence[Blocks]) -> Merged:
        left, s, right, a = singular_pairs(p, merged[0])
        return Merged(core.u @ left, right, s=s, a=a)

    return View([_trimmed("drm_h", p[0].mT @ core.m[0], core.right_basis()[0], keep)], lift)


@space(
    "drm_v",
    summary="the deltas in one right singular basis, trimmed at equal lengths: R x out matrices",
    reference="arXiv 2505.23117",
    breaks=_BREAKS,
    rank="sum",
    gives="merged",
    single=True,
)
def drm_v(core: Core, weights: Tensor, *, keep: Keep = 0.2, least: Least = 0.01) -> View:
    q = _shared(core.m.mT, least)  # (1, J, k)
    _, q = core.orient(core.m.new_zeros(1, core.m.shape[-2], 0), q)

    def lift(merged: Sequence[Blocks]) -> Merged:
        right, s, left, b = singular_pairs(q, merged[0])
        return Merged(left, core.v @ right, s=s, b=b)

    return View([_trimmed("drm_v", q[0].mT @ core.m[0].mT, core.left_basis()[0], keep)], lift)


def _shared(m: Tensor, least: float) -> Tensor:
    """The left singular vectors of [m_1 ... m_N] that are not weak: (1, N, K, J) -> (1, K, k)."""
    p, s, _ = torch.linalg.svd(torch.cat(m.unbind(1), -1), full_matrices=False)
    return p[..., : int((s > least * s[:, :1]).sum())]


def _trimmed(name: str, rows: Tensor, basis: Tensor, keep: float) -> Part:
    """Show rows in their full size, without the entries that are small at equal lengths.

    rows: (N, k, J), in a basis (n, J).
    """
    lengths = rows.norm(dim=-1, keepdim=True)  # (N, k, 1)
    units = torch.nn.functional.normalize(rows, dim=-1, eps=torch.finfo(rows.dtype).tiny)
    shape = units.shape[0] * units.shape[1], len(basis)
    together = Part.in_blocks(
        name, shape, 1, lambda block: (units.flatten(0, 1)[block] @ basis.mT)[None, None]
    )
    smallest = largest(together, min(round(keep * together.size) + 1, together.size)) * _ROUNDED

    def trimmed(block: slice) -> Tensor:
        unit = units[:, block] @ basis.mT  # (N, p, n)
        return (lengths[:, block] * unit * (unit.abs() >= smallest)).unsqueeze(0)

    return Part.in_blocks(name, (units.shape[1], len(basis)), len(units), trimmed)
