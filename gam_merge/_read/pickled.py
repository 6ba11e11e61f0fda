"""adapter_model.bin, as old versions of PEFT wrote it: a pickle, read without running what is in it."""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import MemoryTensor, dtype_name

NOTE = "its weights are a pickle, read as data alone (weights_only); write them as safetensors to share them"

_SAFE_TORCH = (2, 6)  # before, weights_only could be got around (CVE-2025-32434)
_UNREADABLE = (
    *(
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        ValueError,
        TypeError,
    ),
    *(LookupError, AttributeError, MemoryError),
)
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def read_pickle(path: Path) -> dict[str, MemoryTensor]:
    """All tensors of the file, in memory. Raises GamMergeError if it holds anything but tensors of floats by name."""
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if release < _SAFE_TORCH:
        raise GamMergeError(
            f"{path}: is a pickle, which torch {torch.__version__} does not read safely; install 2.6"
        )
    try:
        if _is_compressed(path):
            raise GamMergeError(
                f"{path}: is compressed, which torch.save does not do; save it as safetensors"
            )
        with warnings.catch_warnings(
            action="ignore"
        ):  # of pickle protocols; what cannot be read is an error below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise GamMergeError(
            f"{path}: is no pickle of tensors alone ({type(error).__name__}); save it as safetensors where you trust it"
        ) from error
    except OSError as error:
        raise GamMergeError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise GamMergeError(f"{path}: holds no table of tensors by name")
    for key, value in content.items():
        if (
            not isinstance(value, torch.Tensor)
            or value.layout != torch.strided
            or value.dtype not in _FLOATS
        ):
            kind = (
                dtype_name(value.dtype) if isinstance(value, torch.Tensor) else type(value).__name__
            )
            raise GamMergeError(
                f"{path}: tensor {key} is stored as {kind}; convert it to F32, F16 or BF16"
            )
        if value.numel() * value.dtype.itemsize > value.untyped_storage().nbytes():
            raise GamMergeError(f"{path}: tensor {key} is larger than what is stored of it")
    return {key: MemoryTensor(value) for key, value in content.items()}


def _is_compressed(path: Path) -> bool:
    """A little of such a file may unpack to more than fits into memory."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist())
