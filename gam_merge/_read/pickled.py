"""adapter_model.bin, as old versions of PEFT wrote it: a pickle, read without running its code."""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gam_merge._common.errors import GamMergeError
from gam_merge._common.signature import mistaken_weights
from gam_merge._common.tensors import MemoryTensor, dtype_name

NOTE = (
    "its weights are a pickle, of which only tensors are read (weights_only); "
    "save them as safetensors before you share them"
)

_SAFE_TORCH = (2, 6)  # before, weights_only could be circumvented (CVE-2025-32434)
_UNREADABLE = (
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def read_pickle(path: Path) -> dict[str, MemoryTensor]:
    """Read all tensors of the file into memory.

    Raises GamMergeError if it holds anything but float tensors by name.
    """
    content = _load(path)
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise GamMergeError(f"{path}: is not a dict of tensors by name")
    for key, value in content.items():
        _check_tensor(path, key, value)
    return {key: MemoryTensor(value) for key, value in content.items()}


def _load(path: Path) -> Any:
    """Load the content of the pickle. Raises GamMergeError if that is not plain data."""
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if release < _SAFE_TORCH:
        raise GamMergeError(
            f"{path}: is a pickle, which torch {torch.__version__} does not read safely; "
            "install torch 2.6 or newer"
        )
    try:
        if _is_compressed(path):
            raise GamMergeError(
                f"{path}: is compressed, which torch.save does not do; save it as safetensors"
            )
        # Warnings are about pickle protocols; a file that cannot be read is an error below.
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise GamMergeError(f"{path}: {mistaken_weights(path) or _unreadable(error)}") from error
    except OSError as error:
        raise GamMergeError(f"{path}: cannot be read: {error.strerror}") from error


def _unreadable(error: Exception) -> str:
    if isinstance(error, EOFError) or re.search("truncated|unexpected EOF", str(error)):
        return "is a pickle that was cut off; download it again"
    return (
        f"is not a pickle of tensors alone ({type(error).__name__}); save it as safetensors on a "
        "machine that trusts it"
    )


def _check_tensor(path: Path, key: str, value: Any) -> None:
    """Raise GamMergeError unless a value is a tensor of floats, or of one number, all stored."""
    if not _is_float_tensor(value):
        kind = dtype_name(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__
        raise GamMergeError(
            f"{path}: tensor {key} is stored as {kind}; convert it to F32, F16 or BF16"
        )
    if value.numel() * value.dtype.itemsize > value.untyped_storage().nbytes():
        raise GamMergeError(f"{path}: tensor {key} is larger than its storage")


def _is_float_tensor(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        return False
    return value.dtype in _FLOATS or value.numel() == 1  # one number: a format may take it, or not


def _is_compressed(path: Path) -> bool:
    """Return whether a small part of the file might unpack to more than fits into memory."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist())
