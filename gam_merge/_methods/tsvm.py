"""TSV-Merge (arXiv 2412.00081): singular vectors made orthonormal across tasks, spectra kept.

    delta_i = U_i S_i V_i^T
    merged = polar([U_1 ... U_N]) diag(w_1 S_1, ..., w_N S_N) polar([V_1 ... V_N])^T

With k = r: the paper's k = min(m, n) / N is meant for full fine-tuning and would take in arbitrary
null vectors.
"""

import torch
from torch import Tensor

from gam_merge._deltas.bucket import block_diagonal
from gam_merge._deltas.core import Core, InCore, isometry
from gam_merge._methods._rule import rule


@rule(
    "core",
    "tsvm",
    summary="singular vectors of all adapters made orthonormal together, with each adapter's "
    "singular values",
    reference="arXiv 2412.00081 (CVPR 2025), with k = r",
    use="for specialists, uncut",
    avoid="for adapters of one goal, or nearly equal ones: what they share is decorrelated away",
    normalize=False,
    breaks={},
)
def tsvm(core: Core, weights: Tensor) -> InCore:
    size = max(core.bucket.shape)
    weighted = [weights[:, i, None, None] * x for i, x in enumerate(core.cores)]
    u = isometry(torch.cat(core.lefts, -1), size)  # (L, K, sum k)
    v = isometry(torch.cat(core.rights, -1), size)  # (L, J, sum k)
    return InCore(u @ block_diagonal(weighted) @ v.mT)
