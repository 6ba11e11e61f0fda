"""kohya's files of Stable Diffusion 1 and 2: diffusers' names, and one text encoder."""

from collections.abc import Collection

from gam_merge._translate.sdxl import is_sdxl
from gam_merge._translate.stems import CLIP, UNET, Component, KohyaNames, Stems


class KohyaSd(KohyaNames):
    """``lora_unet_down_blocks_0_...``, ``lora_te_text_model_...``."""

    name = "kohya's names of Stable Diffusion 1 and 2"
    stems = Stems(
        Component("lora_unet_", "unet", UNET), Component("lora_te_", "text_encoder", CLIP)
    )

    def recognizes(self, names: Collection[str]) -> bool:
        of_sdxl = any(name.startswith(("lora_te1_", "lora_te2_")) for name in names)
        return super().recognizes(names) and not of_sdxl

    def fits(self, names: Collection[str]) -> bool:
        has_both = all(name.startswith(("unet.", "text_encoder.")) for name in names)
        return has_both and not is_sdxl(names)

    def is_default(self, names: Collection[str]) -> bool:
        return self.fits(names)
