"""Dotted names of Black Forest Labs' Flux: ``diffusion_model.double_blocks.0.img_attn.qkv``."""

from collections.abc import Collection

from gam_merge._translate.comfy import MODEL, common_text_encoder, own_text_encoder
from gam_merge._translate.flux import FluxNames, is_own_path


class BflNames(FluxNames):
    """The names of the model, behind a prefix: ComfyUI's, that of diffusers, or nothing."""

    format = "diffusers"

    def __init__(self, prefix: str) -> None:
        self.name = f"Black Forest Labs' names ({prefix}double_blocks)"
        self._prefix = prefix

    def recognizes(self, names: Collection[str]) -> bool:
        own = [name for name in names if name.startswith(self._prefix)]
        return any(is_own_path(name.removeprefix(self._prefix)) for name in own)

    def neutral_name(self, name: str) -> str | None:
        if name.startswith(("text_encoder.", "text_encoder_2.")):
            return name
        text_encoder = common_text_encoder(name)
        if text_encoder is not None or not name.startswith(self._prefix):
            return text_encoder
        return f"transformer.{name.removeprefix(self._prefix)}"

    def own_name(self, name: str) -> str | None:
        path = name.removeprefix("transformer.")
        if path != name:
            return self._prefix + path
        return own_text_encoder(name) if self._prefix == MODEL else name
