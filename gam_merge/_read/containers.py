"""A file of tensors in any container, which its first bytes tell; or its name, if cut off."""

from collections.abc import Mapping
from pathlib import Path

from gam_merge._common.files import check_ends
from gam_merge._common.tensors import LazyTensor
from gam_merge._read.gguf_file import MAGIC, read_gguf
from gam_merge._read.safetensors import floats, read_header

Tensors = Mapping[str, LazyTensor]


def read_tensors(path: Path, problems: list[str] | None = None) -> tuple[Tensors, dict[str, str]]:
    """Return the tensors of an adapter and the metadata, from the header of a file alone.

    Raises GamMergeError for a dtype in which no LoRA is stored. With ``problems`` such tensors of
    a safetensors file are listed there instead, and left out.
    """
    if _is_gguf(path):
        return read_gguf(path)
    tensors, metadata = read_header(path, any_dtype=problems is not None)
    return tensors if problems is None else floats(tensors, problems), metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a file of tensors of any dtype. Raises GamMergeError."""
    if _is_gguf(path):
        return read_gguf(path)[1]
    return read_header(path, any_dtype=True)[1]


def _is_gguf(path: Path) -> bool:
    try:
        check_ends(path)
        with open(path, "rb") as file:
            first = file.read(len(MAGIC))
    except OSError:  # the reader of safetensors explains it
        return False
    cut_off = path.suffix == ".gguf" and MAGIC.startswith(first)
    return first == MAGIC or cut_off
