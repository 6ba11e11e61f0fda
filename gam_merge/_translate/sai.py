"""kohya's files of Stable Diffusion XL with Stability AI's names, as sd-scripts trains it.

The UNet is a list of blocks there, of which diffusers makes three levels.
"""

import re
from collections.abc import Collection

from gam_merge._translate.sdxl import TEXT_ENCODERS, fits_sdxl, is_sdxl
from gam_merge._translate.stems import Component, KohyaNames, Stems, Words

_WORDS = Words(
    "input_blocks middle_block output_blocks time_embed label_emb out in_layers out_layers "
    "emb_layers skip_connection op conv transformer_blocks attn1 attn2 to_q to_k to_v to_out ff "
    "net proj proj_in proj_out"
)
_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def _blocks() -> tuple[dict[str, str], dict[str, str]]:
    """Return the paths of the residual and of the attention blocks: diffusers' -> Stability's."""
    resnets = {"mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": "middle_block.2"}
    attentions = {"mid_block.attentions.0": "middle_block.1"}
    for level in range(3):
        for i in range(2):
            block = f"input_blocks.{3 * level + i + 1}"
            resnets[f"down_blocks.{level}.resnets.{i}"] = f"{block}.0"
            attentions[f"down_blocks.{level}.attentions.{i}"] = f"{block}.1"
        for i in range(3):
            block = f"output_blocks.{3 * level + i}"
            resnets[f"up_blocks.{level}.resnets.{i}"] = f"{block}.0"
            attentions[f"up_blocks.{level}.attentions.{i}"] = f"{block}.1"
    return resnets, attentions


def _layers(resnets: dict[str, str]) -> dict[str, str]:
    """Return the paths of the layers outside of attention blocks: diffusers' -> Stability's."""
    layers = {
        "conv_in": "input_blocks.0.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    }
    for level in range(2):
        down, up = f"input_blocks.{3 * level + 3}.0.op", f"output_blocks.{3 * level + 2}.2.conv"
        layers[f"down_blocks.{level}.downsamplers.0.conv"] = down
        layers[f"up_blocks.{level}.upsamplers.0.conv"] = up
    for block, own in resnets.items():
        layers |= {f"{block}.{layer}": f"{own}.{_RESNET[layer]}" for layer in _RESNET}
    return layers


_RESNETS, _ATTENTIONS = _blocks()
_LAYERS = _layers(_RESNETS)
_COMMON_ATTENTIONS = {own: common for common, own in _ATTENTIONS.items()}
_COMMON_LAYERS = {own: common for common, own in _LAYERS.items()}
_IN_ATTENTION = re.compile(r"(?P<block>.*\.attentions\.\d+)\.(?P<layer>.+)")
_IN_OWN_ATTENTION = re.compile(r"(?P<block>(\w+_blocks\.\d+|middle_block)\.1)\.(?P<layer>.+)")


def _own_path(path: str) -> str | None:
    match = _IN_ATTENTION.fullmatch(path)
    if match is None:
        return _LAYERS.get(path)
    block = _ATTENTIONS.get(match["block"])
    return None if block is None else f"{block}.{match['layer']}"


def _common_path(path: str) -> str | None:
    match = _IN_OWN_ATTENTION.fullmatch(path)
    if match is None:
        return _COMMON_LAYERS.get(path)
    block = _COMMON_ATTENTIONS.get(match["block"])
    return None if block is None else f"{block}.{match['layer']}"


class KohyaSai(KohyaNames):
    """``lora_unet_input_blocks_4_1_...``, ``lora_te1_text_model_...``, ``lora_te2_...``."""

    name = "kohya's names of Stable Diffusion XL, after Stability AI"
    stems = Stems(Component("lora_unet_", "unet", _WORDS, _common_path, _own_path), *TEXT_ENCODERS)

    def recognizes(self, names: Collection[str]) -> bool:
        return any(name.startswith("lora_unet_") for name in names) and super().recognizes(names)

    def fits(self, names: Collection[str]) -> bool:
        return fits_sdxl(names)

    def is_default(self, names: Collection[str]) -> bool:
        return self.fits(names) and is_sdxl(names)
