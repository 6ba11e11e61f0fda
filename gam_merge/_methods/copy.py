"""One adapter as it is: the same factors, with its scale folded into B.

What ``convert`` takes: no factor is computed anew, so that nothing is lost to rounding where the
scale is a power of two.
"""

import torch
from torch import Tensor

from gam_merge._deltas.bucket import Bucket, Merged
from gam_merge._methods._rule import rule


@rule(
    "bucket",
    "copy",
    summary="the factors of one adapter as they are, times its weight",
    reference="what `convert` takes",
    use="to convert, rename or re-scale an adapter without touching its factors",
    avoid="for a lower rank: resize gives the nearest adapter of it",
    rank="largest",
    normalize=False,
    adapters=1,
    composes=False,
    reads_factors=True,
)
def copy(bucket: Bucket, weights: Tensor) -> Merged:
    (x,) = bucket.factors
    eye = torch.eye(x.b.shape[-1], dtype=torch.float64, device=x.b.device)  # (r, r)
    c = weights[:, :1] * x.scale.unsqueeze(-1)  # (L, 1)
    return Merged(c.unsqueeze(-1) * eye, eye.expand(len(c), -1, -1), b=x.b, a=x.a)
