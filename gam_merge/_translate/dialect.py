"""A dialect: how the modules of one model are named, and cut, in the files of a format.

Dialects meet in common names: those of the Hub's language models, and those of diffusers with the
component of the pipeline in front. To add one, write a class in a file of its own here and list an
instance in ``dialects``.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from gam_merge._common.errors import GamMergeError
from gam_merge._read.adapter import Adapter, LoraModule
from gam_merge._translate.base import BaseConfig

Modules = Mapping[str, LoraModule]


class Dialect(ABC):
    """One way to name the modules of a model.

    Attributes:
        name: what errors call it.
        format: the name of the format whose files are written in it.
    """

    name: str
    format: str

    def for_base(self, base: BaseConfig | None) -> "Dialect":
        """Return this dialect for a model: itself, unless something depends on the model's config.

        base: None if the model is not known.
        """
        return self

    def config(self, adapter: Adapter) -> dict[str, Any]:
        """Return what the config of an adapter in this dialect says about the model."""
        return {}

    @abstractmethod
    def recognizes(self, names: Collection[str]) -> bool:
        """Tell whether modules of these names are in it."""

    @abstractmethod
    def to_common(self, adapter: Adapter) -> dict[str, LoraModule]:
        """Return the modules of an adapter in this dialect by their common names.

        Raises GamMergeError for one that has no common name.
        """

    @abstractmethod
    def from_common(self, modules: Modules, adapter: Adapter) -> dict[str, LoraModule]:
        """Return modules with common names as this dialect has them.

        adapter: whose modules they are, for errors. Raises GamMergeError for one that this dialect
        does not have.
        """


def renamed(module: LoraModule, name: str) -> LoraModule:
    """Return a module under another name, spelled as its format does by default."""
    return replace(module, name=name, spelling="")


def no_name(adapter: Adapter, module: str, dialect: Dialect, remedy: str) -> GamMergeError:
    """Return the error for a module that a dialect does not have."""
    return GamMergeError(
        f"{adapter.source}: module {module} ({adapter.format}) has no name in {dialect.name}; "
        f"{remedy}"
    )
