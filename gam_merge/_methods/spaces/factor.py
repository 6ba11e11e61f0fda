"""The factors themselves, B and A each on its own, as PEFT's add_weighted_adapter merges them.

Merged factors multiply out to sum_ij B_i A_j: the terms of unlike adapters come on top of the deltas. They mean
something only where all adapters started from one A, and all depends on how a delta is split between B and A.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from gam_merge._common.errors import GamMergeError
from gam_merge._deltas.bucket import Bucket, Merged
from gam_merge._methods._entries import Blocks, Part, View
from gam_merge._methods._rule import space


@space(
    "factor",
    summary="the factors B and A, each on its own",
    reference="PEFT `add_weighted_adapter`",
    breaks={
        "gauge": "other factors of the same delta give another result",
        "mixed ranks": "factors of unlike rank cannot be added",
        "deficient": "columns that cancel out in the product count",
    },
    takes="bucket",
    gives="merged",
    rank="largest",
    reads_factors=True,
)
def factor(bucket: Bucket, weights: Tensor) -> View:
    ranks = tuple(x.b.shape[-1] for x in bucket.factors)
    if len(set(ranks)) > 1:
        raise GamMergeError(
            f"module {bucket.names[0]} has ranks {ranks}: @factor adds factors and needs equal ones; use @core instead"
        )
    roots = [x.scale.sqrt()[:, None, None] for x in bucket.factors]
    b = torch.stack(
        [x.b.double() * root for x, root in zip(bucket.factors, roots, strict=True)], 1
    )  # (L, N, m, r)
    a = torch.stack(
        [x.a.double().mT * root for x, root in zip(bucket.factors, roots, strict=True)], 1
    )  # (L, N, r, n)

    def lift(merged: Sequence[Blocks]) -> Merged:
        (b,), (a,) = (blocks() for blocks in merged)
        eye = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device).expand(len(b), -1, -1)
        return Merged(eye, eye, b=b, a=a.mT)

    root, signed = (lambda w: w.abs().sqrt()), (lambda w: w.sign() * w.abs().sqrt())
    return View([Part.of("B", b, root), Part.of("A", a, signed)], lift)
