"""The safetensors container: headers read without the data, files written as tensors arrive.

The project has its own reader and writer, for three reasons: a plan needs offsets, which the
safetensors library does not give; a merge streams its output, while ``save_file`` wants all tensors
at once; and ``save_file`` orders metadata by a hash map, so that equal input gives other bytes in
each run. The tests read the files back with the safetensors library.

Layout: 8 bytes little-endian length, a JSON header, then the tensors without gaps.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import MAX_MARKS, check_ends, marks
from gam_merge._common.signature import mistaken_weights
from gam_merge._common.tensors import FileTensor
from gam_merge._read.container import PlacedWriter, TensorSpec
from gam_merge._read.whole_model import check_keys

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_OTHERS = {
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_DTYPES = _FLOATS | _OTHERS
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# The safetensors library reads headers of up to 100 MB. A thousand experts in each of sixty layers,
# each with its own adapter, take 50 MB with 4.3 million marks.
_MAX_HEADER = 1 << 26
_MARKS_PER_TENSOR = 12  # braces, brackets, commas and colons of a matrix
_MAX_SIDES, _MAX_ELEMENTS = 64, 1 << 62  # of a tensor, as torch counts them


def read_header(
    path: Path, *, any_dtype: bool = False
) -> tuple[dict[str, FileTensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file from its header alone.

    Raises GamMergeError if the file is incomplete or not safetensors, or, without ``any_dtype``, if
    it holds a dtype in which no LoRA is stored.
    """
    raw, size = _read_raw_header(path)
    header, metadata = _parse_header(path, raw)
    dtypes = _DTYPES if any_dtype else _FLOATS
    start = 8 + len(raw)
    tensors = {}
    for key, entry in header.items():
        dtype, shape, begin, end = _parse_entry(path, key, entry)
        one_number = dtype in _DTYPES and prod(shape) == 1  # a format may take it, or not
        if dtype not in dtypes and not one_number:
            if not any_dtype:
                check_keys(str(path), header)  # a quantised model
            raise _not_float(path, key, dtype)
        tensor = FileTensor(path, key, shape, _DTYPES[dtype], start + begin)
        if begin + tensor.nbytes != end or start + end > size:
            raise _invalid(path, f"tensor {key} does not fit into it")
        tensors[key] = tensor
    _check_no_gaps(path, tensors.values(), start, size)
    return tensors, metadata


def _read_raw_header(path: Path) -> tuple[bytes, int]:
    """Read the bytes of the header, and the size of the file."""
    try:
        check_ends(path)
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise _invalid(path, f"its header claims {length} bytes of {size}")
            if length > _MAX_HEADER:
                raise _too_long(path, f"{_MAX_HEADER} bytes")
            return file.read(length), size
    except OSError as error:
        raise GamMergeError(f"{path}: cannot be read: {error.strerror}") from error


def _parse_header(path: Path, raw: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """Parse a header into its entries, which are not yet checked, and the metadata."""
    if marks(raw) > MAX_MARKS:
        raise _too_long(path, f"{MAX_MARKS // _MARKS_PER_TENSOR} tensors take")
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _invalid(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _invalid(path, "its header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    if metadata is None:  # MLX writes null
        metadata = {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _invalid(path, "its metadata is not a JSON object of strings")
    return header, metadata


def _parse_entry(path: Path, key: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Parse an entry of a header into dtype, shape, begin and end."""
    try:
        key.encode()  # ValueError for half a surrogate pair, which could not be written again
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = (*shape, begin, end)
        if not (isinstance(dtype, str) and all(type(n) is int and n >= 0 for n in numbers)):
            raise ValueError
        if len(shape) > _MAX_SIDES or max(numbers) > _MAX_ELEMENTS:
            raise ValueError
        if prod(max(n, 1) for n in shape) > _MAX_ELEMENTS:  # also of a tensor without elements
            raise ValueError
    except (TypeError, KeyError, ValueError) as error:
        raise _invalid(path, f"its entry for {key} is malformed") from error
    return dtype, tuple(shape), begin, end


def _check_no_gaps(path: Path, tensors: Iterable[FileTensor], start: int, size: int) -> None:
    """Raise GamMergeError unless the tensors fill the file from ``start`` to its end."""
    end = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            raise _invalid(
                path, f"tensor {tensor.key} starts at byte {tensor.offset}, not at {end}"
            )
        end += tensor.nbytes
    if end != size:
        raise _invalid(path, f"its tensors end at byte {end} of {size}")


def floats(tensors: Mapping[str, FileTensor], problems: list[str]) -> dict[str, FileTensor]:
    """Return the tensors of a dtype in which a LoRA is stored; list the rest in ``problems``."""
    result = {}
    for key, tensor in tensors.items():
        if tensor.dtype in _FLOATS.values() or prod(tensor.shape) == 1:
            result[key] = tensor
        else:
            problems.append(str(_not_float(tensor.path, tensor.key, _NAMES[tensor.dtype])))
    return result


def _not_float(path: Path, key: str, dtype: str) -> GamMergeError:
    return GamMergeError(
        f"{path}: tensor {key} is stored as {dtype}; convert it to F32, F16 or BF16"
    )


def _invalid(path: Path, reason: str) -> GamMergeError:
    broken = f"is not a complete safetensors file ({reason}); download it again"
    return GamMergeError(f"{path}: {mistaken_weights(path) or broken}")


def _too_long(path: Path, limit: str) -> GamMergeError:
    return GamMergeError(
        f"{path}: its header is longer than {limit}, the limit here; no adapter needs more"
    )


class SafetensorsWriter(PlacedWriter):
    """Writes a safetensors file whose tensors arrive in any order.

    Same tensors, same metadata: same bytes. ``format: pt`` is added, without which transformers
    reads no file.
    """

    def __init__(
        self, path: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, str]
    ) -> None:
        self._entries = dict[str, Any]()
        offsets: dict[str, int] = {}
        end = 0
        for spec in sorted(specs, key=lambda spec: (-spec.dtype.itemsize, spec.key)):
            begin, end = end, end + spec.nbytes
            self._entries[spec.key] = {
                "dtype": _NAMES[spec.dtype],
                "shape": spec.shape,
                "data_offsets": [begin, end],
            }
            offsets[spec.key] = begin
        super().__init__(path, specs, {"format": "pt", **metadata}, offsets, end)

    def _header(self) -> bytes:
        header = {"__metadata__": dict(sorted(self._metadata.items())), **self._entries}
        raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)  # tensors start at a multiple of 8
        return len(raw).to_bytes(8, "little") + raw
