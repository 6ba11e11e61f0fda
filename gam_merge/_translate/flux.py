"""Flux as Black Forest Labs wrote it, and as diffusers has it: other names, and fused layers."""

import re
from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from gam_merge._common.errors import GamMergeError
from gam_merge._read.adapter import Adapter, LoraModule
from gam_merge._translate.dialect import COMMON, Dialect, Modules, no_name, renamed
from gam_merge._translate.fused import fuse, split, with_halves_swapped

_TRANSFORMER = "transformer."


@dataclass(frozen=True)
class Layer:
    """A layer of Black Forest Labs, and the layers of diffusers that it is, from top to bottom.

    Attributes:
        path: its path, behind that of its block.
        parts: the paths of the layers of diffusers.
        shares: out / in of each, if it is fused.
        swapped: whether diffusers has its upper and lower half the other way round.
    """

    path: str
    parts: Sequence[str]
    shares: Sequence[int] = ()
    swapped: bool = False


_DOUBLE = (
    Layer("img_attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v"), (1, 1, 1)),
    Layer("img_attn.proj", ("attn.to_out.0",)),
    Layer("img_mlp.0", ("ff.net.0.proj",)),
    Layer("img_mlp.2", ("ff.net.2",)),
    Layer("img_mod.lin", ("norm1.linear",)),
    Layer("txt_attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), (1, 1, 1)),
    Layer("txt_attn.proj", ("attn.to_add_out",)),
    Layer("txt_mlp.0", ("ff_context.net.0.proj",)),
    Layer("txt_mlp.2", ("ff_context.net.2",)),
    Layer("txt_mod.lin", ("norm1_context.linear",)),
)
_SINGLE = (
    Layer("linear1", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), (1, 1, 1, 4)),
    Layer("linear2", ("proj_out",)),
    Layer("modulation.lin", ("norm.linear",)),
)
_OUTSIDE = (
    Layer("img_in", ("x_embedder",)),
    Layer("txt_in", ("context_embedder",)),
    Layer("time_in.in_layer", ("time_text_embed.timestep_embedder.linear_1",)),
    Layer("time_in.out_layer", ("time_text_embed.timestep_embedder.linear_2",)),
    Layer("vector_in.in_layer", ("time_text_embed.text_embedder.linear_1",)),
    Layer("vector_in.out_layer", ("time_text_embed.text_embedder.linear_2",)),
    Layer("guidance_in.in_layer", ("time_text_embed.guidance_embedder.linear_1",)),
    Layer("guidance_in.out_layer", ("time_text_embed.guidance_embedder.linear_2",)),
    Layer("final_layer.linear", ("proj_out",)),
    Layer("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped=True),
)
_BLOCKS = {
    "double_blocks": ("transformer_blocks", _DOUBLE),
    "single_blocks": ("single_transformer_blocks", _SINGLE),
}
_OWN_BLOCK = re.compile(r"(?P<kind>double_blocks|single_blocks)\.(?P<index>\d+)\.(?P<path>.+)")
_BLOCK = re.compile(
    r"(?P<kind>transformer_blocks|single_transformer_blocks)\.(?P<index>\d+)\.(?P<path>.+)"
)


def is_own_path(path: str) -> bool:
    """Tell whether a path is that of a layer in a block of Black Forest Labs."""
    return _OWN_BLOCK.fullmatch(path) is not None and _layer_at(path) is not None


class FluxNames(Dialect):
    """A dialect with the layers of Black Forest Labs.

    Its modules have a neutral name, too: ``transformer.double_blocks.0.img_attn.qkv``, or a common
    name for those of text encoders.
    """

    @abstractmethod
    def neutral_name(self, name: str) -> str | None:
        """Return the neutral name of a module; None if it has none."""

    @abstractmethod
    def own_name(self, name: str) -> str | None:
        """Return the name of a module with a neutral name; None if it has none."""

    def fits(self, names: Collection[str]) -> bool:
        parts = (_TRANSFORMER, "text_encoder.", "text_encoder_2.")
        return all(name.startswith(parts) for name in names)

    def to_common(self, adapter: Adapter) -> dict[str, LoraModule]:
        common: dict[str, LoraModule] = {}
        for module in adapter.modules.values():
            for part in self._parts(module, adapter):
                if part.name in common:
                    raise GamMergeError(
                        f"{adapter.source}: module {part.name} is there twice, one of them in "
                        f"{module.name}; it may be two adapters in one file"
                    )
                common[part.name] = part
        return common

    def from_common(self, modules: Modules, adapter: Adapter) -> dict[str, LoraModule]:
        own: dict[str, LoraModule] = {}
        for module in modules.values():
            layer = _layer_with(module.name)
            neutral = module.name if layer is None else _TRANSFORMER + layer.path
            name = self.own_name(neutral)
            if name is None or (layer is None and _in_transformer(module.name)):
                raise no_name(adapter, module.name, self.name)
            if name not in own:
                own[name] = _whole(name, module, layer, modules, adapter)
        return own

    def _parts(self, module: LoraModule, adapter: Adapter) -> Sequence[LoraModule]:
        """Return the modules with common names that a module is."""
        neutral = self.neutral_name(module.name)
        layer = None if neutral is None else _layer_at(neutral)
        if neutral is None or (layer is None and _in_transformer(neutral)):
            raise no_name(adapter, module.name, COMMON)
        if layer is None:
            return [renamed(module, neutral)]
        names = [_TRANSFORMER + part for part in layer.parts]
        if layer.shares:
            return list(split(module, names, layer.shares, adapter).values())
        if layer.swapped:
            return [with_halves_swapped(module, names[0], adapter)]
        return [renamed(module, names[0])]


def _in_transformer(name: str) -> bool:
    return name.startswith(_TRANSFORMER)


def _layer_at(neutral: str) -> Layer | None:
    """Return the layer of a neutral name, with whole paths; None for another module."""
    path = neutral.removeprefix(_TRANSFORMER)
    match = _OWN_BLOCK.fullmatch(path)
    if match is None:
        return _named(_OUTSIDE, path)
    kind, layers = _BLOCKS[match["kind"]]
    layer = _named(layers, match["path"])
    return None if layer is None else _in_block(layer, match["kind"], kind, match["index"])


def _layer_with(name: str) -> Layer | None:
    """Return the layer that a common module is part of, with whole paths; None for another."""
    path = name.removeprefix(_TRANSFORMER)
    match = _BLOCK.fullmatch(path)
    if match is None:
        return _with_part(_OUTSIDE, path)
    for own_kind, (kind, layers) in _BLOCKS.items():
        layer = _with_part(layers, match["path"]) if kind == match["kind"] else None
        if layer is not None:
            return _in_block(layer, own_kind, kind, match["index"])
    return None


def _named(layers: Sequence[Layer], path: str) -> Layer | None:
    return next((layer for layer in layers if layer.path == path), None)


def _with_part(layers: Sequence[Layer], path: str) -> Layer | None:
    return next((layer for layer in layers if path in layer.parts), None)


def _in_block(layer: Layer, own_kind: str, kind: str, index: str) -> Layer:
    parts = [f"{kind}.{index}.{part}" for part in layer.parts]
    return replace(layer, path=f"{own_kind}.{index}.{layer.path}", parts=parts)


def _whole(
    name: str,
    module: LoraModule,
    layer: Layer | None,
    modules: Modules,
    adapter: Adapter,
) -> LoraModule:
    """Return the module that a common one is, or is part of, under its name in a dialect.

    modules: all of the adapter, by their common names.
    """
    if layer is not None and layer.shares:
        names = [_TRANSFORMER + part for part in layer.parts]
        return fuse(name, modules, names, layer.shares, adapter)
    if layer is not None and layer.swapped:
        return with_halves_swapped(module, name, adapter)
    return renamed(module, name)
