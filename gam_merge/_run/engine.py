"""Bucket by bucket: merge, cut to the rank of the output, hand the modules to a sink.

Tensor legend: ``N`` adapters, ``L`` modules at a time, ``m`` out, ``n`` in, ``r`` rank, ``R`` sum
of ranks, ``k`` rank of the output.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gam_kernels import compress, norm, product_norm, response
from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import MemoryTensor, dtype_name
from gam_merge._common.types import Progress
from gam_merge._deltas.bucket import Bucket, Merged
from gam_merge._lineup.lineup import Lineup
from gam_merge._read.adapter import Extra, LoraModule
from gam_merge._read.layout import Layout
from gam_merge._run.extras import check_equal, merge_extra, share_of_members
from gam_merge._run.job import Job, combine, visit_all
from gam_merge._run.report import ModuleReport, combined


class Sink(Protocol):
    """Where merged modules go, as they become known. Their scale is 1."""

    def module(self, module: LoraModule) -> None: ...

    def extra(self, extra: Extra) -> None: ...


class _MergedMatrix(NamedTuple):
    """A merged matrix, as it is written."""

    module: str
    position: int  # in the stack that its module is
    b: Tensor  # (m, k) on the CPU, in the dtype of the output
    a: Tensor  # (k, n) likewise
    magnitude: Tensor | None  # (m,) float64, of DoRA
    report: ModuleReport


class _Lifted(NamedTuple):
    """Merged factors of full size: merged = b a^T."""

    b: Tensor  # (L, m, k)
    a: Tensor  # (L, n, k)
    energy_kept: Tensor  # (L,)
    warnings: dict[str, Tensor]  # text -> (L,) bool
    coefficients: tuple[Tensor, Tensor] | None = None  # (L, R, k), if in the span of the factors


def run(
    lineup: Lineup,
    job: Job,
    sink: Sink,
    *,
    summary: Any = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> tuple[ModuleReport, ...]:
    """Merge every bucket of the lineup into the sink, in the order of the lineup.

    summary: from ``survey``. Returns a report per module, by name. Raises GamMergeError.
    """
    reports: list[ModuleReport] = []
    waiting: dict[str, list[_MergedMatrix]] = {}
    total = len(lineup.names)
    visit = partial(_merge_bucket, job, summary)
    # No chunk is under way once we are out.
    with closing(visit_all(lineup, job, visit, executor)) as buckets:
        for matrices in buckets:
            for matrix in matrices:
                name = matrix.module
                layout = lineup.layouts[name]
                stack = waiting.setdefault(name, [])
                stack.append(matrix)
                if len(stack) == layout.stack:
                    del waiting[name]
                    sink.module(_joined(layout, stack, lineup.magnitude_dtype))
                    reports.append(combined([part.report for part in stack]))
            if progress:
                progress(len(reports), total)
    return tuple(sorted(reports, key=lambda report: report.name))


def _joined(
    layout: Layout, stack: list[_MergedMatrix], magnitude_dtype: torch.dtype | None
) -> LoraModule:
    """Return the module that some matrices are together."""
    stack.sort(key=lambda matrix: matrix.position)
    b, a = layout.join(
        torch.stack([matrix.b for matrix in stack]), torch.stack([matrix.a for matrix in stack])
    )  # (1, *stored shape) each
    name, magnitude = stack[0].module, stack[0].magnitude
    lazy_a, lazy_b = MemoryTensor(a.squeeze(0)), MemoryTensor(b.squeeze(0))
    if magnitude is None:
        return LoraModule(name, lazy_a, lazy_b, 1.0, layout)
    stored = magnitude.to(magnitude_dtype).reshape(layout.magnitude_shape(len(magnitude)))
    if not stored.isfinite().all():
        raise GamMergeError(
            f"the magnitudes of module {name} do not fit into {dtype_name(stored.dtype)}; write "
            "bfloat16 or float32"
        )
    return LoraModule(name, lazy_a, lazy_b, 1.0, layout, MemoryTensor(stored))


def run_extras(lineup: Lineup, job: Job, sink: Sink) -> None:
    """Merge the tensors that are not factors into the sink. Raises GamMergeError."""
    sources = [adapter.source for adapter in lineup.adapters]
    for extra in lineup.extras:
        if extra.kind == "base_weight":
            check_equal(extra, sources)
            continue
        shares = share_of_members(extra, lineup, job)
        merged = MemoryTensor(merge_extra(extra, shares, sources))
        sink.extra(Extra(extra.name, extra.kind, merged))


def _merge_bucket(job: Job, summary: Any, bucket: Bucket) -> list[_MergedMatrix]:
    """Merge the modules of a bucket. Runs on a worker."""
    matrices: list[_MergedMatrix] = []
    for part in job.method.parts(bucket):
        lifted, largest = _balanced(_merge(job, part, summary), job.dtype)
        b, a = _output(job, part, lifted, largest)  # (L, m, k), (L, k, n)
        magnitudes = _magnitudes(job, part, b, a)
        positions = part.indices or (0,) * len(part.names)
        reports = _report(job, part, lifted)
        columns = zip(part.names, positions, b, a, magnitudes, reports, strict=True)
        matrices += [_MergedMatrix(*column) for column in columns]
    return matrices


def _magnitudes(job: Job, bucket: Bucket, b: Tensor, a: Tensor) -> Sequence[Tensor | None]:
    """Return the magnitudes of DoRA for the factors as they are written, one per module."""
    if bucket.rows is None or job.flatten_dora:
        return [None] * len(b)
    return list(bucket.rows.magnitudes(b, a))


def _merge(job: Job, bucket: Bucket, summary: Any) -> _Lifted:
    """Return the merged factors of a bucket, cut to the rank of the output."""
    if job.flatten_dora and bucket.rows:
        whole = _lift(job, bucket, summary, max(bucket.output_rank, *bucket.shape))
        b, a, kept = bucket.rows.flattened(bucket.names, whole.b, whole.a, bucket.output_rank)
        return whole._replace(b=b, a=a, energy_kept=kept, coefficients=None)
    return _lift(job, bucket, summary, bucket.output_rank)


def _lift(job: Job, bucket: Bucket, summary: Any, rank: int) -> _Lifted:
    if not bucket.deltas:
        b, a = (torch.zeros(len(bucket.names), size, 1, device=job.device) for size in bucket.shape)
        everywhere = torch.ones(len(bucket.names), dtype=torch.bool, device=job.device)
        return _Lifted(b, a, everywhere.double(), {"zero in every adapter": everywhere})
    merged = combine(job, bucket, summary)
    left, right, kept = _cut(bucket, merged, rank)
    tall_b, tall_a = merged.sides(bucket)
    b, a = sum_of_products(tall_b, left), sum_of_products(tall_a, right)  # (L, m, k), (L, n, k)
    kept = kept if merged.kept is None else kept * merged.kept
    inside = merged.b is None and merged.a is None
    return _Lifted(b, a, kept, dict(merged.warnings), (left, right) if inside else None)


def _cut(bucket: Bucket, merged: Merged, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients (L, R, k) of at most ``rank`` columns, and the share of energy (L,) that they keep."""
    left, right = merged.left, merged.right
    if left.shape[-1] <= rank:
        return left, right, left.new_ones(len(left))
    s = merged.s
    if s is None:
        left, right, s = compress(left, right, *merged.grams(bucket))
    energy = s.square()
    kept = energy[:, :rank].sum(-1) / energy.sum(-1).clamp(min=torch.finfo(s.dtype).tiny)
    return left[..., :rank], right[..., :rank], torch.where(energy.sum(-1) > 0, kept, 1.0)


def sum_of_products(factors: Sequence[Tensor], coefficients: Tensor) -> Tensor:
    """[x_1 ... x_N] @ coefficients without stacking: (L, m, r_i) each, (L, R, k) -> (L, m, k)."""
    parts = coefficients.to(factors[0].dtype).split([x.shape[-1] for x in factors], -2)
    out = factors[0] @ parts[0]
    for x, part in zip(factors[1:], parts[1:], strict=True):
        out.baddbmm_(x, part)
    return out


def _output(job: Job, bucket: Bucket, lifted: _Lifted, largest: Tensor) -> tuple[Tensor, Tensor]:
    """B (L, m, k) and A (L, k, n) padded with zero rows to the rank of the output, in its dtype, on the CPU. largest:
    (L,), of their entries."""
    for name, value in zip(bucket.matrices, largest.tolist(), strict=True):
        if not value <= torch.finfo(job.dtype).max:
            remedy = "bfloat16 or float32" if job.dtype == torch.float16 else "float64"
            raise GamMergeError(
                f"module {name} of the merge does not fit into {dtype_name(job.dtype)}; write {remedy}"
            )
    padding = (0, bucket.output_rank - lifted.b.shape[-1])
    b, a = (
        torch.nn.functional.pad(side.to(job.dtype), padding).cpu() for side in (lifted.b, lifted.a)
    )
    return b, a.mT.contiguous()


def _balanced(lifted: _Lifted, dtype: torch.dtype) -> tuple[_Lifted, Tensor]:
    """With a power of two moved from one factor to the other where one alone would leave the range of a dtype; and the
    largest entry (L,)."""
    b, a = (side.abs().amax((1, 2)).double() for side in (lifted.b, lifted.a))  # (L,)
    low, high, limits = torch.minimum(b, a), torch.maximum(b, a), torch.finfo(dtype)
    outside = (low > 0) & high.isfinite() & ((low < limits.tiny) | (high > limits.max))
    if not outside.any():
        return lifted, high
    shift = torch.where(outside, ((b.log2() - a.log2()) / 2).round(), 0.0)
    text = f"a factor was scaled down and the other up to fit into {dtype_name(dtype)}"
    balanced = lifted._replace(
        b=lifted.b.ldexp(-shift[:, None, None].int()),
        a=lifted.a.ldexp(shift[:, None, None].int()),
        warnings={**lifted.warnings, text: outside},
    )
    return balanced, torch.maximum(b.ldexp(-shift), a.ldexp(shift))


def _responses(bucket: Bucket, lifted: _Lifted) -> tuple[list[Tensor], Tensor]:
    """U_i^T merged V_i of each delta, (L, k_i, k_i), and |merged|, (L,): from Gram matrices where they are there."""
    if lifted.coefficients is None or bucket.known_grams is None:
        return [response(x, lifted.b, lifted.a) for x in bucket.deltas], product_norm(
            lifted.b, lifted.a
        )
    left, right = lifted.coefficients
    b, a = (
        g @ side for g, side in zip(bucket.known_grams, (left, right), strict=True)
    )  # (L, R, k)
    sizes = [x.b.shape[-1] for x in bucket.deltas]
    parts = zip(bucket.deltas, b.split(sizes, -2), a.split(sizes, -2), strict=True)
    return [(x.u.mT @ b_i) @ (x.v.mT @ a_i).mT for x, b_i, a_i in parts], Merged(left, right).norm(
        bucket
    )


def _report(job: Job, bucket: Bucket, lifted: _Lifted) -> list[ModuleReport]:
    """What happened to each module, before its factors are rounded to the output dtype."""
    nothing = [0.0] * len(bucket.names)
    ranks, norms, inners, responses = (
        [nothing] * len(job.settings.weights) for _ in range(4)
    )  # (N, L)
    responded, merged = _responses(bucket, lifted)
    for i, delta, within in zip(bucket.adapters, bucket.deltas, responded, strict=True):
        ranks[i], norms[i] = delta.rank.tolist(), norm(delta).tolist()
        inners[i] = (delta.core * within).sum((-2, -1)).tolist()
        responses[i] = within.square().sum((-2, -1)).tolist()
    shares = job.module_weights(bucket.names).abs()
    mean_norms = (
        (shares / shares.sum(-1, keepdim=True) * torch.tensor(norms, dtype=torch.float64).T)
        .sum(-1)
        .tolist()
    )
    merged_norms, kept = merged.tolist(), lifted.energy_kept.tolist()
    return [
        ModuleReport(
            name=name,
            shape=bucket.shape,
            ranks=tuple(int(column[j]) for column in ranks),
            norms=tuple(column[j] for column in norms),
            inners=tuple(column[j] for column in inners),
            responses=tuple(column[j] for column in responses),
            mean_norm=mean_norms[j],
            merged_rank=lifted.b.shape[-1] if bucket.deltas else 0,
            merged_norm=merged_norms[j],
            energy_kept=kept[j],
            warnings=tuple(text for text, where in lifted.warnings.items() if where[j]),
            fell_back=bucket.fell_back,
        )
        for j, name in enumerate(bucket.names)
    ]
