"""Entries of matrices, for rules that look at each one: thresholds by share, and random numbers that nothing shifts.

Tensor legend: ``N`` adapters, ``L`` modules, ``p`` and ``q`` sides of the matrices (or of a block of their rows).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

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
    int, Range(0), "of the random choice, together with the names of adapter and module"
]


class Entries(NamedTuple):
    """What a rule sees: matrices x (L, N, p, q) or a block of their rows, and what it may ask of the whole."""

    x: Tensor
    threshold: Callable[[float, str, int], Tensor]
    """share, scope, least number -> the size (L, N, 1, 1) that so many of the largest entries reach"""
    uniform: Callable[[int], Tensor]
    """seed -> random numbers from 0 to 1, of the shape of x"""


BLOCK = 1 << 20  # entries of all adapters at a time, where their matrices are large

EntryRule = Callable[[Entries, Tensor], Tensor]  # entries, weights (L, N) -> merged (L, p, q)
Blocks = Callable[[], Iterator[Tensor]]  # a fresh pass over blocks of rows


@dataclass(frozen=True)
class Part:
    """One kind of matrix of a space, in blocks of rows (L, N, p, q). ``size``: entries of a whole matrix."""

    name: str
    blocks: Blocks
    size: int
    whole: bool = True  # there is one block
    weights: Callable[[Tensor], Tensor] = lambda w: w  # how those of a summing rule enter

    @staticmethod
    def of(name: str, x: Tensor, weights: Callable[[Tensor], Tensor] = lambda w: w) -> "Part":
        """Matrices that are all there: x (L, N, p, q)."""
        return Part(name, lambda: iter((x,)), x.shape[-2] * x.shape[-1], weights=weights)

    @staticmethod
    def in_blocks(
        name: str, shape: tuple[int, int], count: int, rows: Callable[[slice], Tensor]
    ) -> "Part":
        """Matrices of one module that are too large: ``rows`` makes some rows of all ``count`` of them (1, N, p, q)."""
        step = max(1, BLOCK // (shape[1] * count))

        def blocks() -> Iterator[Tensor]:
            return (rows(slice(start, start + step)) for start in range(0, shape[0], step))

        return Part(name, blocks, shape[0] * shape[1], whole=step >= shape[0])


@dataclass(frozen=True)
class View:
    """A bucket as a space shows it: matrices to merge, and the way back from the merged ones, given as blocks."""

    parts: Sequence[Part]
    lift: Callable[[Sequence[Blocks]], InCore | Merged]


def merge_part(
    part: Part, bucket: Bucket, rule: EntryRule, weights: Tensor, histogram: "Histogram"
) -> Blocks:
    """The rule on every block of a part."""
    known: dict[tuple[float, int], Tensor] = {}

    def threshold(share: float, scope: str, least: int) -> Tensor:
        if (share, least) not in known:
            if scope == "global":
                found = histogram.threshold(part, bucket, share, least)
            else:
                found = _largest(part, share, least)
            known[share, least] = found[..., None, None]
        return known[share, least]

    def blocks() -> Iterator[Tensor]:
        streams: dict[int, list[torch.Generator]] = {}

        def uniform(seed: int) -> Tensor:
            if seed not in streams:
                streams[seed] = [
                    generator(seed, label, name, part.name)
                    for name in bucket.matrices
                    for label in bucket.labels
                ]
            drawn = [
                torch.rand(x.shape[-2:], generator=g, dtype=torch.float64) for g in streams[seed]
            ]
            return torch.stack(drawn).reshape(x.shape).to(x.device)

        for x in part.blocks():
            yield rule(Entries(x, threshold, uniform), weights.to(x.dtype))

    return blocks


def _largest(part: Part, share: float, least: int) -> Tensor:
    """The size of the int(share * size)-th largest entry of each matrix: (L, N), infinite for none."""
    count = max(int(share * part.size), least)
    x = next(part.blocks())
    if count == 0:
        return x.new_full(x.shape[:2], torch.inf)
    if part.whole:
        return x.flatten(2).abs().kthvalue(part.size - count + 1, -1).values
    return _refine(part, _count(part), count).unsqueeze(0)  # of the one module


# Sizes of entries by the leading bits of their float32: eight of the exponent, ten of the mantissa.
_SHIFT = 13
_BINS = 1 << (31 - _SHIFT)


def _bins(x: Tensor) -> Tensor:
    return x.abs().float().view(torch.int32) >> _SHIFT


def _lower_edge(index: int) -> float:
    return float(torch.tensor(index << _SHIFT, dtype=torch.int32).view(torch.float32))


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
    """The bin that the count-th largest entry is in, and its place in it, 1 for the largest: counts (bins,)."""
    reached = counts.flip(0).cumsum(0)
    position = int(torch.searchsorted(reached, count))
    index = len(counts) - 1 - position
    return index, count - int(reached[position] - counts[index])


def _refine(part: Part, counts: Tensor, count: int) -> Tensor:
    """The size of the count-th largest entry of each adapter (N,) in a part of one module, from the entries that share
    its bin: counts (N, bins)."""
    places = [_bin(row, count) for row in counts]
    first = next(part.blocks())
    inside = [
        first.new_empty(int(row[index])) for row, (index, _) in zip(counts, places, strict=True)
    ]
    free = list(inside)  # what is not filled yet
    for x in part.blocks():
        for i, (index, _) in enumerate(places):
            size = x[0, i].abs()
            found = size[_bins(size) == index]
            free[i][: len(found)] = found
            free[i] = free[i][len(found) :]
    return torch.stack(
        [
            x.kthvalue(len(x) - place + 1).values
            for x, (_, place) in zip(inside, places, strict=True)
        ]
    )


@dataclass(frozen=True)
class Histogram:
    """How many entries of what size each adapter has over all modules, by part and position of the adapter. The
    threshold is the lower edge of its bin: good to one part in a thousand."""

    counts: dict[tuple[str, int], Tensor]

    @staticmethod
    def of(view: View, bucket: Bucket) -> "Histogram":
        counts = {part.name: _count(part) for part in view.parts}
        return Histogram(
            {
                (name, i): row
                for name in counts
                for i, row in zip(bucket.adapters, counts[name], strict=True)
            }
        )

    def __add__(self, other: "Histogram") -> "Histogram":
        shared = {
            key: self.counts[key] + other.counts[key]
            for key in self.counts.keys() & other.counts.keys()
        }
        return Histogram(self.counts | other.counts | shared)

    def threshold(self, part: Part, bucket: Bucket, share: float, least: int) -> Tensor:
        """(L, N), the same in all modules; infinite where the share is less than one entry."""
        sizes = []
        for i in bucket.adapters:
            counts = self.counts[part.name, i]
            count = max(int(share * int(counts.sum())), least)
            sizes.append(_lower_edge(_bin(counts, count)[0]) if count else torch.inf)
        return torch.tensor(sizes, dtype=torch.float64, device=bucket.norms.device).expand(
            len(bucket.names), -1
        )
