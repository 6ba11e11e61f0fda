"""Merged buckets in full size: from coefficients to the factors that are written.

Tensor legend: ``N`` adapters, ``L`` modules at a time, ``m`` out, ``n`` in, ``r`` rank, ``R`` sum
of ranks, ``k`` rank of the output.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gam_kernels import compress
from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import dtype_name
from gam_merge._deltas.bucket import Bucket, Merged
from gam_merge._run.job import Job, combine


class Lifted(NamedTuple):
    """Merged factors of full size: merged = b a^T."""

    b: Tensor  # (L, m, k)
    a: Tensor  # (L, n, k)
    energy_kept: Tensor  # (L,)
    warnings: dict[str, Tensor]  # text -> (L,) bool
    coefficients: tuple[Tensor, Tensor] | None = None  # (L, R, k), if in the span of the factors


def merged_factors(job: Job, bucket: Bucket, summary: Any) -> Lifted:
    """Return the merged factors of a bucket, cut to the rank of the output."""
    if job.flatten_dora and bucket.rows:
        whole = _lift(job, bucket, summary, max(bucket.output_rank, *bucket.shape))
        b, a, kept = bucket.rows.flattened(bucket.names, whole.b, whole.a, bucket.output_rank)
        return whole._replace(b=b, a=a, energy_kept=kept, coefficients=None)
    return _lift(job, bucket, summary, bucket.output_rank)


def _lift(job: Job, bucket: Bucket, summary: Any, rank: int) -> Lifted:
    """Return the merged factors of a bucket in full size, cut to a rank."""
    if not bucket.deltas:
        return _zero(job, bucket)
    merged = combine(job, bucket, summary)
    left, right, kept = _cut(bucket, merged, rank)
    tall_b, tall_a = merged.sides(bucket)
    b, a = sum_of_products(tall_b, left), sum_of_products(tall_a, right)  # (L, m, k), (L, n, k)
    if merged.kept is not None:
        kept = kept * merged.kept
    inside = merged.b is None and merged.a is None
    return Lifted(b, a, kept, dict(merged.warnings), (left, right) if inside else None)


def _zero(job: Job, bucket: Bucket) -> Lifted:
    count, (m, n) = len(bucket.names), bucket.shape
    b = torch.zeros(count, m, 1, device=job.device)
    a = torch.zeros(count, n, 1, device=job.device)
    everywhere = torch.ones(count, dtype=torch.bool, device=job.device)
    return Lifted(b, a, everywhere.double(), {"zero in every adapter": everywhere})


def _cut(bucket: Bucket, merged: Merged, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return coefficients (L, R, k) of at most ``rank`` columns, and the energy kept (L,)."""
    left, right = merged.left, merged.right
    if left.shape[-1] <= rank:
        return left, right, left.new_ones(len(left))
    s = merged.s
    if s is None:
        left, right, s = compress(left, right, *merged.grams(bucket), rank=rank)
    energy = s.square()
    total = energy.sum(-1)
    kept = energy[:, :rank].sum(-1) / total.clamp(min=torch.finfo(s.dtype).tiny)
    return left[..., :rank], right[..., :rank], torch.where(total > 0, kept, 1.0)


def sum_of_products(factors: Sequence[Tensor], coefficients: Tensor) -> Tensor:
    """Return [x_1 ... x_N] @ coefficients without stacking.

    factors: (L, m, r_i) each. coefficients: (L, R, k). Returns (L, m, k), which is laid out in
    memory as the factors are.
    """
    parts = coefficients.to(factors[0].dtype).split([x.shape[-1] for x in factors], -2)
    terms = list(zip(factors, parts, strict=True))
    is_transposed = factors[0].stride(-1) > 1
    if is_transposed:
        terms = [(part.mT, x.mT) for x, part in terms]
    out = torch.bmm(*terms[0])
    for left, right in terms[1:]:
        out.baddbmm_(left, right)
    return out.mT if is_transposed else out


def output_factors(
    job: Job, bucket: Bucket, lifted: Lifted, largest: Tensor
) -> tuple[Tensor, Tensor]:
    """Return B (L, m, k) and A (L, k, n) as they are written: in the output's dtype, on the CPU.

    Zero rows pad them to the rank of the output. largest: (L,), of their entries. Raises
    GamMergeError for entries out of the dtype's range.
    """
    for name, value in zip(bucket.matrices, largest.tolist(), strict=True):
        if not value <= torch.finfo(job.dtype).max:  # NaN compares false
            remedy = "bfloat16 or float32" if job.dtype == torch.float16 else "float64"
            raise GamMergeError(
                f"module {name} of the merge does not fit into {dtype_name(job.dtype)}; "
                f"write {remedy}"
            )
    b, a = lifted.b.to(job.dtype), lifted.a.to(job.dtype)
    padding = 0, bucket.output_rank - b.shape[-1]
    if any(padding):  # even by nothing it copies
        b, a = torch.nn.functional.pad(b, padding), torch.nn.functional.pad(a, padding)
    return b.cpu(), a.cpu().mT.contiguous()


def largest_entry(x: Tensor) -> Tensor:
    """Return the largest absolute value of each matrix, NaN if one is in it: (L, m, k) -> (L,).

    Without the copy that ``abs`` makes.
    """
    return torch.maximum(x.amax((1, 2)), -x.amin((1, 2)))


def balanced(lifted: Lifted, dtype: torch.dtype) -> tuple[Lifted, Tensor]:
    """Return the factors within the range of a dtype, and their largest entry (L,).

    Where one alone would leave it, a power of two is moved from one factor to the other.
    """
    b, a = largest_entry(lifted.b).double(), largest_entry(lifted.a).double()  # (L,)
    low, high, limits = torch.minimum(b, a), torch.maximum(b, a), torch.finfo(dtype)
    outside = (low > 0) & high.isfinite() & ((low < limits.tiny) | (high > limits.max))
    if not outside.any():
        return lifted, high
    shift = torch.where(outside, ((b.log2() - a.log2()) / 2).round(), 0.0)
    text = f"a factor was scaled down and the other up to fit into {dtype_name(dtype)}"
    within_range = lifted._replace(
        b=lifted.b.ldexp(-shift[:, None, None].int()),
        a=lifted.a.ldexp(shift[:, None, None].int()),
        warnings={**lifted.warnings, text: outside},
    )
    return within_range, torch.maximum(b.ldexp(-shift), a.ldexp(shift))
