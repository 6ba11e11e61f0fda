"""A format: how the adapters of one ecosystem lie on disk, read and written in one grammar of keys.

To add one, write a class in a file of its own here and list an instance in ``formats``. A merge
does not know which format it reads: it works on an ``Adapter``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import FileVersion
from gam_merge._common.tensors import LazyTensor
from gam_merge._read.adapter import Adapter, Extra, LoraModule
from gam_merge._read.container import TensorSpec, TensorWriter
from gam_merge._read.layout import Layout
from gam_merge._read.safetensors import SafetensorsWriter

OpenWriter = Callable[[Path, Sequence[TensorSpec], Mapping[str, str]], TensorWriter]


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
        config_version: the version of that file which was read.
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
    config_version: FileVersion | None = None
    bare: bool = False

    def given(self, base_model: str | None = None) -> dict[str, Any]:
        """Return base model and alpha as far as the user had to give them.

        base_model: that of the files, if they name one.
        """
        given: dict[str, Any] = {}
        if base_model is None and self.base_model is not None:
            given["base_model"] = self.base_model
        if self.alpha is not None:
            given["alpha"] = self.alpha
        return given


class Format(ABC):
    """One grammar of keys, and the files that hold it.

    Attributes:
        name: the format in one word, as a user names it.
        weights_names: how the file of weights may be called in a directory; the first is written.
        config_name: how the config is called in a directory; None for a format without one.
        file_suffix: the end of the name of a file that is an adapter by itself; None where
            readers need a directory.
        mixed_ranks: whether every reader takes modules of unlike ranks.
        container: what writes the file of weights.
        data_hash_key: the metadata of the SHA-256 of all tensors, if readers look for one.
    """

    name: str
    weights_names: Sequence[str]
    config_name: str | None = None
    file_suffix: str | None = ".safetensors"
    mixed_ranks: bool = False
    container: OpenWriter = SafetensorsWriter
    data_hash_key: str | None = None

    def config_names(self, weights: PurePath) -> Sequence[str]:
        """Return the names under which the config of a bare file may lie next to it, in order."""
        return ()

    @abstractmethod
    def recognizes(self, contents: Contents) -> bool:
        """Tell whether these tensors, with the config as this format finds it, are of it."""

    @abstractmethod
    def parse(self, contents: Contents, problems: list[str] | None = None) -> Adapter:
        """Return the adapter that some files hold.

        Raises GamMergeError for the first thing that cannot be merged. With ``problems`` it is
        added there instead, and the adapter is what the rest holds.
        """

    def check_together(self, adapters: Sequence[Adapter]) -> None:
        """Raise GamMergeError for adapters of this format that are of unlike models."""
        return

    @abstractmethod
    def describe(self, adapter: Adapter, sources: Sequence[Adapter] = ()) -> Adapter:
        """Return a new adapter with the config under which this format writes it.

        sources: the adapters that it was merged from, whose settings are carried over. Raises
        GamMergeError for a module or an extra that the format cannot hold.
        """

    @abstractmethod
    def module_tensors(self, module: LoraModule) -> Mapping[str, LazyTensor]:
        """Return the tensors of a module, by key.

        Its scale is among them where the format keeps one per module.
        """

    def extra_tensors(self, extra: Extra, modules: Collection[str]) -> Mapping[str, LazyTensor]:
        """Return the tensors that an extra becomes in an adapter of these modules, by key."""
        raise AssertionError(f"describe refuses {extra.kind}")

    def metadata(self, adapter: Adapter, title: str) -> Mapping[str, str]:
        """Return the metadata of the file of weights. title: what a user calls the output."""
        return {}


def adapter_tensors(form: Format, adapter: Adapter) -> dict[str, LazyTensor]:
    """Return all tensors of an adapter, by the keys under which a format writes them."""
    tensors: dict[str, LazyTensor] = {}
    for module in adapter.modules.values():
        tensors |= form.module_tensors(module)
    for extra in adapter.extras.values():
        tensors |= form.extra_tensors(extra, adapter.modules)
    return tensors


def check_holds(form: Format, adapter: Adapter, layouts: Collection[type[Layout]]) -> None:
    """Raise GamMergeError unless a format that is plain LoRA alone can hold an adapter.

    layouts: those of modules that it has keys for.
    """
    for module in adapter.modules.values():
        if module.magnitude is not None:
            raise GamMergeError(
                f"the format {form.name} is written without DoRA, but {module.name} has "
                "magnitudes; --flatten-dora (flatten_dora=True) writes plain LoRA"
            )
        if type(module.layout) not in layouts or module.layout.groups > 1:
            raise GamMergeError(
                f"the format {form.name} cannot hold {module.layout} ({module.name}); leave the "
                "adapters with it out"
            )
    for extra in adapter.extras.values():
        raise GamMergeError(
            f"the format {form.name} cannot hold {extra.name} ({extra.kind}); leave the adapters "
            "with it out"
        )


def check_one_rank(reader: str, adapter: Adapter) -> None:
    """Raise GamMergeError for a module of another rank than the adapter's.

    reader: what reads one rank for all modules.
    """
    for module in adapter.modules.values():
        if module.rank != adapter.rank:
            raise GamMergeError(
                f"{reader} reads one rank for all modules, but {module.name} has {module.rank} of "
                f"{adapter.rank}; leave --per-module-rank out"
            )
