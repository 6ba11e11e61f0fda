"""kohya's files of Stable Diffusion XL with diffusers' names, and two text encoders."""

import re
from collections.abc import Collection

from gam_merge._translate.stems import CLIP, UNET, Component, KohyaNames, Stems

TEXT_ENCODERS = (
    Component("lora_te1_", "text_encoder", CLIP),
    Component("lora_te2_", "text_encoder_2", CLIP),
)
# What Stable Diffusion 1 and 2 do not have.
_SIGN = re.compile(
    r"unet\..*\.transformer_blocks\.[1-9].*|unet\.add_embedding\..*|text_encoder_2\.text_.*"
)


def is_sdxl(names: Collection[str]) -> bool:
    """Tell whether common names, those of a pipeline with a UNet, are of Stable Diffusion XL."""
    return any(_SIGN.fullmatch(name) for name in names)


def fits_sdxl(names: Collection[str]) -> bool:
    """Tell whether common names may be of Stable Diffusion XL."""
    return all(name.startswith(("unet.", "text_encoder.", "text_encoder_2.")) for name in names)


class KohyaSdxl(KohyaNames):
    """``lora_unet_down_blocks_1_...``, ``lora_te1_text_model_...``, ``lora_te2_...``."""

    name = "kohya's names of Stable Diffusion XL, after diffusers"
    stems = Stems(Component("lora_unet_", "unet", UNET), *TEXT_ENCODERS)

    def fits(self, names: Collection[str]) -> bool:
        return fits_sdxl(names)
