"""The plan of a merge, from headers alone: the modules of all adapters lined up, checked, and grouped into buckets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import lcm, prod
from pathlib import PurePath
from typing import Literal

import torch

from gam_merge._common.errors import GamMergeError
from gam_merge._lineup.extras import PlannedExtra, extra_notes, plan_extras
from gam_merge._lineup.settings import Settings
from gam_merge._read.adapter import Adapter, LoraModule
from gam_merge._read.layout import Layout
from gam_merge._read.weight import BaseWeight

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as max_lora_rank
_MAX_RANK = 4096  # of an output whose modules are smaller: the rest of it is zeros


@dataclass(frozen=True)
class PlannedBucket:
    """Modules whose matrices have one shape (out, in), in the same layout, adapters, ranks and parameters.

    ``members[j][i]`` is module ``names[j]`` of adapter ``adapters[i]``; ``ranks`` are those of its matrices.
    """

    names: tuple[str, ...]
    layout: Layout
    shape: tuple[int, int]
    adapters: tuple[int, ...]
    ranks: tuple[int, ...]
    members: tuple[tuple[LoraModule, ...], ...]
    output_rank: int = 0  # of its matrices
    bases: tuple[BaseWeight, ...] = ()  # the weights of the modules, where one of them is a DoRA


@dataclass(frozen=True)
class Plan:
    """All that is settled before the first tensor is read."""

    adapters: tuple[Adapter, ...]
    buckets: tuple[PlannedBucket, ...]
    base_model: str | None
    rank: int  # the largest of the output, and of every module unless each has its own
    dtype: torch.dtype  # of the output
    compute_dtype: torch.dtype
    extras: tuple[PlannedExtra, ...] = ()
    magnitude_dtype: torch.dtype | None = None  # of the output, if that is DoRA

    @property
    def names(self) -> list[str]:
        return sorted(name for bucket in self.buckets for name in bucket.names)

    @property
    def matrices(self) -> int:
        """How many matrices the modules are together."""
        return sum(len(bucket.names) * bucket.layout.stack for bucket in self.buckets)

    @property
    def ranks(self) -> dict[str, int]:
        """The rank of each module of the output."""
        return {name: b.output_rank * b.layout.groups for b in self.buckets for name in b.names}

    @cached_property
    def layouts(self) -> Mapping[str, Layout]:
        """The layout of each module."""
        return {name: bucket.layout for bucket in self.buckets for name in bucket.names}

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the adapters: the last part of their paths, numbered where several are alike. Wherever they lie and in
        whatever order they come, a label stays with its adapter."""
        names = [PurePath(adapter.source).name for adapter in self.adapters]
        return tuple(f"{name}#{names[:i].count(name)}" for i, name in enumerate(names))

    @property
    def nbytes(self) -> int:
        """Of all tensors of the output."""
        factors = sum(
            len(b.names) * b.layout.stack * b.output_rank * sum(b.shape) for b in self.buckets
        )
        if self.magnitude_dtype is not None:
            factors += sum(len(b.names) * b.shape[0] for b in self.buckets)
        return factors * self.dtype.itemsize + sum(
            prod(e.shape) * e.dtype.itemsize for e in self.written_extras
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know beforehand."""
        notes = [f"{adapter.source}: {note}" for adapter in self.adapters for note in adapter.notes]
        notes += extra_notes(self.extras, len(self.adapters))
        if len(set(self.ranks.values())) > 1:
            notes.append(
                "modules have ranks of their own (rank_pattern): PEFT reads that, llama.cpp scales them wrongly"
            )
        if self.rank > VLLM_RANKS[-1]:
            most = VLLM_RANKS[-1]
            notes.append(
                f"rank {self.rank} is more than the {most} that servers of LoRA take; cut it with --rank"
            )
        return tuple(notes)

    @property
    def written_extras(self) -> tuple[PlannedExtra, ...]:
        """All but copies of the base's own weights, which are left out."""
        return tuple(extra for extra in self.extras if extra.kind != "base_weight")


def make_plan(
    adapters: Sequence[Adapter],
    *,
    settings: Settings | None = None,
    rank: int | None = None,
    max_rank: int | None = None,
    native: Literal["largest", "sum"] = "largest",
    dtype: torch.dtype | None = None,
    allow_base_mismatch: bool = False,
) -> Plan:
    """Line up the modules of the adapters. Reads no tensor; raises GamMergeError if they do not belong together.

    settings: an adapter takes part in a module where its weight is not zero; without them everywhere. rank: of the
    output, by default the largest rank of any module, or with native="sum" the largest sum of ranks over the adapters
    that hold a module, but not above max_rank. dtype: of the output, by default the narrowest that holds all sources.
    """
    base = _base_model(adapters, allow_base_mismatch)
    groups: dict[object, tuple[tuple[int, ...], list[str]]] = {}
    for name in sorted({name for adapter in adapters for name in adapter.modules}):
        weights = settings.weights_of(name) if settings else (1.0,) * len(adapters)
        holders = tuple(
            i for i, adapter in enumerate(adapters) if name in adapter.modules and weights[i]
        )
        if not holders:
            continue
        members = [adapters[i].modules[name] for i in holders]
        _check_same(name, [adapters[i] for i in holders], members)
        params = repr(settings.params_of(name)) if settings else ""
        key = (
            members[0].layout,
            members[0].shape,
            holders,
            tuple(m.matrix_rank for m in members),
            params,
        )
        groups.setdefault(key, (holders, []))[1].append(name)
    if not groups:
        raise GamMergeError(
            "every module has weight zero in every adapter; there is nothing to merge"
        )
    buckets = [_bucket(adapters, holders, names) for holders, names in groups.values()]
    rank = _output_rank(buckets, rank, max_rank, native)
    buckets = [replace(bucket, output_rank=rank // bucket.layout.groups) for bucket in buckets]
    source_dtype = adapters[0].dtype
    for adapter in adapters:
        source_dtype = torch.promote_types(source_dtype, adapter.dtype)
    return Plan(
        adapters=tuple(adapters),
        buckets=tuple(sorted(buckets, key=lambda bucket: bucket.names)),
        base_model=base,
        rank=rank,
        dtype=dtype or source_dtype,
        compute_dtype=torch.float64 if source_dtype == torch.float64 else torch.float32,
        extras=plan_extras(
            adapters, {m[0].name: m[0] for bucket in buckets for m in bucket.members}, dtype
        ),
    )


def _bucket(
    adapters: Sequence[Adapter], holders: tuple[int, ...], names: list[str]
) -> PlannedBucket:
    members = tuple(tuple(adapters[i].modules[name] for i in holders) for name in names)
    first, ranks = members[0][0], tuple(m.matrix_rank for m in members[0])
    return PlannedBucket(tuple(names), first.layout, first.shape, holders, ranks, members)


def _output_rank(
    buckets: Sequence[PlannedBucket],
    rank: int | None,
    max_rank: int | None,
    native: Literal["largest", "sum"],
) -> int:
    """The rank asked for, else the native one up to a limit; a rank that the groups of all convolutions share."""
    step = lcm(*(bucket.layout.groups for bucket in buckets))
    for asked in (rank, max_rank):
        if asked is not None and asked % step:
            raise GamMergeError(
                f"rank {asked} is not shared by {step} groups of a convolution; give a multiple of it"
            )
    if rank is not None:
        limit = max(_MAX_RANK, *(side for bucket in buckets for side in bucket.shape))
        if rank > limit:
            raise GamMergeError(
                f"rank {rank} is more than any module has rows or columns; give at most {limit}"
            )
        return rank
    most = -(-max(_native_rank(bucket, native) for bucket in buckets) // step) * step
    return most if max_rank is None else min(most, max_rank)


def _native_rank(bucket: PlannedBucket, kind: Literal["largest", "sum"]) -> int:
    """No matrix has more than its sides hold."""
    rank = max(bucket.ranks) if kind == "largest" else min(sum(bucket.ranks), *bucket.shape)
    return rank * bucket.layout.groups


def _base_model(adapters: Sequence[Adapter], allow_mismatch: bool) -> str | None:
    known = [adapter for adapter in adapters if adapter.base_model is not None]
    for adapter in known[1:]:
        if adapter.base_model != known[0].base_model and not allow_mismatch:
            raise GamMergeError(
                f"{known[0].source} was trained on {known[0].base_model} and {adapter.source} on {adapter.base_model}; "
                "if the two are the same model, pass --allow-base-mismatch (allow_base_mismatch=True in Python)"
            )
    return known[0].base_model if known else None


def _check_same(name: str, holders: Sequence[Adapter], members: Sequence[LoraModule]) -> None:
    first = members[0]
    for holder, member in zip(holders, members, strict=True):
        if member.layout != first.layout:
            raise GamMergeError(
                f"module {name} is {first.layout} in {holders[0].source} and {member.layout} in {holder.source}; "
                "leave one of them out"
            )
        if member.shape != first.shape:
            raise GamMergeError(
                f"module {name} is {first.shape} in {holders[0].source} and {member.shape} in {holder.source}; "
                "adapters of different base models cannot be merged"
            )
