"""Geometric Alignment Merging (arXiv 2606.00357, section 4, equations 1 to 5).

    delta_i = U_i S_i V_i^T
    R_i^U = argmin over R of |U_i R - U_ref|_F, likewise R_i^V
    merged = (sum w_i U_i R_i^U) (sum w_i R_i^U^T S_i R_i^V) (sum w_i V_i R_i^V)^T

The result depends on the subspaces and the products alone, so any orthonormal bases with a full core serve in place
of singular vectors. It is a consensus filter: what all adapters share survives, private directions shrink.
"""

import torch
from torch import Tensor

from gam_kernels import procrustes
from gam_merge._bucket import Bucket, Merged

_SINGULAR = 1e-6  # a smaller principal cosine leaves the rotation to rounding


def gam(bucket: Bucket, weights: Tensor) -> Merged:
    """Align every adapter to the reference, then average bases and cores. Rank of the result: that of the reference."""
    reference = bucket.reference
    lefts, rights, core = [], [], torch.zeros((), dtype=torch.float64, device=weights.device)
    doubtful = torch.zeros(len(bucket.names), dtype=torch.bool, device=weights.device)
    for i, delta in enumerate(bucket.deltas):
        w = weights[:, i, None, None]  # (L, 1, 1)
        if i == reference:
            left, right, aligned = delta.u, delta.v, delta.core  # (L, r, k), (L, r, k), (L, k, k)
        else:
            cross_u, cross_v = bucket.cross(i, reference)  # (L, k_i, k)
            (rotate_u, cosines_u), (rotate_v, cosines_v) = procrustes(cross_u), procrustes(cross_v)
            left, right = delta.u @ rotate_u, delta.v @ rotate_v  # (L, r_i, k)
            aligned = rotate_u.mT @ delta.core @ rotate_v  # (L, k, k)
            doubtful |= torch.minimum(cosines_u[:, -1], cosines_v[:, -1]) < _SINGULAR
        lefts.append(w * left)
        rights.append(w * right)
        core = core + w * aligned
    p, s, qt = torch.linalg.svd(core)
    balance = s.sqrt().unsqueeze(-2)  # (L, 1, k): the core goes half to each side
    left, right = torch.cat(lefts, -2) @ (p * balance), torch.cat(rights, -2) @ (qt.mT * balance)  # (L, R, k)
    warnings = {"a subspace is orthogonal to the anchor's: the alignment is arbitrary": doubtful}
    if len(bucket.deltas) > 1 and bucket.adapters[reference] != bucket.anchor:
        text = (
            f"aligned to adapter {bucket.adapters[reference]}: the anchor's delta has a lower rank here, or is missing"
        )
        warnings[text] = torch.ones_like(doubtful)
    return Merged(left, right, warnings)
