"""kohya's files of Flux: the layers of Black Forest Labs, and the text encoders CLIP-L and T5."""

from collections.abc import Collection

from gam_merge._translate.flux import FluxNames
from gam_merge._translate.stems import CLIP, T5, Component, Stems, Words, deciding

_FLUX = Words(
    "double_blocks single_blocks img_attn txt_attn qkv proj img_mlp txt_mlp img_mod txt_mod lin "
    "linear1 linear2 modulation img_in txt_in time_in vector_in guidance_in in_layer out_layer "
    "final_layer linear adaLN_modulation"
)
_STEMS = Stems(
    Component("lora_unet_", "transformer", _FLUX),
    Component("lora_te1_", "text_encoder", CLIP),
    Component("lora_te3_", "text_encoder_2", T5),
)


class KohyaFlux(FluxNames):
    """``lora_unet_double_blocks_0_img_attn_qkv``, ``lora_te1_text_model_...``, ``lora_te3_...``."""

    name = "kohya's names of Flux"
    format = "kohya"

    def recognizes(self, names: Collection[str]) -> bool:
        return any(_STEMS.common_name(name) for name in deciding(names))

    def is_default(self, names: Collection[str]) -> bool:
        single = any(name.startswith("transformer.single_transformer_blocks.") for name in names)
        return single and self.fits(names)

    def neutral_name(self, name: str) -> str | None:
        return _STEMS.common_name(name)

    def own_name(self, name: str) -> str | None:
        return _STEMS.stem(name)
