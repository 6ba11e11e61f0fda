"""The plan of a merge, from headers alone: the modules of all adapters lined up, checked, and grouped into buckets."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

import torch

from gam_merge._adapter import Adapter, LoraModule
from gam_merge._errors import GamMergeError
from gam_merge._settings import Settings

_SERVED_RANK = 512  # the largest max_lora_rank of vLLM


@dataclass(frozen=True)
class PlannedBucket:
    """Modules of one shape: the same (out, in), in the same adapters with the same ranks, and the same parameters.

    ``members[j][i]`` is module ``names[j]`` of adapter ``adapters[i]``.
    """

    names: tuple[str, ...]
    shape: tuple[int, int]
    adapters: tuple[int, ...]
    ranks: tuple[int, ...]
    members: tuple[tuple[LoraModule, ...], ...]


@dataclass(frozen=True)
class Plan:
    """All that is settled before the first tensor is read."""

    adapters: tuple[Adapter, ...]
    buckets: tuple[PlannedBucket, ...]
    base_model: str | None
    rank: int  # of every module of the output
    dtype: torch.dtype  # of the output
    compute_dtype: torch.dtype

    @property
    def names(self) -> list[str]:
        return sorted(name for bucket in self.buckets for name in bucket.names)

    @property
    def labels(self) -> tuple[str, ...]:
        """Of the adapters: the last part of their paths, numbered where several are alike. Wherever they lie and in
        whatever order they come, a label stays with its adapter."""
        names = [PurePath(adapter.source).name for adapter in self.adapters]
        return tuple(f"{name}#{names[:i].count(name)}" for i, name in enumerate(names))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know beforehand."""
        if self.rank <= _SERVED_RANK:
            return ()
        return (f"rank {self.rank} is more than the {_SERVED_RANK} that servers of LoRA take; cut it with --rank",)

    @property
    def nbytes(self) -> int:
        """Of all tensors of the output."""
        numbers = sum(len(bucket.names) * self.rank * sum(bucket.shape) for bucket in self.buckets)
        return numbers * self.dtype.itemsize


def make_plan(
    adapters: Sequence[Adapter],
    *,
    settings: Settings | None = None,
    rank: int | None = None,
    native: Literal["largest", "sum"] = "largest",
    dtype: torch.dtype | None = None,
    allow_base_mismatch: bool = False,
) -> Plan:
    """Line up the modules of the adapters. Reads no tensor; raises GamMergeError if they do not belong together.

    settings: an adapter takes part in a module where its weight is not zero; without them everywhere. rank: of the
    output, by default the largest rank of any module, or with native="sum" the largest sum of ranks over the adapters
    that hold a module. dtype: of the output, by default the narrowest that holds all sources.
    """
    base = _base_model(adapters, allow_base_mismatch)
    groups: dict[tuple[tuple[int, int], tuple[int, ...], tuple[int, ...], str], list[str]] = {}
    for name in sorted({name for adapter in adapters for name in adapter.modules}):
        weights = settings.weights_of(name) if settings else (1.0,) * len(adapters)
        holders = tuple(i for i, adapter in enumerate(adapters) if name in adapter.modules and weights[i])
        if not holders:
            continue
        members = [adapters[i].modules[name] for i in holders]
        shape = _common_shape(name, [adapters[i] for i in holders], members)
        params = repr(settings.params_of(name)) if settings else ""
        groups.setdefault((shape, holders, tuple(m.rank for m in members), params), []).append(name)
    if not groups:
        raise GamMergeError("every module has weight zero in every adapter; there is nothing to merge")
    buckets = [_bucket(adapters, holders, names) for (_, holders, *_), names in groups.items()]
    source_dtype = adapters[0].dtype
    for adapter in adapters:
        source_dtype = torch.promote_types(source_dtype, adapter.dtype)
    return Plan(
        adapters=tuple(adapters),
        buckets=tuple(sorted(buckets, key=lambda bucket: bucket.names)),
        base_model=base,
        rank=rank if rank is not None else max(_native_rank(bucket, native) for bucket in buckets),
        dtype=dtype or source_dtype,
        compute_dtype=torch.float64 if source_dtype == torch.float64 else torch.float32,
    )


def _bucket(adapters: Sequence[Adapter], holders: tuple[int, ...], names: list[str]) -> PlannedBucket:
    members = tuple(tuple(adapters[i].modules[name] for i in holders) for name in names)
    return PlannedBucket(tuple(names), members[0][0].shape, holders, tuple(m.rank for m in members[0]), members)


def _native_rank(bucket: PlannedBucket, kind: Literal["largest", "sum"]) -> int:
    """No module has more than its sides hold."""
    return max(bucket.ranks) if kind == "largest" else min(sum(bucket.ranks), *bucket.shape)


def _base_model(adapters: Sequence[Adapter], allow_mismatch: bool) -> str | None:
    known = [adapter for adapter in adapters if adapter.base_model is not None]
    for adapter in known[1:]:
        if adapter.base_model != known[0].base_model and not allow_mismatch:
            raise GamMergeError(
                f"{known[0].source} was trained on {known[0].base_model} and {adapter.source} on {adapter.base_model}; "
                "if the two are the same model, pass --allow-base-mismatch (allow_base_mismatch=True in Python)"
            )
    return known[0].base_model if known else None


def _common_shape(name: str, holders: Sequence[Adapter], members: Sequence[LoraModule]) -> tuple[int, int]:
    for holder, member in zip(holders, members, strict=True):
        if member.shape != members[0].shape:
            raise GamMergeError(
                f"module {name} is {members[0].shape} in {holders[0].source} and {member.shape} in {holder.source}; "
                "adapters of different base models cannot be merged"
            )
    return members[0].shape
