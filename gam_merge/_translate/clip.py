"""Files of a text encoder whose ``text_model`` transformers has left out since 5.6."""

from collections.abc import Collection

from gam_merge._translate.dialect import Renaming
from gam_merge._translate.pipeline import full_name

_OWN, _COMMON = "text_encoder.encoder.layers.", "text_encoder.text_model.encoder.layers."


class FlatClipNames(Renaming):
    """``text_encoder.encoder.layers.0.mlp.fc1`` instead of ``text_encoder.text_model.encoder...``.

    Diffusers reads both into the newer model, and the older model takes the longer name alone.
    """

    name = "the names of CLIP in transformers 5"
    format = "diffusers"

    def recognizes(self, names: Collection[str]) -> bool:
        return any(name.startswith(_OWN) for name in names)

    def common_name(self, name: str) -> str | None:
        return full_name(name.replace(_OWN, _COMMON))

    def own_name(self, name: str) -> str | None:
        return name.replace(_COMMON, _OWN)
