"""Adapters from tensors that somebody else holds, and back: for stacks that own their state."""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Protocol

from torch import Tensor

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import MemoryTensor, read
from gam_merge._merge import MergeResult, merge
from gam_merge._read.adapter import Adapter
from gam_merge._read.peft import adapter_tensors, parse_adapter


class ConfigObject(Protocol):
    """PEFT's LoraConfig, or what behaves like it."""

    def to_dict(self) -> dict[str, Any]: ...


Config = Mapping[str, Any] | ConfigObject


def from_state_dict(
    tensors: Mapping[str, Tensor], config: Config, *, name: str = "state dict"
) -> Adapter:
    """An adapter from PEFT's tensors in memory, on any device; they are shared, and read when a merge runs.

    tensors: by the keys of an adapter file. config: the fields of adapter_config.json, or a LoraConfig. name: what
    errors and reports call it. Raises GamMergeError for what ``load`` would refuse.
    """
    fields = config if isinstance(config, Mapping) else config.to_dict()
    plain = {key: _plain(value) for key, value in fields.items()}
    return parse_adapter(name, plain, {key: MemoryTensor(value) for key, value in tensors.items()})


def state_dict(adapter: Adapter) -> dict[str, Tensor]:
    """All tensors of an adapter by the keys of an adapter file, on the CPU."""
    return {key: read(tensor) for key, tensor in adapter_tensors(adapter).items()}


def merge_state_dicts(
    dicts: Sequence[Mapping[str, Tensor]], configs: Config | Sequence[Config], **options: Any
) -> MergeResult:
    """Merge adapters that are state dicts; ``state_dict(result.adapter)`` and ``result.adapter.config`` are the merge.

    configs: one for each, or one for all. ``options`` are those of ``merge``. Raises GamMergeError.
    """
    listed = list(configs) if isinstance(configs, Sequence) else [configs] * len(dicts)
    if len(listed) != len(dicts):
        raise GamMergeError(
            f"{len(listed)} configs for {len(dicts)} state dicts; give one, or one for each"
        )
    pairs = zip(dicts, listed, strict=True)
    return merge(
        [from_state_dict(d, c, name=f"state dict {i}") for i, (d, c) in enumerate(pairs)], **options
    )


def _plain(value: Any) -> Any:
    """As JSON would have it: PEFT's objects hold sets and enums."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value.value if isinstance(value, Enum) else value
