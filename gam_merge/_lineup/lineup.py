"""The lineup of a merge: the modules of all adapters side by side, checked, grouped into buckets.

From headers alone: no tensor is read.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from math import prod
from pathlib import PurePath

import torch

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import PromisedTensor
from gam_merge._lineup.extras import LineupExtra, extra_notes, line_up_extras
from gam_merge._lineup.names import shared_notes
from gam_merge._lineup.settings import Settings
from gam_merge._read.adapter import Adapter, Extra, LoraModule
from gam_merge._read.base_name import is_quantised, same_model, same_spelling
from gam_merge._read.format import Format
from gam_merge._read.formats import format_of
from gam_merge._read.layout import Layout
from gam_merge._read.weight import BaseWeight


@dataclass(frozen=True)
class LineupBucket:
    """Modules whose matrices have one shape (out, in), and equal layout, adapters, ranks, params.

    ``members[j][i]`` is module ``names[j]`` of adapter ``adapters[i]``; ``ranks`` are those of its
    matrices.
    """

    names: tuple[str, ...]
    layout: Layout
    shape: tuple[int, int]
    adapters: tuple[int, ...]
    ranks: tuple[int, ...]
    members: tuple[tuple[LoraModule, ...], ...]
    output_rank: int = 0  # of its matrices
    bases: tuple[BaseWeight, ...] = ()  # the weights of the modules, where one of them is DoRA

    def select(self, index: Sequence[int]) -> "LineupBucket":
        """Return the bucket of some of its modules."""
        return replace(
            self,
            names=tuple(self.names[j] for j in index),
            members=tuple(self.members[j] for j in index),
            bases=tuple(self.bases[j] for j in index if self.bases),
        )


@dataclass(frozen=True)
class Lineup:
    """All that is settled before the first tensor is read."""

    adapters: tuple[Adapter, ...]
    buckets: tuple[LineupBucket, ...]
    base_model: str | None
    dtype: torch.dtype  # of the output
    compute_dtype: torch.dtype
    format: Format  # of the output
    extras: tuple[LineupExtra, ...] = ()
    magnitude_dtype: torch.dtype | None = None  # of the output, if that is DoRA

    @property
    def names(self) -> list[str]:
        """The modules, sorted."""
        return sorted(self.layouts)

    @property
    def matrices(self) -> int:
        """How many matrices the modules are together."""
        return sum(len(bucket.names) * bucket.layout.stack for bucket in self.buckets)

    @property
    def rank(self) -> int:
        """The largest of the output, and of every module unless each has its own."""
        return max(bucket.output_rank * bucket.layout.groups for bucket in self.buckets)

    @cached_property
    def ranks(self) -> dict[str, int]:
        """The rank of each module of the output."""
        ranks: dict[str, int] = {}
        for bucket in self.buckets:
            ranks |= dict.fromkeys(bucket.names, bucket.output_rank * bucket.layout.groups)
        return ranks

    @cached_property
    def layouts(self) -> Mapping[str, Layout]:
        """The layout of each module."""
        layouts: dict[str, Layout] = {}
        for bucket in self.buckets:
            layouts |= dict.fromkeys(bucket.names, bucket.layout)
        return layouts

    @cached_property
    def owners(self) -> Mapping[str, str]:
        """The module of the model that each module belongs to."""
        return {name: member.owner for name, member in self._first_members.items()}

    @cached_property
    def _first_members(self) -> Mapping[str, LoraModule]:
        """Each module in the first adapter that has it, whose spelling the output keeps."""
        first: dict[str, LoraModule] = {}
        for bucket in self.buckets:
            for name, members in zip(bucket.names, bucket.members, strict=True):
                first[name] = members[0]
        return first

    @cached_property
    def kept(self) -> Mapping[str, tuple[float, ...]]:
        """What each adapter's factors hold of what its file stores, by module."""
        kept: dict[str, tuple[float, ...]] = {}
        for bucket in self.buckets:
            for name, members in zip(bucket.names, bucket.members, strict=True):
                shares = [1.0] * len(self.adapters)
                for i, member in zip(bucket.adapters, members, strict=True):
                    shares[i] = member.kept
                kept[name] = tuple(shares)
        return kept

    @property
    def labels(self) -> tuple[str, ...]:
        """A label per adapter: the last part of its path, numbered where several are alike.

        Wherever the adapters lie and in whatever order they come, a label stays with its adapter.
        """
        names = [PurePath(adapter.source).name for adapter in self.adapters]
        return tuple(f"{name}#{names[:i].count(name)}" for i, name in enumerate(names))

    @property
    def nbytes(self) -> int:
        """The size of all tensors of the output."""
        total = 0
        for bucket in self.buckets:
            m, n = bucket.shape
            entries = bucket.layout.stack * bucket.output_rank * (m + n)
            if self.magnitude_dtype is not None:
                entries += m
            total += len(bucket.names) * entries * self.dtype.itemsize
        for extra in self.written_extras:
            total += prod(extra.shape) * extra.dtype.itemsize
        return total

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user, before the merge."""
        notes: list[str] = []
        for adapter in self.adapters:
            notes += [f"{adapter.source}: {note}" for note in adapter.notes]
            notes += self._base_notes(adapter)
        notes += shared_notes(self.adapters)
        notes += extra_notes(self.extras, len(self.adapters))
        return (*notes, *self.promised().notes)

    def _base_notes(self, adapter: Adapter) -> Iterator[str]:
        name, other = self.base_model, adapter.base_model
        if name and other and same_model(name, other) and not same_spelling(name, other):
            yield f"{adapter.source} was trained on {other}, taken as a quantised copy of {name}"

    @property
    def written_extras(self) -> tuple[LineupExtra, ...]:
        """All extras but copies of the base's own weights, which are left out."""
        return tuple(extra for extra in self.extras if extra.kind != "base_weight")

    def promised(self) -> Adapter:
        """Return the adapter that a merge will make: shapes without values."""
        modules: dict[str, LoraModule] = {}
        for bucket in self.buckets:
            a, b, magnitude = self._promised_tensors(bucket)
            for name in bucket.names:
                first = self._first_members[name]
                modules[name] = replace(first, a=a, b=b, scale=1.0, magnitude=magnitude, kept=1.0)
        extras: dict[str, Extra] = {}
        for extra in self.written_extras:
            tensor = PromisedTensor(extra.shape, extra.dtype)
            extras[extra.name] = Extra(extra.name, extra.kind, tensor)
        modules = dict(sorted(modules.items()))
        adapter = Adapter("merged", modules, self.base_model, extras=extras)
        return self.format.describe(adapter, self.adapters)

    def _promised_tensors(
        self, bucket: LineupBucket
    ) -> tuple[PromisedTensor, PromisedTensor, PromisedTensor | None]:
        """Return A, B and the magnitudes of each module of a bucket."""
        b, a = bucket.layout.join_shapes(*bucket.shape, bucket.output_rank)
        magnitude: PromisedTensor | None = None
        if self.magnitude_dtype is not None:
            shape = bucket.layout.magnitude_shape(bucket.shape[0])
            magnitude = PromisedTensor(shape, self.magnitude_dtype)
        return PromisedTensor(a, self.dtype), PromisedTensor(b, self.dtype), magnitude


def line_up(
    adapters: Sequence[Adapter],
    *,
    settings: Settings | None = None,
    dtype: torch.dtype | None = None,
    allow_base_mismatch: bool = False,
    form: Format | None = None,
) -> Lineup:
    """Line up the modules of the adapters. Ranks of the output are not settled yet.

    settings: an adapter takes part in a module where its weight is not zero; without settings
    everywhere. dtype: of the output, by default the narrowest that holds all sources. form: of the
    output, by default that of the sources.

    Reads no tensor. Raises GamMergeError if the adapters do not belong together.
    """
    base = _base_model(adapters, allow_base_mismatch)
    buckets = _buckets(adapters, settings)
    if not buckets:
        raise GamMergeError(
            "every module has weight zero in every adapter; there is nothing to merge"
        )
    source_dtype = reduce(torch.promote_types, [adapter.dtype for adapter in adapters])
    modules: dict[str, LoraModule] = {}
    for bucket in buckets:
        modules |= {members[0].name: members[0] for members in bucket.members}
    return Lineup(
        adapters=tuple(adapters),
        buckets=tuple(sorted(buckets, key=lambda bucket: bucket.names)),
        base_model=base,
        dtype=dtype or source_dtype,
        compute_dtype=torch.float64 if source_dtype == torch.float64 else torch.float32,
        extras=line_up_extras(adapters, modules, dtype),
        format=form or format_of(adapters),
    )


def _buckets(adapters: Sequence[Adapter], settings: Settings | None) -> list[LineupBucket]:
    """Return the modules that some adapter takes part in, grouped."""
    groups: dict[object, tuple[tuple[int, ...], list[str]]] = {}
    for name in sorted(set().union(*(adapter.modules for adapter in adapters))):
        weights = settings.weights_of(name) if settings else (1.0,) * len(adapters)
        holders = _holders(adapters, name, weights)
        if not holders:
            continue
        members = [adapters[i].modules[name] for i in holders]
        _check_same(name, [adapters[i] for i in holders], members)
        params = repr(settings.params_of(name)) if settings else ""
        ranks = tuple(member.matrix_rank for member in members)
        key = (members[0].layout, members[0].shape, holders, ranks, params)
        groups.setdefault(key, (holders, []))[1].append(name)
    return [_bucket(adapters, holders, names) for holders, names in groups.values()]


def _holders(adapters: Sequence[Adapter], name: str, weights: Sequence[float]) -> tuple[int, ...]:
    """Return the positions of the adapters that take part in a module."""
    return tuple(i for i, adapter in enumerate(adapters) if name in adapter.modules and weights[i])


def _bucket(
    adapters: Sequence[Adapter], holders: tuple[int, ...], names: Sequence[str]
) -> LineupBucket:
    members: list[tuple[LoraModule, ...]] = []
    for name in names:
        members.append(tuple(adapters[i].modules[name] for i in holders))
    first = members[0][0]
    ranks = tuple(member.matrix_rank for member in members[0])
    return LineupBucket(tuple(names), first.layout, first.shape, holders, ranks, tuple(members))


def _base_model(adapters: Sequence[Adapter], allow_mismatch: bool) -> str | None:
    """Return the model of the adapters, or of the first if they may differ."""
    known = [(adapter.source, adapter.base_model) for adapter in adapters if adapter.base_model]
    if not known:
        return None
    known.sort(key=lambda named: is_quantised(named[1]))  # the original first
    first, name = known[0]
    for source, other in known[1:]:
        if not same_model(name, other) and not allow_mismatch:
            raise GamMergeError(
                f"{first} was trained on {name} and {source} on {other}; if the two are the same "
                "model, pass --allow-base-mismatch (allow_base_mismatch=True in Python)"
            )
    return name


def _check_same(name: str, holders: Sequence[Adapter], members: Sequence[LoraModule]) -> None:
    """Raise GamMergeError unless a module has one layout and one shape in all adapters."""
    first = members[0]
    for holder, member in zip(holders, members, strict=True):
        if member.layout != first.layout:
            raise GamMergeError(
                f"module {name} is {first.layout} in {holders[0].source} and {member.layout} in "
                f"{holder.source}; leave one of them out"
            )
        if member.shape != first.shape:
            raise GamMergeError(
                f"module {name} is {first.shape} in {holders[0].source} and {member.shape} in "
                f"{holder.source}; adapters of different base models cannot be merged"
            )
