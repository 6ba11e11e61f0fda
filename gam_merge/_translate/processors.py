"""diffusers' names of 2023, when the processors of attention held the factors.

``unet....attn1.processor.to_q_lora.down.weight``, and in text encoders
``text_encoder....self_attn.to_q_lora.down.weight``.
"""

import re
from collections.abc import Collection

from gam_merge._read.adapter import Adapter, LoraModule
from gam_merge._translate.dialect import Modules, Renaming, renamed
from gam_merge._translate.pipeline import full_name

_OWN = re.compile(
    r"(?P<block>.*\.attn\d+\.processor|text_.*\.self_attn)\.(?P<layer>to_(q|k|v|out))"
)
_COMMON = re.compile(
    r"(?P<block>unet\..*\.attn\d+)\.(?P<layer>to_(q|k|v|out\.0))"
    r"|(?P<text_block>text_encoder.*\.self_attn)\.(?P<text_layer>(q|k|v|out)_proj)"
)
_OF_PROCESSOR = "_lora.down.weight"
_OF_LINEAR, _OF_TEXT_ENCODER = ".lora.down.weight", ".lora_linear_layer.down.weight"


class ProcessorNames(Renaming):
    """``unet....attn1.processor.to_q``, spelled ``to_q_lora.down.weight``."""

    name = "diffusers' names of 2023"
    format = "diffusers"

    def recognizes(self, names: Collection[str]) -> bool:
        return any(_OWN.fullmatch(name) for name in names)

    def common_name(self, name: str) -> str | None:
        match = _OWN.fullmatch(name)
        if match is None:
            return full_name(name)
        block, layer = match["block"].removesuffix(".processor"), match["layer"]
        if block.endswith(".self_attn"):
            return full_name(f"{block}.{layer.removeprefix('to_')}_proj")
        return full_name(f"{block}.{layer}.0" if layer == "to_out" else f"{block}.{layer}")

    def own_name(self, name: str) -> str | None:
        match = _COMMON.fullmatch(name)
        if match is None:
            return name
        if match["block"] is not None:
            return f"{match['block']}.processor.{match['layer'].removesuffix('.0')}"
        return f"{match['text_block']}.to_{match['text_layer'].removesuffix('_proj')}"

    def from_common(self, modules: Modules, adapter: Adapter) -> dict[str, LoraModule]:
        named = super().from_common(modules, adapter)
        return {name: renamed(module, name, _spelling(name)) for name, module in named.items()}


def _spelling(name: str) -> str:
    """Return how the key of A ends: as diffusers wrote it then, which it does not read mixed."""
    if _OWN.fullmatch(name):
        return _OF_PROCESSOR
    in_text_encoder = name.startswith("text_encoder") and ".mlp." in name
    return _OF_TEXT_ENCODER if in_text_encoder else _OF_LINEAR
