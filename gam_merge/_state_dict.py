"""Adapters from tensors in memory, and back: for training stacks that own their state."""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Protocol, Unpack

from torch import Tensor

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import MemoryTensor, read
from gam_merge._lineup.options import MergeOptions, explicit
from gam_merge._load import Source
from gam_merge._merge import MergeResult, merge
from gam_merge._read.adapter import Adapter
from gam_merge._read.format import Contents, adapter_tensors
from gam_merge._read.formats import format_of, recognized


class ConfigObject(Protocol):
    """PEFT's LoraConfig, or what behaves like it."""

    def to_dict(self) -> dict[str, Any]: ...


Config = Mapping[str, Any] | ConfigObject


def from_state_dict(
    tensors: Mapping[str, Tensor], config: Config | None = None, *, name: str = "state dict"
) -> Adapter:
    """Make an adapter of tensors in memory, on any device.

    The tensors are shared, and read when a merge runs.

    Args:
        tensors: by the keys of an adapter file.
        config: the fields of adapter_config.json, or a LoraConfig; none for formats without one.
        name: what errors and reports call it.

    Returns:
        Adapter: a source for ``merge``.

    Raises:
        GamMergeError: for what ``load`` would refuse.

    Example:
        >>> saved = gm.load("examples/adapters/addition")
        >>> adapter = gm.from_state_dict(gm.state_dict(saved), saved.config, name="addition")
        >>> adapter.source, adapter.rank
        ('addition', 8)
    """
    lazy = {key: MemoryTensor(value) for key, value in tensors.items()}
    fields = None if config is None else _fields(config)
    form, contents = recognized(lambda _: Contents(name, name, lazy, config=fields))
    return form.parse(contents)


def state_dict(adapter: Adapter) -> dict[str, Tensor]:
    """Return all tensors of an adapter.

    Args:
        adapter: from ``load``, or the result of a merge.

    Returns:
        dict: the tensors by the keys of an adapter file, on the CPU.

    Raises:
        GamMergeError: if a tensor cannot be read.

    Example:
        >>> tensors = gm.state_dict(gm.load("examples/adapters/addition"))
        >>> tensors["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"].shape
        torch.Size([8, 576])
    """
    tensors = adapter_tensors(format_of([adapter]), adapter)
    return {key: read(tensor) for key, tensor in tensors.items()}


@explicit()
def merge_state_dicts(
    dicts: Sequence[Mapping[str, Tensor]],
    configs: Config | Sequence[Config] | None = None,
    **options: Unpack[MergeOptions],
) -> MergeResult:
    """Merge adapters that are state dicts.

    ``state_dict(result.adapter)`` and ``result.adapter.config`` are the merge.

    Args:
        dicts: the tensors of each adapter, by the keys of an adapter file.
        configs: the config of each adapter, or one for all; none for formats without one.

    Returns:
        MergeResult: the adapter in memory, the report, the record.

    Raises:
        GamMergeError: as ``merge`` does.

    Example:
        >>> adapters = [gm.load(f"examples/adapters/{name}") for name in ("addition", "sorting")]
        >>> dicts = [gm.state_dict(adapter) for adapter in adapters]
        >>> result = gm.merge_state_dicts(dicts, adapters[0].config, method="mean")
        >>> result.report.rank
        8
    """
    listed: list[Config | None] = [None] * len(dicts)
    if isinstance(configs, Sequence):
        listed = list(configs)
    elif configs is not None:
        listed = [configs] * len(dicts)
    if len(listed) != len(dicts):
        raise GamMergeError(
            f"got {len(listed)} configs for {len(dicts)} state dicts; give one, or one for each"
        )
    adapters: list[Source] = []
    for i, (tensors, config) in enumerate(zip(dicts, listed, strict=True)):
        adapters.append(from_state_dict(tensors, config, name=f"state dict {i}"))
    return merge(adapters, **options)


def _fields(config: Config) -> dict[str, Any]:
    """Return the fields of a config in the types of JSON."""
    fields = config if isinstance(config, Mapping) else config.to_dict()
    return {key: _plain(value) for key, value in fields.items()}


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: PEFT's objects hold sets, enums, and numbers as tensors."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    return value.value if isinstance(value, Enum) else value
