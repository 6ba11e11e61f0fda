"""Linear combinations of the deltas, exact before the cut to the output rank.

    sum w_i delta_i

One rule under four names. ``mean``: weights are shares, cut to the largest source rank. ``sum``
(task arithmetic, arXiv 2212.04089) and ``cat`` (PEFT's name for it): weights as given, 1 by
default, rank the sum of ranks. ``svd_k`` (PEFT's ``svd``): the sum, cut to the largest source rank.
"""

from dataclasses import replace

from torch import Tensor

from gam_merge._deltas.bucket import Bucket, Merged, block_diagonal
from gam_merge._deltas.core import weighted_sum
from gam_merge._methods._entries import Entries
from gam_merge._methods._rule import rule


def combination(bucket: Bucket, c: Tensor) -> Merged:
    """Return sum c_i delta_i as a product of the stacked bases, of rank R: c (L, N)."""
    lefts = [c[:, i, None, None] * delta.u @ delta.core for i, delta in enumerate(bucket.deltas)]
    rights = [delta.v for delta in bucket.deltas]
    return Merged(block_diagonal(lefts), block_diagonal(rights))  # (L, R, sum of k) each


def entrywise(entries: Entries, weights: Tensor) -> Tensor:
    """Return sum w_i x_i in any space."""
    return weighted_sum(weights, entries.x)


@rule(
    "bucket",
    "mean",
    summary="weighted mean of the deltas, cut to the largest source rank",
    reference="PEFT `svd` with weights that sum to one",
    use="as the baseline: hard to beat for language models, exact if --rank is the sum of ranks",
    avoid="where each adapter has its own task and must keep its strength: all are divided by N",
    rank="largest",
    entries=entrywise,
)
def mean(bucket: Bucket, weights: Tensor) -> Merged:
    return combination(bucket, weights)


total = replace(
    mean,
    name="sum",
    summary="task arithmetic: the sum of the deltas times their weights, exact",
    reference="arXiv 2212.04089",
    use="for adapters of different tasks that should act together; tune `scale` if you can",
    avoid="for adapters of one task: they agree, and their sum overshoots N-fold",
    rank="sum",
    normalize=False,
    breaks={"equal": "N equal deltas add up to N times one of them"},
)
cat = replace(
    total,
    name="cat",
    summary=f"{total.summary}; the name that PEFT gives it",
    reference="PEFT `cat`",
)
svd_k = replace(
    total,
    name="svd_k",
    rank="largest",
    summary="the sum of the deltas times their weights, cut to the largest source rank",
    reference="PEFT `svd`; at alpha = r alone up to 0.20, which counts the scale twice",
    use="like `sum`, where the output must not have the sum of ranks",
)
