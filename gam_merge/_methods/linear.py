"""Weighted mean of the deltas, exact before the cut to the output rank (task arithmetic, arXiv 2212.04089)."""

from torch import Tensor

from gam_merge._bucket import Bucket, Merged


def mean(bucket: Bucket, weights: Tensor) -> Merged:
    """sum w_i delta_i, as a product of the stacked bases. Rank of the result: the sum of ranks."""
    lefts = [weights[:, i, None, None] * delta.u @ delta.core for i, delta in enumerate(bucket.deltas)]
    rights = [delta.v for delta in bucket.deltas]
    return Merged(_block_diagonal(lefts), _block_diagonal(rights))  # (L, R, sum of k)


def _block_diagonal(blocks: list[Tensor]) -> Tensor:
    """(L, r_i, k_i) each -> (L, sum r, sum k)."""
    modules = blocks[0].shape[0]
    rows, columns = (sum(block.shape[side] for block in blocks) for side in (-2, -1))
    out, row, column = blocks[0].new_zeros(modules, rows, columns), 0, 0
    for block in blocks:
        r, k = block.shape[-2:]
        out[:, row : row + r, column : column + k] = block
        row, column = row + r, column + k
    return out
