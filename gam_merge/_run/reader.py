"""Reads a chunk of modules: files -> deltas, checked, in buckets of equal numerical ranks.

Tensor legend: ``N`` adapters, ``L`` modules at a time, ``m`` out, ``n`` in, ``r`` rank, ``R`` sum
of ranks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gam_kernels import Delta, factored_delta, stacked_gram
from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import LazyTensor, read
from gam_merge._deltas.bucket import Bucket, Factors, diagonal_blocks
from gam_merge._deltas.rows import RowScaling
from gam_merge._lineup.lineup import LineupBucket
from gam_merge._read.adapter import LoraModule
from gam_merge._run.dora import rescale

# The largest entry of a delta in orthonormal coordinates: its fourth power is finite. Trained ones
# are below 1e3.
_LARGEST = 1e60
# One product of all columns of all adapters runs at full speed, the few that are needed at a part
# of it. Measured: up to this many columns times adapters the one is faster; above that, products
# that nobody needs cost more.
_JOINT = 1024

Shares = Callable[[Sequence[str], Sequence[int]], Tensor]  # modules, adapters -> (L, N) float64
Grams = tuple[Tensor, Tensor]  # of the B and of the A


@dataclass(frozen=True)
class Reader:
    """How a chunk is read. Small: it travels to every worker.

    Attributes:
        sources: the names of the adapters, for errors.
        compute_dtype: the dtype of the factors once they are read.
        device: where they go.
        anchor: passed on to the buckets.
        labels: passed on to the buckets.
        factors: whether buckets keep the factors as they were read.
        shares: the shares of the adapters, on which the deltas of DoRA depend.
    """

    sources: tuple[str, ...]
    compute_dtype: torch.dtype
    device: torch.device
    anchor: int = 0
    labels: tuple[str, ...] = ()
    factors: bool = False
    shares: Shares | None = None

    def buckets(self, chunk: LineupBucket) -> Iterator[Bucket]:
        """Read a chunk and yield its modules by numerical rank.

        Adapters whose delta is zero in some modules are left out there. Raises GamMergeError for a
        file that cannot be read, and for numbers that are not finite or too large to square.
        """
        return _by_rank(self, chunk, _read_chunk(self, chunk))


class _Chunk(NamedTuple):
    """A chunk that was read."""

    deltas: Sequence[Delta]  # one per adapter
    rows: RowScaling | None  # how DoRA scales rows of the base
    grams: Grams | None  # of all factors side by side, (L, R, R) float64


def read_delta(members: Sequence[LoraModule], dtype: torch.dtype, device: torch.device) -> Delta:
    """Read the deltas of one adapter. ``members`` have one layout."""
    return _delta(members, *_read_factors(members, dtype, device))


def _read_chunk(reader: Reader, chunk: LineupBucket) -> _Chunk:
    columns = list(zip(*chunk.members, strict=True))  # the members of each adapter
    factors = [_read_factors(column, reader.compute_dtype, reader.device) for column in columns]
    rows: RowScaling | None = None
    if chunk.bases:
        assert reader.shares is not None
        shares = reader.shares(chunk.names, chunk.adapters).to(reader.device)
        rescaled, rows = rescale(chunk.names, chunk.bases, columns, factors, shares)
        factors = [(b, a) for b, (_, a) in zip(rescaled, factors, strict=True)]
    grams: Grams | None = None
    blocks: Sequence[Grams | None] = [None] * len(factors)
    if reader.compute_dtype != torch.float64 and sum(chunk.ranks) * len(chunk.ranks) <= _JOINT:
        grams = stacked_gram([b for b, _ in factors]), stacked_gram([a.mT for _, a in factors])
        left, right = (diagonal_blocks(gram, chunk.ranks) for gram in grams)
        blocks = list(zip(left, right, strict=True))
    deltas: list[Delta] = []
    for i, column, (b, a), own_grams in zip(chunk.adapters, columns, factors, blocks, strict=True):
        delta = _delta(column, b, a, own_grams)
        _check_sound(reader.sources[i], chunk, delta)
        deltas.append(delta)
    return _Chunk(deltas, rows, grams)


def _read_factors(
    members: Sequence[LoraModule], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Read B (L, m, r) and A (L, r, n) of one adapter, one per matrix."""
    b = _stack([member.b for member in members], dtype, device)
    a = _stack([member.a for member in members], dtype, device)
    return members[0].layout.split(b, a)


def _stack(tensors: Sequence[LazyTensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Read tensors of one shape into one: (L, *shape).

    They travel as they are stored, and pinned on the way to a GPU: copies overlap with kernels.
    """
    pinned = device.type == "cuda"
    stored = {tensor.dtype for tensor in tensors}
    travels_as = stored.pop() if len(stored) == 1 else dtype
    shape = len(tensors), *tensors[0].shape
    out = torch.empty(shape, dtype=travels_as, pin_memory=pinned)
    for slot, tensor in zip(out, tensors, strict=True):
        if tensor.dtype == out.dtype:
            tensor.read_into(slot)
        else:
            slot.copy_(read(tensor))
    return out.to(device, non_blocking=pinned).to(dtype)


def _delta(
    members: Sequence[LoraModule], b: Tensor, a: Tensor, grams: Grams | None = None
) -> Delta:
    """Make deltas of factors. The scale is folded in here and nowhere else."""
    scale = torch.tensor([member.scale for member in members], dtype=torch.float64, device=b.device)
    scale = scale.repeat_interleave(members[0].layout.stack)  # one per matrix
    return factored_delta(b.contiguous(), a.mT, scale, grams)


def is_sound(delta: Delta) -> Tensor:
    """Tell which modules are finite, and small enough to be squared and squared again: (L,)."""
    return delta.core.abs().amax((1, 2)) <= _LARGEST  # NaN compares false


def broken_factor(delta: Delta, j: int) -> str:
    """Return the factor of module ``j`` with NaN or Inf; "the product" if that is too large."""
    for name, factor in (("lora_B", delta.b[j]), ("lora_A", delta.a[j])):
        if not factor.isfinite().all():
            return name
    return "the product"


def _check_sound(source: str, chunk: LineupBucket, delta: Delta) -> None:
    sound = is_sound(delta)
    if sound.all():
        return
    j = int(sound.int().argmin())
    name, factor = chunk.names[j // chunk.layout.stack], broken_factor(delta, j)
    problem = f"numbers above {_LARGEST:g}" if factor == "the product" else "NaN or Inf"
    raise GamMergeError(
        f"{source}: module {name} has {problem} in {factor}; leave this adapter out"
    )


def _by_rank(reader: Reader, chunk: LineupBucket, read_chunk: _Chunk) -> Iterator[Bucket]:
    """Split a chunk into buckets of equal numerical ranks."""
    deltas, rows, grams = read_chunk
    stack = chunk.layout.stack
    for (is_wide, ranks), matrices in _groups(deltas).items():
        index = torch.tensor(matrices, device=deltas[0].core.device)
        present = [i for i, rank in enumerate(ranks) if rank]
        joint = grams is not None and not is_wide
        factors: tuple[Factors, ...] = ()
        if reader.factors:
            factors = tuple(_factors(chunk, i, deltas[i], matrices) for i in present)
        yield Bucket(
            names=tuple(chunk.names[j // stack] for j in matrices),
            indices=tuple(j % stack for j in matrices) if stack > 1 else (),
            output_rank=chunk.output_rank,
            rows=rows and rows.select(index),
            shape=chunk.shape,
            adapters=tuple(chunk.adapters[i] for i in present),
            deltas=tuple(deltas[i].select(index, rank=ranks[i], wide=is_wide) for i in present),
            anchor=reader.anchor,
            labels=tuple(reader.labels[chunk.adapters[i]] for i in present),
            factors=factors,
            grams=_selected(grams, chunk.ranks, present, index) if grams and joint else None,
            fell_back=is_wide and reader.compute_dtype != torch.float64,
        )


def _groups(deltas: Sequence[Delta]) -> dict[tuple[bool, tuple[int, ...]], list[int]]:
    """Return the matrices by whether float64 is needed and by their numerical ranks."""
    ranks = torch.stack([delta.rank for delta in deltas], -1).tolist()  # (L, N)
    wide = torch.stack([delta.wide for delta in deltas], -1).any(-1).tolist()  # (L,)
    groups: dict[tuple[bool, tuple[int, ...]], list[int]] = {}
    for j, (is_wide, matrix_ranks) in enumerate(zip(wide, ranks, strict=True)):
        groups.setdefault((is_wide, tuple(matrix_ranks)), []).append(j)
    return groups


def _selected(grams: Grams, ranks: Sequence[int], present: list[int], index: Tensor) -> Grams:
    """Return the stacked Gram matrices of some modules and adapters."""
    left, right = grams
    if len(present) == len(ranks):
        return left[index], right[index]
    columns: list[int] = []
    for i in present:
        columns += range(sum(ranks[:i]), sum(ranks[: i + 1]))
    rows = torch.tensor(columns, device=index.device)
    place = index[:, None, None], rows[:, None], rows
    return left[place], right[place]


def _factors(chunk: LineupBucket, i: int, delta: Delta, matrices: list[int]) -> Factors:
    """Return the factors of adapter ``i`` as they were read, of some matrices of the chunk."""
    stack = chunk.layout.stack
    scales = [chunk.members[j // stack][i].scale for j in matrices]
    scale = torch.tensor(scales, dtype=torch.float64, device=delta.core.device)
    return Factors(delta.b[matrices], delta.a[matrices], scale)
