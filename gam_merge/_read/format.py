"""A format: how the adapters of one ecosystem lie on disk, read and written in one grammar of keys.

To add one, write a class in a file of its own here and list an instance in ``formats``. A merge
does not know which format it reads: it works on an ``Adapter``.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Protocol

from gam_merge._common.tensors import LazyTensor
from gam_merge._read.adapter import Adapter, Extra, LoraModule


@dataclass(frozen=True)
class Contents:
    """The tensors and the config of an adapter, before a format makes sense of them.

    Attributes:
        source: as the user named it.
        where: the file, or else the source: what errors begin with.
        tensors: by the keys of the file.
        metadata: the metadata of the file of weights.
        config: the config next to the weights; None if there is none.
        base_model: as the user gave it, for files that do not say it.
        alpha: as the user gave it, for files that do not say it.
        file: the file of weights, unless the tensors are in memory.
        config_file: the file of the config, if there is one.
        bare: the user named the file of weights and not its directory, so that others may lie
            next to it.
    """

    source: str
    where: str
    tensors: Mapping[str, LazyTensor]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    config: Mapping[str, Any] | None = None
    base_model: str | None = None
    alpha: float | None = None
    file: Path | None = None
    config_file: Path | None = None
    bare: bool = False


class Format(Protocol):
    """One grammar of keys, and the files that hold it."""

    @property
    def name(self) -> str:
        """The format in one word, as a user names it."""
        ...

    @property
    def weights_names(self) -> Sequence[str]:
        """How the file of weights may be called in a directory; the first is written."""
        ...

    @property
    def config_name(self) -> str | None:
        """How the config is called in a directory; None for a format without one."""
        ...

    def config_names(self, weights: PurePath) -> Sequence[str]:
        """Return the names under which the config of a bare file may lie next to it, in order."""
        ...

    def recognizes(self, keys: Collection[str], metadata: Mapping[str, str]) -> bool:
        """Tell whether a file with these keys and this metadata is of this format."""
        ...

    def parse(self, contents: Contents, problems: list[str] | None = None) -> Adapter:
        """Return the adapter that some files hold.

        Raises GamMergeError for the first thing that cannot be merged. With ``problems`` it is
        added there instead, and the adapter is what the rest holds.
        """
        ...

    def describe(self, adapter: Adapter, sources: Sequence[Adapter] = ()) -> Adapter:
        """Return a new adapter with the config under which this format writes it.

        sources: the adapters that it was merged from, whose settings are carried over.
        """
        ...

    def module_tensors(self, module: LoraModule) -> Mapping[str, LazyTensor]:
        """Return the tensors of the factors of a module, by key, as they are: without its scale."""
        ...

    def extra_tensors(self, extra: Extra, modules: Collection[str]) -> Mapping[str, LazyTensor]:
        """Return the tensors that an extra becomes in an adapter of these modules, by key."""
        ...


def adapter_tensors(form: Format, adapter: Adapter) -> dict[str, LazyTensor]:
    """Return all tensors of an adapter, by the keys under which a format writes them."""
    tensors: dict[str, LazyTensor] = {}
    for module in adapter.modules.values():
        tensors |= form.module_tensors(module)
    for extra in adapter.extras.values():
        tensors |= form.extra_tensors(extra, adapter.modules)
    return tensors
