"""Bucket by bucket: read, orthonormalise, merge, settle the rank, write.

Tensor legend: ``N`` adapters, ``L`` modules at a time, ``m`` out, ``n`` in, ``r`` rank, ``R`` sum of ranks, ``k`` rank
of the output.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gam_kernels import Delta, compress, factored_delta, gram, inner, norm
from gam_merge._adapter import LoraModule
from gam_merge._bucket import Bucket, Merged
from gam_merge._errors import GamMergeError
from gam_merge._formats.peft import factor_keys
from gam_merge._methods import Method
from gam_merge._plan import Plan, PlannedBucket
from gam_merge._report import ModuleReport
from gam_merge._tensors import LazyTensor, read

_CHUNK_BYTES = 16 << 20  # of factors in float64 that are worked on at a time: about a processor's cache

Progress = Callable[[int, int], None]  # modules done, modules in all


class Sink(Protocol):
    """Where merged tensors go, as they become known."""

    def write(self, key: str, value: Tensor) -> None: ...


@dataclass(frozen=True)
class Job:
    """A plan and how to carry it out. ``weights``: one an adapter, not zero; ``anchor``: position of an adapter."""

    plan: Plan
    method: Method
    weights: tuple[float, ...]
    anchor: int
    device: torch.device
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])  # of the method


class _Lifted(NamedTuple):
    """Merged factors of full size: merged = b a^T."""

    b: Tensor  # (L, m, k)
    a: Tensor  # (L, n, k)
    energy_kept: Tensor  # (L,)
    warnings: dict[str, Tensor]  # text -> (L,) bool


@torch.no_grad()
def run(job: Job, sink: Sink, progress: Progress | None = None) -> tuple[ModuleReport, ...]:
    """Merge every bucket of the plan into the sink. Raises GamMergeError."""
    reports: list[ModuleReport] = []
    total = len(job.plan.names)
    for planned in job.plan.buckets:
        for chunk in _chunks(planned):
            for bucket in _by_rank(job, chunk, _read(job, chunk)):
                lifted = _merge(job, bucket, chunk.shape)
                _write(job, bucket.names, lifted, sink)
                reports += _report(job, bucket, lifted, chunk.shape)
            if progress:
                progress(len(reports), total)
    return tuple(sorted(reports, key=lambda report: report.name))


def _chunks(bucket: PlannedBucket) -> Iterator[PlannedBucket]:
    """Pieces of a bucket that fit into the working memory."""
    size = max(1, _CHUNK_BYTES // (8 * sum(bucket.shape) * sum(bucket.ranks)))
    for start in range(0, len(bucket.names), size):
        part = slice(start, start + size)
        yield replace(bucket, names=bucket.names[part], members=bucket.members[part])


def _read(job: Job, chunk: PlannedBucket) -> list[Delta]:
    """The deltas of each adapter of the chunk. Non-finite ones are refused."""
    deltas: list[Delta] = []
    for i, members in zip(chunk.adapters, zip(*chunk.members, strict=True), strict=True):
        delta = _read_delta(members, job.plan.compute_dtype, job.device)
        finite = delta.core.isfinite().flatten(1).all(-1)  # (L,)
        if not finite.all():
            j = int(finite.int().argmin())
            factor = "lora_A" if delta.b[j].isfinite().all() else "lora_B"
            source, name = job.plan.adapters[i].source, chunk.names[j]
            raise GamMergeError(f"{source}: module {name} has NaN or Inf in {factor}; leave this adapter out")
        deltas.append(delta)
    return deltas


def _read_delta(members: Sequence[LoraModule], dtype: torch.dtype, device: torch.device) -> Delta:
    """The deltas of one adapter, their scale folded in here and nowhere else."""
    b = _stack([member.b for member in members], dtype).to(device)  # (L, m, r)
    a = _stack([member.a for member in members], dtype).to(device)  # (L, r, n)
    scale = torch.tensor([member.scale for member in members], dtype=torch.float64, device=device)
    return factored_delta(b, a.mT, scale)


def _stack(tensors: Sequence[LazyTensor], dtype: torch.dtype) -> Tensor:
    """Read tensors of one shape into one: (L, *shape)."""
    out = torch.empty(len(tensors), *tensors[0].shape, dtype=dtype)
    for slot, tensor in zip(out, tensors, strict=True):
        slot.copy_(read(tensor))
    return out


def _by_rank(job: Job, chunk: PlannedBucket, deltas: Sequence[Delta]) -> Iterator[Bucket]:
    """Split a chunk into buckets of equal numerical ranks, without the adapters whose delta is zero there."""
    ranks = torch.stack([delta.rank for delta in deltas], -1).tolist()  # (L, N)
    wide = torch.stack([delta.wide for delta in deltas], -1).any(-1).tolist()  # (L,)
    groups: dict[tuple[bool, tuple[int, ...]], list[int]] = {}
    for j, key in enumerate(zip(wide, map(tuple, ranks), strict=True)):
        groups.setdefault(key, []).append(j)
    for (is_wide, group), members in groups.items():
        index = torch.tensor(members, device=deltas[0].core.device)
        present = [i for i, rank in enumerate(group) if rank]
        yield Bucket(
            names=tuple(chunk.names[j] for j in members),
            adapters=tuple(chunk.adapters[i] for i in present),
            deltas=tuple(deltas[i].select(index, rank=group[i], wide=is_wide) for i in present),
            anchor=job.anchor,
        )


def _merge(job: Job, bucket: Bucket, shape: tuple[int, int]) -> _Lifted:
    """The merged factors of a bucket, cut to the rank of the output.

    An adapter without a delta here counts as zero: in a weighted mean the others share its weight, and the result is
    scaled by the part of all weight that is theirs.
    """
    if not bucket.deltas:
        b, a = (torch.zeros(len(bucket.names), size, 1, device=job.device) for size in shape)
        everywhere = torch.ones(len(bucket.names), dtype=torch.bool, device=job.device)
        return _Lifted(b, a, everywhere.double(), {"zero in every adapter": everywhere})
    weights = torch.tensor([job.weights[i] for i in bucket.adapters], dtype=torch.float64, device=job.device)
    present, share = float(weights.sum()), 1.0
    if job.method.normalize:
        weights, share = weights / present, (present / sum(job.weights)) ** 0.5
    merged = job.method.merge(bucket, weights.expand(len(bucket.names), -1), **job.params)
    left, right, kept = _cut(bucket, merged, job.plan.rank)
    b = sum_of_products([delta.b for delta in bucket.deltas], left * share)  # (L, m, k)
    a = sum_of_products([delta.a for delta in bucket.deltas], right * share)  # (L, n, k)
    return _Lifted(b, a, kept, dict(merged.warnings))


def _cut(bucket: Bucket, merged: Merged, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients (L, R, k) of at most ``rank`` columns, and the share of energy (L,) that they keep."""
    left, right = merged.left, merged.right
    if left.shape[-1] <= rank:
        return left, right, left.new_ones(len(left))
    left, right, s = compress(left, right, *bucket.stacked_grams)
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


def _write(job: Job, names: Sequence[str], lifted: _Lifted, sink: Sink) -> None:
    """Pad with zero rows to the rank of the output and hand over in its dtype."""
    padding = (0, job.plan.rank - lifted.b.shape[-1])
    largest = torch.maximum(lifted.b.abs().amax((1, 2)), lifted.a.abs().amax((1, 2)))  # (L,)
    for name, value in zip(names, largest.tolist(), strict=True):
        if not value <= torch.finfo(job.plan.dtype).max:
            dtype = str(job.plan.dtype).removeprefix("torch.")
            raise GamMergeError(f"module {name} of the merge does not fit into {dtype}; write bfloat16 or float32")
    b = torch.nn.functional.pad(lifted.b, padding).to(job.plan.dtype)  # (L, m, k)
    a = torch.nn.functional.pad(lifted.a, padding).to(job.plan.dtype).mT.contiguous()  # (L, k, n)
    for j, name in enumerate(names):
        key_a, key_b = factor_keys(name)
        sink.write(key_a, a[j])
        sink.write(key_b, b[j])


def _report(job: Job, bucket: Bucket, lifted: _Lifted, shape: tuple[int, int]) -> list[ModuleReport]:
    """What happened to each module, measured on the merged factors before they are rounded to the output dtype."""
    merged = (gram(lifted.b, lifted.b) * gram(lifted.a, lifted.a)).sum((-2, -1)).clamp(min=0).sqrt().tolist()
    kept = lifted.energy_kept.tolist()
    nothing = [0.0] * len(bucket.names)
    ranks, norms, inners = ([nothing] * len(job.plan.adapters) for _ in range(3))  # (N, L)
    for i, delta in zip(bucket.adapters, bucket.deltas, strict=True):
        ranks[i], norms[i] = delta.rank.tolist(), norm(delta).tolist()
        inners[i] = inner(delta, lifted.b, lifted.a).tolist()
    return [
        ModuleReport(
            name=name,
            shape=shape,
            ranks=tuple(int(column[j]) for column in ranks),
            norms=tuple(column[j] for column in norms),
            inners=tuple(column[j] for column in inners),
            merged_rank=lifted.b.shape[-1] if bucket.deltas else 0,
            merged_norm=merged[j],
            energy_kept=kept[j],
            warnings=tuple(text for text, where in lifted.warnings.items() if where[j]),
        )
        for j, name in enumerate(bucket.names)
    ]
