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

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import MemoryTensor, dtype_name
from gam_merge._common.types import Progress
from gam_merge._deltas.bucket import Bucket
from gam_merge._lineup.lineup import Lineup
from gam_merge._read.adapter import Extra, LoraModule
from gam_merge._read.layout import Layout
from gam_merge._run.extras import check_equal, merge_extra, share_of_members
from gam_merge._run.job import Job, visit_all
from gam_merge._run.lift import balanced, merged_factors, output_factors
from gam_merge._run.outcome import module_reports
from gam_merge._run.report import ModuleReport, combined, with_cut_sources


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
                    report = combined([part.report for part in stack])
                    reports.append(with_cut_sources(report, lineup.kept[name]))
            if progress:
                progress(len(reports), total)
    return tuple(sorted(reports, key=lambda report: report.name))


def _joined(
    layout: Layout, stack: list[_MergedMatrix], magnitude_dtype: torch.dtype | None
) -> LoraModule:
    """Return the module that some matrices are together."""
    stack.sort(key=lambda matrix: matrix.position)
    b, a = layout.join(
        _stacked([matrix.b for matrix in stack]), _stacked([matrix.a for matrix in stack])
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


def _stacked(matrices: Sequence[Tensor]) -> Tensor:
    """Return matrices (m, k) as one tensor (stack, m, k), without a copy if there is one."""
    return matrices[0].unsqueeze(0) if len(matrices) == 1 else torch.stack(list(matrices))


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
        lifted, largest = balanced(merged_factors(job, part, summary), job.dtype)
        b, a = output_factors(job, part, lifted, largest)  # (L, m, k), (L, k, n)
        magnitudes = _magnitudes(job, part, b, a)
        positions = part.indices or (0,) * len(part.names)
        reports = module_reports(job, part, lifted)
        columns = zip(part.names, positions, b, a, magnitudes, reports, strict=True)
        matrices += [_MergedMatrix(*column) for column in columns]
    return matrices


def _magnitudes(job: Job, bucket: Bucket, b: Tensor, a: Tensor) -> Sequence[Tensor | None]:
    """Return the magnitudes of DoRA for the factors as they are written, one per module."""
    if bucket.rows is None or job.flatten_dora:
        return [None] * len(b)
    return list(bucket.rows.magnitudes(b, a))
