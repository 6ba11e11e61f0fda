"""Names of modules that differ between adapters of one model.

Versions of transformers call one module ``language_model.model.layers.0...``,
``model.language_model.layers.0...`` or, without its vision tower, ``model.layers.0...``; a model
without its head lacks the first part of every name. Such adapters are brought together under the
names of the first. Adapters that share no module in the end would each be diluted by the others:
that is an error unless the user insists.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from gam_merge._common.errors import GamMergeError
from gam_merge._lineup.options import Missing
from gam_merge._read.adapter import Adapter, Extra, LoraModule

_CONTAINERS = ("model", "language_model")  # that transformers put in front of the layers, or not

_Modules = Mapping[str, LoraModule]


def bring_together(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Return the adapters, later ones under the names of earlier ones.

    That is done where names differ in front of the layers alone, and every module then matches.
    """
    together: list[Adapter] = []
    modules: dict[str, LoraModule] = {}
    extras: dict[str, Extra] = {}
    for adapter in adapters:
        names = _new_names(adapter.modules, modules)
        if names:
            names |= _same_stems(adapter.extras, extras, _without_containers)
            adapter = _renamed(adapter, names, together[0].source) or adapter
        together.append(adapter)
        modules = {**adapter.modules, **modules}
        extras = {**adapter.extras, **extras}
    return together


def check_shared(adapters: Sequence[Adapter], missing: Missing | None) -> None:
    """Raise GamMergeError if some adapters share no module with the others.

    missing: as the user gave it; who says what to do with a module that is missing knows of it.
    """
    if missing is not None:
        return
    first, *apart = adapters
    reached = set(first.modules)
    while apart:
        near = [adapter for adapter in apart if not reached.isdisjoint(adapter.modules)]
        if not near:
            raise GamMergeError(
                f"{first.source} and {apart[0].source} share no module: one has {_first(first)}, "
                f"the other {_first(apart[0])}; save both from one version of the model, or insist "
                "with --missing zero (missing='zero' in Python)"
            )
        reached = reached.union(*(adapter.modules for adapter in near))
        apart = [adapter for adapter in apart if not adapter.modules.keys() <= reached]


def shared_notes(adapters: Sequence[Adapter]) -> Iterator[str]:
    """Yield a warning where the adapters share less than half of their modules."""
    shared, total = shared_modules(adapters), len(_all_modules(adapters))
    if 2 * shared < total:
        yield (
            f"only {shared} of {total} modules are in all adapters; --missing says whether those "
            "that lack one count as zero there"
        )


def shared_modules(adapters: Sequence[Adapter]) -> int:
    """Count the modules that all adapters have."""
    return len(set.intersection(*(set(adapter.modules) for adapter in adapters)))


def _all_modules(adapters: Sequence[Adapter]) -> set[str]:
    return set().union(*(adapter.modules for adapter in adapters))


def _first(adapter: Adapter) -> str:
    return next(iter(adapter.modules))


def _new_names(modules: _Modules, known: _Modules) -> dict[str, str]:
    """Return known names of modules, if all of them have one, or all that are known are taken."""
    if modules.keys() <= known.keys() or known.keys() <= modules.keys():
        return {}
    for stem in (_without_containers, _without_prefix(modules, known)):
        names = _same_stems(modules, known, stem)
        whole = len(names) in (len(modules), len(known))
        if whole and all(_alike(modules[name], known[new]) for name, new in names.items()):
            return names
    return {}


def _same_stems(
    names: Collection[str], known: Collection[str], stem: Callable[[str], str]
) -> dict[str, str]:
    """Return the known name of each name with an equal stem; none if stems are ambiguous."""
    by_stem = {stem(name): name for name in known}
    stems = {name: stem(name) for name in names}
    if len(by_stem) < len(known) or len(set(stems.values())) < len(names):
        return {}
    return {name: by_stem[text] for name, text in stems.items() if text in by_stem}


def _alike(module: LoraModule, other: LoraModule) -> bool:
    return (module.shape, module.layout) == (other.shape, other.layout)


def _without_containers(name: str) -> str:
    """Return a name without the containers in front of its layer."""
    parts = name.split(".")
    layer = next((i for i, part in enumerate(parts) if part.isdecimal()), len(parts))
    kept = [part for part in parts[:layer] if part not in _CONTAINERS]
    return ".".join(kept + parts[layer:])


def _without_prefix(modules: Collection[str], known: Collection[str]) -> Callable[[str], str]:
    """Return what takes off a prefix that the names of one side have and the other side lacks."""
    layered = [name for name in (*modules, *known) if re.search(r"\.\d+\.", f".{name}.")]
    shortest = min(layered, key=len, default="")
    for names in (modules, known):
        longer = [name for name in names if shortest and name.endswith(f".{shortest}")]
        if len(longer) == 1:
            return partial(_without, longer[0].removesuffix(shortest))
    return str


def _without(prefix: str, name: str) -> str:
    return name.removeprefix(prefix)


def _renamed(adapter: Adapter, names: Mapping[str, str], reference: str) -> Adapter | None:
    """Return an adapter under its new names; None if one of them cannot be told."""
    heads = dict(_heads(name, new) for name, new in names.items())
    new_names = {
        name: _new_name(name, names, heads) for name in (*adapter.modules, *adapter.extras)
    }
    if None in new_names.values() or len(set(new_names.values())) < len(new_names):
        return None
    modules: dict[str, LoraModule] = {}
    for name, module in adapter.modules.items():
        new = str(new_names[name])
        wrapper = module.wrapper and new.removesuffix(name.removeprefix(module.wrapper))
        modules[new] = replace(module, name=new, wrapper=wrapper)
    extras: dict[str, Extra] = {}
    for name, extra in adapter.extras.items():
        new = str(new_names[name])
        extras[new] = replace(extra, name=new)
    old = next(name for name in adapter.modules if name != new_names[name])
    note = f"its modules have different names in {reference}: {old} is taken for {new_names[old]}"
    return replace(adapter, modules=modules, extras=extras, notes=(*adapter.notes, note))


def _heads(name: str, new: str) -> tuple[str, str]:
    """Return what two names begin with, in front of the tail that they share."""
    tail: list[str] = []
    for part, other in zip(reversed(name.split(".")), reversed(new.split(".")), strict=False):
        if part != other:
            break
        tail.insert(0, part)
    shared = ".".join(tail)
    return name.removesuffix(shared), new.removesuffix(shared)


def _new_name(name: str, names: Mapping[str, str], heads: Mapping[str, str]) -> str | None:
    """Return the new name of a module, or of a tensor of one; None if it cannot be told."""
    owner = name
    while owner:
        if owner in names:
            return names[owner] + name.removeprefix(owner)
        owner = owner.rpartition(".")[0]
    for head in sorted(heads, key=len, reverse=True):
        if head and name.startswith(head):
            return heads[head] + name.removeprefix(head)
    return None
