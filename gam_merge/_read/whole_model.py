"""Recognises what is not an adapter, by the names of files or of tensors, and says what it is."""

import re
from collections.abc import Collection
from pathlib import Path

from gam_merge._common.errors import GamMergeError

_FILES = ("*.safetensors.index.json", "*.bin.index.json", "pytorch_model.bin")
_EXTRACT = "gam-merge extract makes an adapter from a fine-tuned model and its base"
_NORM = re.compile(r"(norm\w*|ln_\w+)\.weight")  # every model has one, next to no adapter


def check_directory(path: Path) -> None:
    """Raise GamMergeError for the directory of a whole model."""
    for pattern in _FILES:
        for file in sorted(path.glob(pattern)):
            raise GamMergeError(
                f"{path}: holds a whole model ({file.name}), not an adapter; {_EXTRACT}"
            )


def check_keys(where: str, keys: Collection[str]) -> None:
    """Raise GamMergeError for tensors of a whole model, or of torchtune's adapters."""
    for key in keys:
        if key.endswith((".lora_a.weight", ".lora_b.weight")):
            raise GamMergeError(
                f"{where}: is a checkpoint of torchtune ({key}); its checkpointer for Hugging Face "
                "models also writes adapter_model.safetensors and adapter_config.json: name their "
                "directory"
            )
    if any("lora" in key.lower() for key in keys):
        return
    for key in keys:
        if _NORM.search(key):
            raise GamMergeError(
                f"{where}: holds the weights of a whole model ({key}), not an adapter; {_EXTRACT}"
            )
