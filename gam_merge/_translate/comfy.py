"""ComfyUI's names where they differ from diffusers' by what stands in front alone.

So it is for models that diffusers took over as they were, and for those of diffusers' making.
"""

import re
from collections.abc import Collection

from gam_merge._translate.dialect import Renaming

MODEL = "diffusion_model."
_TEXT_ENCODERS = {
    "text_encoders.clip_l.transformer.": "text_encoder.",
    "text_encoders.clip_g.transformer.": "text_encoder_2.",
    "text_encoders.t5xxl.transformer.": "text_encoder_2.",
}
# Blocks that both name alike, with layers that both cut alike.
_ALIKE = re.compile(
    r"(transformer_blocks|single_transformer_blocks|double_stream_blocks|single_stream_blocks"
    r"|layers|noise_refiner|context_refiner)\.(?!.*\.(qkv|out)$).*"
)


def common_text_encoder(name: str) -> str | None:
    """Return the common name of a module of a text encoder; None if it is not one."""
    for own, common in _TEXT_ENCODERS.items():
        if name.startswith(own):
            return common + name.removeprefix(own)
    return None


def own_text_encoder(name: str) -> str | None:
    """Return ComfyUI's name of a module of a text encoder; None if it is not one."""
    if name.startswith("text_encoder_2.encoder.block."):
        return "text_encoders.t5xxl.transformer." + name.removeprefix("text_encoder_2.")
    for own, common in _TEXT_ENCODERS.items():
        if name.startswith(common):
            return own + name.removeprefix(common)
    return None


class ComfyNames(Renaming):
    """``diffusion_model.transformer_blocks.0.attn.to_q``."""

    name = "ComfyUI's names"
    format = "diffusers"

    def recognizes(self, names: Collection[str]) -> bool:
        return any(_ALIKE.fullmatch(name.removeprefix(MODEL)) for name in _of_model(names))

    def common_name(self, name: str) -> str | None:
        path = name.removeprefix(MODEL)
        if path == name:
            return common_text_encoder(name)
        return f"transformer.{path}" if _ALIKE.fullmatch(path) else None

    def own_name(self, name: str) -> str | None:
        path = name.removeprefix("transformer.")
        if path == name:
            return own_text_encoder(name)
        return MODEL + path if _ALIKE.fullmatch(path) else None


def _of_model(names: Collection[str]) -> list[str]:
    return [name for name in names if name.startswith(MODEL)]
