"""The factors themselves, B and A each on its own, as PEFT's add_weighted_adapter merges them.

Merged factors multiply out to sum_ij B_i A_j: the cross terms of different adapters are added to
the deltas. They mean something only where all adapters started from one A, and everything depends
on how a delta is split between B and A.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gam_merge._deltas.bucket import Bucket, Merged
from gam_merge._methods._entries import Blocks, Part, View
from gam_merge._methods._factors import root, signed_root, stacked
from gam_merge._methods._rule import space


@space(
    "factor",
    summary="the factors B and A, each on its own",
    reference="PEFT `add_weighted_adapter`",
    breaks={
        "gauge": "other factors of the same delta give another result",
        "mixed ranks": "factors of different ranks cannot be added",
        "deficient": "columns that cancel out in the product count too",
    },
    takes="bucket",
    gives="merged",
    rank="largest",
    reads_factors=True,
)
def factor(bucket: Bucket, weights: Tensor) -> View:
    b, a = stacked(bucket, "@factor")  # (L, N, m, r), (L, N, r, n)

    def lift(merged: Sequence[Blocks]) -> Merged:
        (b,), (a,) = merged[0](), merged[1]()  # (L, m, r), (L, r, n)
        eye = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device).expand(len(b), -1, -1)
        return Merged(eye, eye, b=b, a=a.mT)

    return View([Part.of("B", b, root), Part.of("A", a, signed_root)], lift)
