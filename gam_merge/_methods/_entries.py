"""Entries of matrices, for rules that look at each: thresholds by share, stable random numbers.

Tensor legend: ``N`` adapters, ``L`` modules, ``p`` and ``q`` sides of the matrices (or of a block
of their rows).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from gam_merge._common.random import generator
from gam_merge._deltas.bucket import Bucket, Merged
from gam_merge._deltas.core import InCore
from gam_merge._methods._schema import Range

Scope = Annotated[
    Literal["module", "global"],
    "rank entries within each module, or over all modules of an adapter",
]
Density = Annotated[float, Range(0, 1), "share of the entries that is kept"]
Seed = Annotated[
    int, Range(0), "seed of the random choice, together with the names of adapter and module"
]


class Entries(NamedTuple):
    """The view of a rule on entries: matrices or a block of their rows, and facts about the whole.

    Example:
        >>> from gam_merge.rules import Density, Entries, rule, weighted_sum
        >>> @rule("entries", "largest", summary="the sum of each adapter's largest entries")
        ... def largest(entries: Entries, weights, *, density: Density = 0.2):
        ...     kept = entries.x.abs() >= entries.threshold(density, "module", 1)
        ...     return weighted_sum(weights, entries.x * kept)
        >>> [param.name for param in largest.params]
        ['density']
    """

    x: Tensor  # (L, N, p, q)
    threshold: Callable[[float, str, int], Tensor]
    """share, scope, least count -> the least size (L, N, 1, 1) within this share of the largest"""
    uniform: Callable[[int], Tensor]
    """seed -> random numbers from 0 to 1, of the shape of x"""


BLOCK = 1 << 20  # entries of all adapters at a time, where their matrices are large

Key = TypeVar("Key")
EntryRule = Callable[[Entries, Tensor], Tensor]  # entries, weights (L, N) -> merged (L, p, q)
Blocks = Callable[[], Iterator[Tensor]]  # a fresh pass over blocks of rows


@dataclass(frozen=True)
class Part:
    """One kind of matrix that a space shows, in blocks of rows (L, N, p, q).

    Example:
        >>> import torch
        >>> from gam_merge.rules import Part
        >>> part = Part.of("core", torch.randn(4, 2, 6, 5))
        >>> part.size, part.whole
        (30, True)
    """

    name: str
    blocks: Blocks
    size: int  # entries of a whole matrix
    whole: bool = True  # there is one block
    weights: Callable[[Tensor], Tensor] = lambda w: w  # how those of a rule that sums enter

    @staticmethod
    def of(name: str, x: Tensor, weights: Callable[[Tensor], Tensor] = lambda w: w) -> "Part":
        """Show matrices that are all in memory: x (L, N, p, q)."""
        return Part(name, lambda: iter((x,)), x.shape[-2] * x.shape[-1], weights=weights)

    @staticmethod
    def in_blocks(
        name: str, shape: tuple[int, int], count: int, rows: Callable[[slice], Tensor]
    ) -> "Part":
        """Show matrices of one module that are too large to be in memory.

        shape: of a whole matrix. count: N. rows: gives some rows of all matrices, (1, N, p, q).
        """
        step = max(1, BLOCK // (shape[1] * count))

        def blocks() -> Iterator[Tensor]:
            return (rows(slice(start, start + step)) for start in range(0, shape[0], step))

        return Part(name, blocks, shape[0] * shape[1], whole=step >= shape[0])


@dataclass(frozen=True)
class View:
    """A bucket as a space shows it: matrices to merge, and the way back from the merged ones.

    ``lift`` takes the merged parts as blocks of rows (L, p, q), and gives the merged core or
    bucket.

    Example:
        >>> import torch
        >>> from gam_merge.rules import InCore, Part, View
        >>> x = torch.randn(4, 2, 6, 5)  # (L, N, K, J)
        >>> view = View([Part.of("core", x)], lambda merged: InCore(*merged[0]()))
        >>> view.lift([lambda: iter((x.mean(1),))]).x.shape
        torch.Size([4, 6, 5])
    """

    parts: Sequence[Part]
    lift: Callable[[Sequence[Blocks]], InCore | Merged]


def merge_part(
    part: Part, bucket: Bucket, rule: EntryRule, weights: Tensor, histogram: "Histogram | None"
) -> Blocks:
    """Run a rule on every block of a part. histogram: of all modules, if a threshold needs it."""
    thresholds: dict[tuple[float, int], Tensor] = {}

    def threshold(share: float, scope: str, least: int) -> Tensor:
        if (share, least) not in thresholds:
            if scope == "global":
                assert histogram is not None, "the survey of a rule with a global scope"
                size = histogram.threshold(part, bucket, share, least)
            else:
                size = largest(part, max(int(share * part.size), least))
            thresholds[share, least] = size[..., None, None]
        return thresholds[share, least]

    def blocks() -> Iterator[Tensor]:
        streams: dict[int, list[torch.Generator]] = {}  # by seed; each runs on from block to block

        def uniform(seed: int) -> Tensor:
            if seed not in streams:
                streams[seed] = _streams(seed, part, bucket)
            shape = x.shape[-2:]
            drawn = [torch.rand(shape, generator=g, dtype=torch.float64) for g in streams[seed]]
            return torch.stack(drawn).reshape(x.shape).to(x.device)

        for x in part.blocks():
            yield rule(Entries(x, threshold, uniform), weights.to(x.dtype))

    return blocks


def _streams(seed: int, part: Part, bucket: Bucket) -> list[torch.Generator]:
    """Random streams of a part, one per matrix and adapter, in the order of its entries."""
    streams: list[torch.Generator] = []
    for name in bucket.matrices:
        streams += [generator(seed, label, name, part.name) for label in bucket.labels]
    return streams


# Matrices of more entries are counted by size first; fewer are searched as fast without.
_MANY = 1 << 15


def largest(part: Part, count: int) -> Tensor:
    """Return the count-th largest size of each matrix's entries: (L, N), infinite for none."""
    x = next(part.blocks())
    if count == 0:
        return x.new_full(x.shape[:2], torch.inf)
    if part.whole and (len(x) > 1 or part.size <= _MANY):
        return x.flatten(2).abs().kthvalue(part.size - count + 1, -1).values
    if part.whole:
        part = replace(part, blocks=lambda: iter((x,)))  # not computed again
    return _refine(part, _count(part), count).unsqueeze(0)  # of the one module


# Sizes of entries by the bits of their float32, first by the leading ones (eight of the exponent,
# ten of the mantissa), then by the rest.
_SHIFT = 13
_BINS, _FINE_BINS = 1 << (31 - _SHIFT), 1 << _SHIFT


def _bits(x: Tensor) -> Tensor:
    return x.abs().float().view(torch.int32)


def _bins(x: Tensor) -> Tensor:
    return _bits(x) >> _SHIFT


def _least(bits: int) -> float:
    """The least size that rounds to a float32 of these bits, in float64."""
    pair = torch.tensor([bits - 1, bits], dtype=torch.int32).clamp(min=0).view(torch.float32)
    return float(pair.double().mean())


def _count(part: Part) -> Tensor:
    """Histograms of the sizes of entries over all modules: (N, bins)."""
    counts: Tensor | None = None
    for x in part.blocks():
        if counts is None:
            counts = torch.zeros(x.shape[1], _BINS, dtype=torch.int64)
        for i in range(x.shape[1]):
            counts[i] += torch.bincount(_bins(x[:, i]).flatten(), minlength=_BINS).cpu()
    assert counts is not None
    return counts


def _bin(counts: Tensor, count: int) -> tuple[int, int]:
    """The bin of the count-th largest entry, and its place there from the top: counts (bins,)."""
    reached = counts.flip(0).cumsum(0)
    position = int(torch.searchsorted(reached, count))
    index = len(counts) - 1 - position
    return index, count - int(reached[position] - counts[index])


def _refine(part: Part, counts: Tensor, count: int) -> Tensor:
    """The size of the count-th largest entry of each adapter in a part of one module: (N,).

    It is looked up among the entries that share its bin: counts (N, bins).
    """
    bins, places = zip(*(_bin(row, count) for row in counts), strict=True)
    inside: list[list[Tensor]] = [[] for _ in bins]
    for x in part.blocks():
        for i, index in enumerate(bins):
            sizes = x[0, i].abs()
            inside[i].append(sizes[_bins(sizes) == index])
    reached: list[Tensor] = []
    for pieces, place in zip(inside, places, strict=True):
        sizes = torch.cat(pieces)
        reached.append(sizes.kthvalue(len(sizes) - place + 1).values)
    return torch.stack(reached)


Rank = tuple[float, int]  # the share of entries, and the least count, that a threshold is for


def ranks_of(rule: EntryRule) -> set[Rank]:
    """Return what global thresholds a rule asks for, by a run on nothing."""
    ranks: set[Rank] = set()

    def threshold(share: float, scope: str, least: int) -> Tensor:
        if scope == "global":
            ranks.add((share, least))
        return torch.zeros(1, 2, 1, 1, dtype=torch.float64)

    x = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    rule(Entries(x, threshold, lambda seed: x), torch.full((1, 2), 0.5, dtype=torch.float64))
    return ranks


@dataclass(frozen=True)
class Histogram:
    """How many entries of what size each adapter has over all modules, by part and adapter.

    A first pass counts by bins of a thousandth, a second one counts on within the bins in which
    thresholds are. Thresholds are then exact to float32: entries whose sizes round to one number
    are kept together. Histograms of buckets add up.
    """

    counts: dict[tuple[str, int], Tensor]  # (bins,)
    ranks: frozenset[Rank] = frozenset()
    # What is within a bin: (fine bins,).
    within: dict[tuple[str, int, int], Tensor] = field(default_factory=dict[Any, Tensor])

    @staticmethod
    def of(view: View, bucket: Bucket, ranks: set[Rank]) -> "Histogram":
        """Count the entries of all modules of a bucket."""
        counts = {}
        for part in view.parts:
            for i, row in zip(bucket.adapters, _count(part), strict=True):
                counts[part.name, i] = row
        return Histogram(counts, frozenset(ranks))

    def finer(self, view: View, bucket: Bucket) -> "Histogram":
        """Count the entries of a bucket that are in the bins of thresholds."""
        within: dict[tuple[str, int, int], Tensor] = {}
        for part in view.parts:
            for i, adapter in enumerate(bucket.adapters):
                for index in self._bins_of(part.name, adapter):
                    within[part.name, adapter, index] = _count_within(part, i, index)
        return Histogram({}, within=within)

    def __add__(self, other: "Histogram") -> "Histogram":
        counts, within = _sums(self.counts, other.counts), _sums(self.within, other.within)
        return Histogram(counts, self.ranks | other.ranks, within)

    def threshold(self, part: Part, bucket: Bucket, share: float, least: int) -> Tensor:
        """(L, N), the same in all modules; infinite where the share is less than one entry."""
        sizes = [self._size(part.name, adapter, (share, least)) for adapter in bucket.adapters]
        threshold = torch.tensor(sizes, dtype=torch.float64, device=bucket.norms.device)
        return threshold.expand(len(bucket.names), -1)

    def _size(self, part: str, adapter: int, rank: Rank) -> float:
        count = self._count(part, adapter, rank)
        if not count:
            return torch.inf
        index, place = _bin(self.counts[part, adapter], count)
        fine, _ = _bin(self.within[part, adapter, index], place)
        return _least((index << _SHIFT) + fine)

    def _bins_of(self, part: str, adapter: int) -> set[int]:
        counts = [self._count(part, adapter, rank) for rank in self.ranks]
        return {_bin(self.counts[part, adapter], count)[0] for count in counts if count}

    def _count(self, part: str, adapter: int, rank: Rank) -> int:
        share, least = rank
        return max(int(share * int(self.counts[part, adapter].sum())), least)


def _count_within(part: Part, i: int, index: int) -> Tensor:
    """A histogram of the entries of adapter i that share a bin, over all modules: (fine bins,)."""
    counts = torch.zeros(_FINE_BINS, dtype=torch.int64)
    for x in part.blocks():
        bits = _bits(x[:, i])
        fine = bits[bits >> _SHIFT == index] - (index << _SHIFT)
        counts += torch.bincount(fine, minlength=_FINE_BINS).cpu()
    return counts


def _sums(x: dict[Key, Tensor], y: dict[Key, Tensor]) -> dict[Key, Tensor]:
    sums = dict(x)
    for key, row in y.items():
        sums[key] = sums[key] + row if key in sums else row
    return sums
