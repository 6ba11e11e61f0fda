"""One walk over the modules of a plan, for all who read deltas: bucket by bucket, in pieces that fit into memory.

Tensor legend: ``N`` adapters, ``L`` modules at a time, ``m`` out, ``n`` in, ``r`` rank.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gam_kernels import Delta, factored_delta
from gam_merge._adapter import LoraModule
from gam_merge._bucket import Bucket
from gam_merge._errors import GamMergeError
from gam_merge._plan import Plan, PlannedBucket
from gam_merge._tensors import LazyTensor, read

_CHUNK_BYTES = 16 << 20  # of factors in float64 that are worked on at a time: about a processor's cache


def walk(plan: Plan, device: torch.device, anchor: int = 0) -> Iterator[Bucket]:
    """The deltas of every module of the plan, once each. ``anchor`` is passed on to the buckets.

    Raises GamMergeError for a file that cannot be read and for NaN or Inf.
    """
    for planned in plan.buckets:
        for chunk in chunks(planned):
            yield from _by_rank(chunk, _read_all(plan, chunk, device), anchor)


def chunks(bucket: PlannedBucket) -> Iterator[PlannedBucket]:
    """Pieces of a bucket that fit into the working memory."""
    size = max(1, _CHUNK_BYTES // (8 * sum(bucket.shape) * sum(bucket.ranks)))
    for start in range(0, len(bucket.names), size):
        part = slice(start, start + size)
        yield replace(bucket, names=bucket.names[part], members=bucket.members[part])


def read_delta(members: Sequence[LoraModule], dtype: torch.dtype, device: torch.device) -> Delta:
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


def _read_all(plan: Plan, chunk: PlannedBucket, device: torch.device) -> list[Delta]:
    """The deltas of each adapter of the chunk. Non-finite ones are refused."""
    deltas: list[Delta] = []
    for i, members in zip(chunk.adapters, zip(*chunk.members, strict=True), strict=True):
        delta = read_delta(members, plan.compute_dtype, device)
        finite = delta.core.isfinite().flatten(1).all(-1)  # (L,)
        if not finite.all():
            j = int(finite.int().argmin())
            factor = "lora_A" if delta.b[j].isfinite().all() else "lora_B"
            source, name = plan.adapters[i].source, chunk.names[j]
            raise GamMergeError(f"{source}: module {name} has NaN or Inf in {factor}; leave this adapter out")
        deltas.append(delta)
    return deltas


def _by_rank(chunk: PlannedBucket, deltas: Sequence[Delta], anchor: int) -> Iterator[Bucket]:
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
            shape=chunk.shape,
            adapters=tuple(chunk.adapters[i] for i in present),
            deltas=tuple(deltas[i].select(index, rank=group[i], wide=is_wide) for i in present),
            anchor=anchor,
        )
