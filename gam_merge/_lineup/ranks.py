"""The rank of the output: as asked for, or found from the spectra of the merge before anything is written."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from math import lcm

from gam_merge._common.errors import GamMergeError
from gam_merge._lineup.lineup import Plan
from gam_merge._read.peft import owner


@dataclass(frozen=True)
class RankPolicy:
    """rank: of every module. energy: the share of each module's squared norm to keep, in as few ranks as that takes.
    max_rank: a limit. per_module: every module has the rank that it needs, instead of all the largest."""

    rank: int | None = None
    energy: float | None = None
    max_rank: int | None = None
    per_module: bool = False

    @property
    def looks(self) -> bool:
        """Whether it takes a pass over the deltas to tell the ranks."""
        return self.energy is not None or self.per_module


def check_ranks(policy: RankPolicy) -> RankPolicy:
    """Raises GamMergeError for what is no rank, or says two things at once."""
    for name, rank in (("rank", policy.rank), ("max_rank", policy.max_rank)):
        if rank is not None and not (isinstance(rank, int) and rank >= 1):
            raise GamMergeError(f"{name} {rank!r} is not a positive whole number")
    if policy.energy is not None and not 0 < policy.energy <= 1:
        raise GamMergeError(f"energy {policy.energy!r} is no share above 0 and up to 1")
    if policy.rank is not None and (policy.energy is not None or policy.max_rank is not None):
        raise GamMergeError("rank says it all; give energy and max_rank without it")
    return policy


def with_ranks(plan: Plan, needed: Mapping[str, int], *, per_module: bool) -> Plan:
    """The plan with the ranks that its matrices need, by module, one for all or each module its own."""
    ranks = {name: max(1, needed[name]) * layout.groups for name, layout in plan.layouts.items()}
    if not per_module:
        step = lcm(*(layout.groups for layout in plan.layouts.values()))
        ranks = dict.fromkeys(ranks, -(-max(ranks.values()) // step) * step)
    else:
        ranks = _equal_where_wrapped(ranks)
    buckets = []
    for bucket in plan.buckets:
        order = sorted(
            range(len(bucket.names)), key=lambda j: (ranks[bucket.names[j]], bucket.names[j])
        )
        for rank, group in groupby(order, key=lambda j: ranks[bucket.names[j]]):
            index = list(group)
            names, members = (
                tuple(bucket.names[j] for j in index),
                tuple(bucket.members[j] for j in index),
            )
            bases, k = (
                tuple(bucket.bases[j] for j in index if bucket.bases),
                rank // bucket.layout.groups,
            )
            buckets.append(
                replace(bucket, names=names, members=members, bases=bases, output_rank=k)
            )
    return replace(
        plan, buckets=tuple(sorted(buckets, key=lambda b: b.names)), rank=max(ranks.values())
    )


def _equal_where_wrapped(ranks: Mapping[str, int]) -> dict[str, int]:
    """PEFT looks up one rank for all that it wraps around one module of the model."""
    largest: dict[str, int] = {}
    for name, rank in ranks.items():
        largest[owner(name)] = max(rank, largest.get(owner(name), 0))
    return {name: largest[owner(name)] for name in ranks}
