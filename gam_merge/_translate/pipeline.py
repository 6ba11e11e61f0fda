"""Pipelines of diffusers: the path of a module, behind the component that it is in."""

from collections.abc import Collection

from gam_merge._read.adapter import Adapter, LoraModule
from gam_merge._read.diffusers import component_of
from gam_merge._translate.dialect import Dialect, Modules, no_name, renamed

# What the paths of the modules of a component begin with.
_FIRST_PARTS = {
    "unet": ("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "time_embedding"),
    "transformer": (
        "transformer_blocks", "single_transformer_blocks", "x_embedder", "context_embedder",
        "time_text_embed", "norm_out", "proj_out", "blocks",
    ),
    "text_encoder": ("text_model",),
}  # fmt: skip


class DiffusersNames(Dialect):
    """The names of diffusers, which are the common ones."""

    name = "diffusers' format"
    format = "diffusers"

    def recognizes(self, names: Collection[str]) -> bool:
        return any(_component(name) for name in names)

    def to_common(self, adapter: Adapter) -> dict[str, LoraModule]:
        return _with_components(adapter.modules, adapter, self)

    def from_common(self, modules: Modules, adapter: Adapter) -> dict[str, LoraModule]:
        return _with_components(modules, adapter, self)


def _with_components(modules: Modules, adapter: Adapter, dialect: Dialect) -> dict[str, LoraModule]:
    named: dict[str, LoraModule] = {}
    for name, module in modules.items():
        component = _component(name)
        if not component:
            remedy = "it is not of a model whose place in a pipeline is known here"
            raise no_name(adapter, name, dialect, remedy)
        full = name if component_of(name) else f"{component}.{name}"
        named[full] = renamed(module, full)
    return named


def _component(name: str) -> str:
    """Return the component of a module: the one that it names, or that has such modules."""
    first = name.partition(".")[0]
    for component, parts in _FIRST_PARTS.items():
        if first in parts:
            return component
    return component_of(name)
