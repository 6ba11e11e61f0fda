"""Adapters of several formats and dialects -> adapters whose modules meet, in one format."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from gam_merge._common.errors import GamMergeError
from gam_merge._read.adapter import Adapter, LoraModule
from gam_merge._read.format import Format
from gam_merge._translate.base import BaseConfig
from gam_merge._translate.dialect import Dialect, Modules
from gam_merge._translate.experts import StackedExperts
from gam_merge._translate.gguf import GgufNames
from gam_merge._translate.language import MlxNames, PeftNames
from gam_merge._translate.pipeline import DiffusersNames

# In the order in which they are asked; the first of a format is the one that others become.
DIALECTS: list[Dialect] = [StackedExperts(), PeftNames(), MlxNames(), GgufNames(), DiffusersNames()]


class _Opaque(Dialect):
    """Names of a format that no table here knows: merged with their like, never translated."""

    def __init__(self, form: str) -> None:
        self.name, self.format = f"the format {form}", form

    def recognizes(self, names: Collection[str]) -> bool:
        return True

    def to_common(self, adapter: Adapter) -> dict[str, LoraModule]:
        raise self._unknown(adapter, next(iter(adapter.modules)))

    def from_common(self, modules: Modules, adapter: Adapter) -> dict[str, LoraModule]:
        raise self._unknown(adapter, next(iter(modules)))

    def _unknown(self, adapter: Adapter, name: str) -> GamMergeError:
        return GamMergeError(
            f"{adapter.source}: module {name} ({adapter.format}) cannot be translated: no table "
            f"here has its name in {self.name}; merge adapters of one format, and keep it"
        )


def dialect_of(adapter: Adapter) -> Dialect:
    """Return the dialect that an adapter is in."""
    for dialect in DIALECTS:
        if dialect.format == adapter.format and dialect.recognizes(adapter.modules):
            return dialect
    return _Opaque(adapter.format)


def together(
    adapters: Sequence[Adapter], form: Format, base: BaseConfig | None = None
) -> list[Adapter]:
    """Return adapters in one format, and in one dialect of it.

    base: the base model of all, by default what each names. Where all are in one dialect of the
    format they stay as they are, whatever their names. Raises GamMergeError, with both formats, for
    a module that cannot be translated.
    """
    names = {adapter.base_model or "" for adapter in adapters} - {""}
    bases = {name: BaseConfig(name) for name in names}
    dialects = [dialect_of(adapter) for adapter in adapters]
    target = _target(dialects, form)
    results: list[Adapter] = []
    for adapter, dialect in zip(adapters, dialects, strict=True):
        stays = dialect.name == target.name or isinstance(dialect, _Opaque)
        if adapter.format == form.name and stays:
            results.append(adapter)
        else:
            model = base or bases.get(adapter.base_model or "")
            results.append(_translated(adapter, dialect.for_base(model), target.for_base(model)))
    form.check_together(results)
    return results


def _target(dialects: Sequence[Dialect], form: Format) -> Dialect:
    """Return the dialect of the output: the first of the format that is there, or else at all."""
    present = [dialect for dialect in DIALECTS if dialect in dialects]
    for dialect in (*present, *DIALECTS):
        if dialect.format == form.name:
            return dialect
    return _Opaque(form.name)


def _translated(adapter: Adapter, dialect: Dialect, target: Dialect) -> Adapter:
    modules = target.from_common(dialect.to_common(adapter), adapter)
    if adapter.format == target.format:
        return replace(adapter, modules=modules)
    config = target.config(adapter)
    return replace(adapter, modules=modules, format=target.format, config=config, settings={})
