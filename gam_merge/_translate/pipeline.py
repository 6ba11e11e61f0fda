"""Pipelines of diffusers: the path of a module, behind the component that it is in."""

import re
from collections.abc import Collection

from gam_merge._read.diffusers import component_of
from gam_merge._translate.dialect import Renaming

# What the paths of the modules of a component begin with.
_FIRST_PARTS = {
    "unet": (
        "down_blocks", "mid_block", "up_blocks", "conv_in", "conv_out", "time_embedding",
        "add_embedding",
    ),
    "transformer": (
        "transformer_blocks", "single_transformer_blocks", "x_embedder", "context_embedder",
        "time_text_embed", "norm_out", "proj_out", "blocks",
    ),
    "text_encoder": ("text_model",),
}  # fmt: skip
# Names of other dialects that lie behind a component of diffusers, or behind one of their own.
_FOREIGN = re.compile(
    r"(diffusion_model|text_encoders)\..*"
    r"|(transformer\.)?(double_blocks|single_blocks|joint_blocks)\..*"
    r"|.*\.processor\..*|text_.*\.self_attn\.to_(q|k|v|out)"
    r"|text_encoder\.encoder\.layers\..*"
)


class DiffusersNames(Renaming):
    """The names of diffusers, which are the common ones."""

    name = "diffusers' format"
    format = "diffusers"

    def recognizes(self, names: Collection[str]) -> bool:
        return all(full_name(name) == name for name in names)

    def is_default(self, names: Collection[str]) -> bool:
        return True

    def common_name(self, name: str) -> str | None:
        return full_name(name)

    def own_name(self, name: str) -> str | None:
        return full_name(name)


def full_name(name: str) -> str | None:
    """Return the name of a module with its component: the one named, or that has such modules."""
    if _FOREIGN.fullmatch(name):
        return None
    if component_of(name):
        return name
    first = name.partition(".")[0]
    for component, parts in _FIRST_PARTS.items():
        if first in parts:
            return f"{component}.{name}"
    return None
