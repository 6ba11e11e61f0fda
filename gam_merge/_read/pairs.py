"""Factors that lie under one stem, side by side: what kohya's and diffusers' grammars share.

Tensor legend: ``m`` out, ``n`` in, ``r`` rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import LazyTensor, dtype_name, read
from gam_merge._read import lycoris
from gam_merge._read.adapter import LoraModule
from gam_merge._read.format import Contents
from gam_merge._read.layout import ConvLayout, Layout

_SUPPORTED_SIDES = (2, 3, 4, 5)  # of a factor: a matrix, or a kernel of one to three dimensions


@dataclass
class Stem:
    """The tensors of one module by their role: ``down`` (A), ``up`` (B), ``alpha``, or LyCORIS's.

    ``spelling`` is how the keys of the factors end, where a grammar has several ways.
    """

    name: str
    spelling: str = ""
    parts: dict[str, LazyTensor] = field(default_factory=dict[str, LazyTensor])

    def add(self, where: str, key: str, role: str, tensor: LazyTensor) -> None:
        """Add a tensor. Raises GamMergeError for a role that is taken."""
        if role in self.parts:
            raise GamMergeError(
                f"{where}: module {self.name} has two tensors of the role {role}, one of them "
                f"{key}; it may be two adapters in one file"
            )
        self.parts[role] = tensor


def lora_module(where: str, stem: Stem) -> LoraModule:
    """Return the module that a stem holds, with the scale that its alpha gives it.

    That is alpha / r, and 1 without an alpha, as every reader has it. Raises GamMergeError for
    parts that are missing or do not fit.
    """
    factors = _low_rank(where, stem)
    scale, alpha = 1.0, stem.parts.get("alpha")
    if alpha is not None and factors.alpha_rank is not None:
        scale = _alpha(where, stem.name, alpha) / factors.alpha_rank
    a, b = factors.a, factors.b
    layout = Layout() if len(a.shape) == 2 else ConvLayout(a.shape[2:])
    return LoraModule(stem.name, a, b, scale, layout, spelling=stem.spelling, kept=factors.kept)


def lycoris_notes(stems: Mapping[str, Stem], modules: Mapping[str, LoraModule]) -> tuple[str, ...]:
    """Return what a user should know of the modules that are LyCORIS, if there are any."""
    kinds: dict[str, lycoris.Kind] = {}
    for name in modules:
        kind = lycoris.kind_of(stems[name].parts)
        if kind is not None:
            kinds[name] = kind
    members = [modules[name] for name in kinds]
    ranks, kept = [module.rank for module in members], [module.kept for module in members]
    return lycoris.notes(list(kinds.values()), ranks, kept)


def with_given_alpha(
    contents: Contents, stems: Mapping[str, Stem], modules: Mapping[str, LoraModule]
) -> dict[str, LoraModule]:
    """Return modules with the scale that the alpha given by the user makes, if one was given.

    Raises GamMergeError for modules of unlike ranks: one alpha would make their scales differ,
    while their readers take each for 1. Raises it for LyCORIS, too, whose trainer stores alphas.
    """
    if contents.alpha is None or not modules:
        return dict(modules)
    for stem in stems.values():
        if kind := lycoris.kind_of(stem.parts):
            raise GamMergeError(
                f"{contents.where}: module {stem.name} is {kind} without an alpha, which readers "
                "take for a scale of 1; leave --alpha (alpha=) out"
            )
    ranks = sorted({module.rank for module in modules.values()})
    if len(ranks) > 1:
        raise GamMergeError(
            f"{contents.where}: has modules of rank {ranks[0]} to {ranks[-1]} and no alphas, so "
            "alpha is the rank of each; leave --alpha (alpha=) out"
        )
    scale = contents.alpha / ranks[0]
    return {name: replace(module, scale=scale) for name, module in modules.items()}


def check_alpha_not_given(contents: Contents, place: str) -> None:
    """Raise GamMergeError if the user gave an alpha for a file that has its own."""
    if contents.alpha is not None:
        raise GamMergeError(
            f"{contents.where}: has its own alphas ({place}); leave --alpha (alpha=) out"
        )


def not_of_the_grammar(where: str, key: str, others: Mapping[str, Stem]) -> GamMergeError:
    """Return the error for a key that the grammar of the rest of the file does not have."""
    if not others:
        return GamMergeError(f"{where}: tensor {key} is not part of a LoRA")
    stem = next(iter(others.values()))
    return GamMergeError(
        f"{where}: tensor {key} is not part of a LoRA in the grammar of the rest of the file "
        f"(module {stem.name}); save each in a file of its own, or leave this adapter out"
    )


def refused(where: str, name: str, role: str) -> GamMergeError:
    """Return the error for a tensor of a module that is not part of a plain LoRA."""
    meaning = lycoris.REFUSED.get(role)
    reason = f" ({meaning})" if meaning else ""
    return GamMergeError(
        f"{where}: module {name} has the tensor {role}, which is not part of a plain LoRA{reason} "
        "and cannot be merged; leave this adapter out"
    )


def _low_rank(where: str, stem: Stem) -> lycoris.LowRank:
    """Return the factors of a stem, after they were checked."""
    for role, tensor in stem.parts.items():
        if role != "alpha" and not tensor.dtype.is_floating_point:
            raise GamMergeError(
                f"{where}: a factor of module {stem.name} is stored as "
                f"{dtype_name(tensor.dtype)}, not as floats"
            )
    if lycoris.kind_of(stem.parts):
        return lycoris.low_rank(where, stem.name, stem.parts)
    down, up = _both(where, stem)
    return lycoris.LowRank(down, up, down.shape[0])


def _both(where: str, stem: Stem) -> tuple[LazyTensor, LazyTensor]:
    """Return A (r, n, ...) and B (m, r, ...), after their shapes were checked."""
    down, up = stem.parts.get("down"), stem.parts.get("up")
    if down is None or up is None:
        part = "lora_down (A)" if down is None else "lora_up (B)"
        raise GamMergeError(f"{where}: module {stem.name} has no {part}; the file is incomplete")
    sides = len(down.shape)
    fits = sides == len(up.shape) and sides in _SUPPORTED_SIDES and 0 not in down.shape + up.shape
    if not fits or up.shape[1] != down.shape[0] or any(side != 1 for side in up.shape[2:]):
        raise GamMergeError(
            f"{where}: module {stem.name} has A {down.shape} and B {up.shape}, not (r, in) and "
            "(out, r), or (r, in, *kernel) and (out, r, 1, ...)"
        )
    return down, up


def _alpha(where: str, name: str, tensor: LazyTensor) -> float:
    """Read an alpha. Raises GamMergeError for what is not one finite number other than 0."""
    if tensor.shape not in ((), (1,)):
        raise GamMergeError(
            f"{where}: the alpha of module {name} must be one number, got shape {tensor.shape}"
        )
    alpha = float(read(tensor).item())
    if not isfinite(alpha) or alpha == 0:
        raise GamMergeError(
            f"{where}: the alpha of module {name} must be a finite number other than 0, of which "
            f"readers make unlike things, got {alpha:g}"
        )
    return alpha
