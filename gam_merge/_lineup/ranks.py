"""The rank of the output: as asked for, as the method needs it, or found from spectra.

All of it happens before anything is written.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from math import lcm

from gam_merge._common.errors import GamMergeError
from gam_merge._common.types import NativeRank
from gam_merge._lineup.lineup import Lineup, LineupBucket

_LARGEST_RANK = 4096  # of an output whose modules are smaller: the rest of it is zeros


@dataclass(frozen=True)
class RankPolicy:
    """How the rank of the output is settled.

    Attributes:
        rank: the rank of every module.
        energy: the share of each module's squared norm to keep, in as few ranks as that takes.
        max_rank: an upper limit.
        per_module: every module has the rank that it needs, instead of all the largest.
    """

    rank: int | None = None
    energy: float | None = None
    max_rank: int | None = None
    per_module: bool = False

    def check(self) -> None:
        """Raise GamMergeError for values out of range, or that contradict each other."""
        for name, rank in (("rank", self.rank), ("max_rank", self.max_rank)):
            if rank is not None and not (isinstance(rank, int) and rank >= 1):
                raise GamMergeError(f"{name} must be a positive integer, got {rank!r}")
        if self.energy is not None and not _is_share(self.energy):
            raise GamMergeError(f"energy must be in (0, 1], got {self.energy!r}")
        if self.rank is not None and (self.energy is not None or self.max_rank is not None):
            raise GamMergeError("rank cannot be combined with energy or max_rank; give one of them")

    @property
    def needs_spectra(self) -> bool:
        """Whether the ranks follow only from a pass over the deltas."""
        return self.energy is not None or self.per_module

    def before_reading(self, lineup: Lineup, native: NativeRank) -> Lineup:
        """Return the lineup with ranks that follow from headers: the final ones, or upper limits.

        native: the rank of the method's result, the largest of the sources or their sum. Raises
        GamMergeError for a rank that no module can have.
        """
        kind: NativeRank = "largest" if self.energy is None and native == "largest" else "sum"
        step = lcm(*(bucket.layout.groups for bucket in lineup.buckets))
        self._check_fits(lineup, step)
        if lineup.format.mixed_ranks:
            return _with_ranks(lineup, self._unlike_ranks(lineup, kind))
        if self.rank is not None:
            rank = self.rank
        else:
            needed = max(_native_rank(bucket, kind) for bucket in lineup.buckets)
            rank = _rounded_up(needed, step)
            if self.max_rank is not None:
                rank = min(rank, self.max_rank)
        return _with_ranks(lineup, dict.fromkeys(lineup.layouts, rank))

    def _unlike_ranks(self, lineup: Lineup, kind: NativeRank) -> dict[str, int]:
        """Return the rank of each module where none has to be padded to that of the others."""
        ranks: dict[str, int] = {}
        for bucket in lineup.buckets:
            needed = [_native_rank(bucket, kind)]
            if self.rank is not None:
                needed = [_native_rank(bucket, "sum"), self.rank]
            if self.max_rank is not None:
                needed.append(self.max_rank)
            ranks |= dict.fromkeys(bucket.names, min(needed))
        return ranks

    def after_reading(self, lineup: Lineup, needed: Mapping[str, int]) -> Lineup:
        """Return the lineup with the ranks that its matrices need, by module."""
        ranks: dict[str, int] = {}
        for name, layout in lineup.layouts.items():
            ranks[name] = max(1, needed[name]) * layout.groups
        if lineup.format.mixed_ranks:
            return _with_ranks(lineup, ranks)
        if self.per_module:
            return _with_ranks(lineup, _equal_where_wrapped(ranks, lineup.owners))
        step = lcm(*(layout.groups for layout in lineup.layouts.values()))
        return _with_ranks(lineup, dict.fromkeys(ranks, _rounded_up(max(ranks.values()), step)))

    def _check_fits(self, lineup: Lineup, step: int) -> None:
        for name, rank in (("rank", self.rank), ("max_rank", self.max_rank)):
            if rank is not None and rank % step:
                raise GamMergeError(
                    f"{name} must be a multiple of {step}, which the groups of a convolution "
                    f"share, got {rank}"
                )
        limit = max(_LARGEST_RANK, *(max(bucket.shape) for bucket in lineup.buckets))
        if self.rank is not None and self.rank > limit:
            raise GamMergeError(
                f"rank must be at most {limit}, the rows or columns of the largest module, "
                f"got {self.rank}"
            )


def _is_share(energy: object) -> bool:
    return isinstance(energy, (int, float)) and 0 < energy <= 1


def _rounded_up(rank: int, step: int) -> int:
    return -(-rank // step) * step


def _native_rank(bucket: LineupBucket, kind: NativeRank) -> int:
    """Return the rank of a result without a cut. No matrix has more than its sides hold."""
    rank = max(bucket.ranks) if kind == "largest" else min(sum(bucket.ranks), *bucket.shape)
    return rank * bucket.layout.groups


def _with_ranks(lineup: Lineup, ranks: Mapping[str, int]) -> Lineup:
    """Return the lineup with a rank for each module, its buckets split where they differ."""
    buckets: list[LineupBucket] = []
    for bucket in lineup.buckets:
        names = bucket.names
        order = sorted(range(len(names)), key=lambda j: (ranks[names[j]], names[j]))
        for rank, index in groupby(order, key=lambda j: ranks[names[j]]):
            part = bucket.select(list(index))
            buckets.append(replace(part, output_rank=rank // bucket.layout.groups))
    return replace(lineup, buckets=tuple(sorted(buckets, key=lambda bucket: bucket.names)))


def _equal_where_wrapped(ranks: Mapping[str, int], owners: Mapping[str, str]) -> dict[str, int]:
    """Return ranks that agree within each module of the model: PEFT looks up one for all in it."""
    largest: dict[str, int] = {}
    for name, rank in ranks.items():
        largest[owners[name]] = max(rank, largest.get(owners[name], 0))
    return {name: largest[owners[name]] for name in ranks}
