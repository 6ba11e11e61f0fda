"""A dialect: how the modules of one model are named, and cut, in the files of a format.

Dialects meet in common names: those of the Hub's language models, and those of diffusers with the
component of the pipeline in front. To add one, write a class in a file of its own here and list an
instance in ``DIALECTS``: a ``Renaming`` where a module has another name, no more.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from gam_merge._common.errors import GamMergeError
from gam_merge._read.adapter import Adapter, LoraModule
from gam_merge._translate.base import BaseConfig

Modules = Mapping[str, LoraModule]

COMMON = "diffusers' format"  # what errors call the common names


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

    def fits(self, names: Collection[str]) -> bool:
        """Tell whether it is a dialect for the model that has these common names."""
        return True

    def is_default(self, names: Collection[str]) -> bool:
        """Tell whether it is the dialect of its format where nothing but these names is known."""
        return False

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


class Renaming(Dialect):
    """A dialect whose modules are the common ones, under other names."""

    @abstractmethod
    def common_name(self, name: str) -> str | None:
        """Return the common name of a module; None if it has none."""

    @abstractmethod
    def own_name(self, name: str) -> str | None:
        """Return the name in this dialect of a module with a common name; None if it has none."""

    def to_common(self, adapter: Adapter) -> dict[str, LoraModule]:
        return renamed_all(adapter.modules, self.common_name, adapter, COMMON)

    def from_common(self, modules: Modules, adapter: Adapter) -> dict[str, LoraModule]:
        return renamed_all(modules, self.own_name, adapter, self.name)


def renamed_all(
    modules: Modules, name_of: Callable[[str], str | None], adapter: Adapter, grammar: str
) -> dict[str, LoraModule]:
    """Return modules under other names. Raises GamMergeError for one without, and for two alike.

    grammar: what errors call the names that ``name_of`` gives.
    """
    named: dict[str, LoraModule] = {}
    origins: dict[str, str] = {}
    for name, module in modules.items():
        other = name_of(name)
        if other is None:
            raise no_name(adapter, name, grammar)
        if other in named:
            raise GamMergeError(
                f"{adapter.source}: modules {origins[other]} and {name} ({adapter.format}) are "
                f"both {other} in {grammar}; it may be two adapters in one file"
            )
        named[other], origins[other] = renamed(module, other), name
    return named


def renamed(module: LoraModule, name: str, spelling: str = "") -> LoraModule:
    """Return a module under another name, by default spelled as its format does."""
    return replace(module, name=name, spelling=spelling)


def no_name(
    adapter: Adapter,
    module: str,
    grammar: str,
    remedy: str = "merge it with adapters that name their modules alike, or leave it out",
) -> GamMergeError:
    """Return the error for a module that a grammar does not have."""
    return GamMergeError(
        f"{adapter.source}: module {module} ({adapter.format}) has no name in {grammar}; {remedy}"
    )
