"""Adapters of several formats and dialects -> adapters whose modules meet, in one format."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from gam_merge._common.errors import GamMergeError
from gam_merge._read.adapter import Adapter, LoraModule
from gam_merge._read.format import Format
from gam_merge._translate.bare import BareNames
from gam_merge._translate.base import BaseConfig
from gam_merge._translate.bfl import BflNames
from gam_merge._translate.clip import FlatClipNames
from gam_merge._translate.comfy import ComfyNames
from gam_merge._translate.dialect import Dialect, Modules
from gam_merge._translate.experts import StackedExperts
from gam_merge._translate.gguf import GgufNames
from gam_merge._translate.kohya_flux import KohyaFlux
from gam_merge._translate.language import MlxNames, PeftNames
from gam_merge._translate.pipeline import DiffusersNames
from gam_merge._translate.processors import ProcessorNames
from gam_merge._translate.sai import KohyaSai
from gam_merge._translate.sd import KohyaSd
from gam_merge._translate.sdxl import KohyaSdxl

# By preference: where adapters of one format are in several, the first that fits is written.
DIALECTS: list[Dialect] = [
    StackedExperts(), PeftNames(), MlxNames(), GgufNames(),
    DiffusersNames(), BareNames(), FlatClipNames(), ProcessorNames(), ComfyNames(),
    BflNames("diffusion_model."), BflNames("transformer."), BflNames(""),
    KohyaSd(), KohyaSai(), KohyaSdxl(), KohyaFlux(),
]  # fmt: skip


def dialect_of(adapter: Adapter) -> Dialect | None:
    """Return the dialect that an adapter is in; None for a model that no table here has."""
    for dialect in DIALECTS:
        if dialect.format == adapter.format and dialect.recognizes(adapter.modules):
            return dialect
    return None


def together(
    adapters: Sequence[Adapter], form: Format, base: BaseConfig | None = None
) -> list[Adapter]:
    """Return adapters in one format, and in one dialect of it.

    base: the base model of all, by default what each names. Where all are in one dialect of the
    format they stay as they are, and so does what no table here has. Raises GamMergeError, with
    both formats, for a module that cannot be translated.
    """
    results = _in_one_dialect(adapters, form, base)
    form.check_together(results)
    return results


def _in_one_dialect(
    adapters: Sequence[Adapter], form: Format, base: BaseConfig | None
) -> list[Adapter]:
    dialects = [dialect_of(adapter) for adapter in adapters]
    known = {dialect for dialect in dialects if dialect is not None}
    if len(known) <= 1 and all(adapter.format == form.name for adapter in adapters):
        return list(adapters)
    models = _models(adapters, base)
    common: list[dict[str, LoraModule]] = []
    for adapter, dialect, model in zip(adapters, dialects, models, strict=True):
        if dialect is None:
            raise _untranslatable(adapter, form)
        common.append(dialect.for_base(model).to_common(adapter))
    target = _target(known, form, set().union(*common))
    if target is None:
        raise _no_target(adapters, dialects, form)
    spellings = _spellings(adapters, dialects, target)
    results: list[Adapter] = []
    for adapter, dialect, model, modules in zip(adapters, dialects, models, common, strict=True):
        if dialect == target:
            results.append(adapter)
        else:
            own = target.for_base(model)
            named = _spelled(own.from_common(modules, adapter), spellings)
            results.append(_with(adapter, named, own))
    return results


def _models(adapters: Sequence[Adapter], base: BaseConfig | None) -> list[BaseConfig | None]:
    """Return the base model of each adapter, one object per model: its config is read once."""
    if base is not None:
        return [base] * len(adapters)
    names = {adapter.base_model or "" for adapter in adapters} - {""}
    known = {name: BaseConfig(name) for name in names}
    return [known.get(adapter.base_model or "") for adapter in adapters]


def _target(dialects: Collection[Dialect], form: Format, names: Collection[str]) -> Dialect | None:
    """Return the dialect of the output: one of the sources', or the default of the format.

    names: the common names of all modules. None for a model that no table here has.
    """
    candidates = [dialect for dialect in DIALECTS if dialect.format == form.name]
    for dialect in candidates:
        if dialect in dialects and dialect.fits(names):
            return dialect
    for dialect in candidates:
        if dialect.is_default(names):
            return dialect
    return None


def _untranslatable(adapter: Adapter, form: Format) -> GamMergeError:
    name = next(iter(adapter.modules))
    return GamMergeError(
        f"{adapter.source}: module {name} ({adapter.format}) cannot be translated for an output "
        f"in the format {form.name}: no table here has the names of its model in both; merge "
        "adapters that name their modules alike, and keep their format"
    )


def _no_target(
    adapters: Sequence[Adapter], dialects: Sequence[Dialect | None], form: Format
) -> GamMergeError:
    """Return the error for adapters that no dialect of a format has the names of."""
    described = {
        dialect: f"{adapter.source} ({dialect.name})"
        for adapter, dialect in zip(adapters, dialects, strict=True)
        if dialect is not None
    }
    if len(described) == 1:
        return _untranslatable(adapters[0], form)
    return GamMergeError(
        f"{' and '.join(described.values())}: no table here has the names of all of them in the "
        f"format {form.name}; merge adapters of one model, or choose another --format (format=)"
    )


def _spellings(
    adapters: Sequence[Adapter], dialects: Sequence[Dialect | None], target: Dialect
) -> Mapping[str, str]:
    """Return how the first adapter that stays spells its keys, by the first part of its names.

    A reader may take a file for what its first key is.
    """
    for adapter, dialect in zip(adapters, dialects, strict=True):
        if dialect == target:
            modules = reversed(list(adapter.modules.values()))
            return {_first_part(module.name): module.spelling for module in modules}
    return {}


def _spelled(modules: Modules, spellings: Mapping[str, str]) -> dict[str, LoraModule]:
    """Return modules in the spelling of others, unless they have one of their own."""
    spelled: dict[str, LoraModule] = {}
    for name, module in modules.items():
        spelling = module.spelling or spellings.get(_first_part(name), "")
        spelled[name] = replace(module, spelling=spelling)
    return spelled


def _first_part(name: str) -> str:
    return name.partition(".")[0]


def _with(adapter: Adapter, modules: Modules, target: Dialect) -> Adapter:
    """Return an adapter with modules in another dialect, and without the config of its format."""
    if adapter.format == target.format:
        return replace(adapter, modules=modules)
    config = target.config(adapter)
    return replace(adapter, modules=modules, format=target.format, config=config, settings={})
