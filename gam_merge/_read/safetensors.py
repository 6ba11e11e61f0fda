"""The safetensors container: headers read without the data, files written as tensors become known.

Our own reader and writer, for three reasons: a plan needs offsets, which the safetensors library does not give;
a merge streams its output, while ``save_file`` wants all tensors at once; and ``save_file`` orders metadata by a hash
map, so that equal input gives other bytes each run. Files are read back with the safetensors library in the tests.

Layout: 8 bytes little-endian length, a JSON header, then the tensors without gaps.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import MAX_MARKS, check_ends, marks
from gam_merge._common.tensors import FileTensor

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPES = {
    **_FLOATS,
    **{
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
    },
    **{
        "U16": torch.uint16,
        "U32": torch.uint32,
        "U64": torch.uint64,
        "BOOL": torch.bool,
        "C64": torch.complex64,
    },
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# The safetensors library reads 100 MB. A thousand experts in sixty layers, each adapted alone, make 50: 4.3 M marks.
_MAX_HEADER = 1 << 26
_MARKS_A_TENSOR = 12  # braces, brackets, commas and colons of a matrix
_MAX_SIDES, _MAX_ELEMENTS = 64, 1 << 62  # of a tensor, as torch counts them


def read_header(
    path: Path, *, any_dtype: bool = False
) -> tuple[dict[str, FileTensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, from its header alone.

    Raises GamMergeError if the file is not whole, or not safetensors, or holds a dtype that no LoRA is stored in,
    unless it may hold any.
    """
    try:
        check_ends(path)
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise _broken(path, f"its header claims {length} bytes of {size}")
            if length > _MAX_HEADER:
                raise _too_long(path, f"{_MAX_HEADER} bytes")
            raw = file.read(length)
    except OSError as error:
        raise GamMergeError(f"{path}: cannot be read: {error.strerror}") from error
    if marks(raw) > MAX_MARKS:
        raise _too_long(path, f"{MAX_MARKS // _MARKS_A_TENSOR} tensors take")
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _broken(path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _broken(path, "its header is not a table")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise _broken(path, "its metadata is not a table of texts")
    dtypes = _DTYPES if any_dtype else _FLOATS
    tensors = {
        key: _entry(path, key, entry, dtypes, 8 + length, size) for key, entry in header.items()
    }
    end = 8 + length
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset != end:
            raise _broken(path, f"tensor {tensor.key} starts at byte {tensor.offset}, not at {end}")
        end += tensor.nbytes
    if end != size:
        raise _broken(path, f"its tensors end at byte {end} of {size}")
    return tensors, metadata


def _entry(
    path: Path, key: str, entry: Any, dtypes: Mapping[str, torch.dtype], start: int, size: int
) -> FileTensor:
    try:
        key.encode()  # raises ValueError for half of a surrogate pair, which could not be written again
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = (*shape, begin, end)
        if not (isinstance(dtype, str) and all(type(n) is int and n >= 0 for n in numbers)):
            raise ValueError
        if len(shape) > _MAX_SIDES or max(numbers) > _MAX_ELEMENTS:
            raise ValueError
        if prod(max(n, 1) for n in shape) > _MAX_ELEMENTS:  # also where there are none of them
            raise ValueError
    except (TypeError, KeyError, ValueError) as error:
        raise _broken(path, f"its entry for {key} is malformed") from error
    if dtype not in dtypes:
        raise _no_float(path, key, dtype)
    tensor = FileTensor(path, key, tuple(shape), dtypes[dtype], start + begin)
    if begin + tensor.nbytes != end or start + end > size:
        raise _broken(path, f"tensor {key} does not fit into it")
    return tensor


def floats(tensors: Mapping[str, FileTensor], problems: list[str]) -> dict[str, FileTensor]:
    """The tensors whose dtype is one that a LoRA is stored in. The others are told in ``problems``."""
    odd = [tensor for tensor in tensors.values() if tensor.dtype not in _FLOATS.values()]
    problems += [str(_no_float(tensor.path, tensor.key, _NAMES[tensor.dtype])) for tensor in odd]
    return {key: tensor for key, tensor in tensors.items() if tensor.dtype in _FLOATS.values()}


def _no_float(path: Path, key: str, dtype: str) -> GamMergeError:
    return GamMergeError(
        f"{path}: tensor {key} is stored as {dtype}; convert it to F32, F16 or BF16"
    )


def _broken(path: Path, what: str) -> GamMergeError:
    return GamMergeError(f"{path}: not a whole safetensors file ({what}); fetch it again")


def _too_long(path: Path, limit: str) -> GamMergeError:
    return GamMergeError(
        f"{path}: its header is longer than {limit}, the most that is read; no adapter needs more"
    )


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a file to be written."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class SafetensorsWriter:
    """Writes a safetensors file whose tensors arrive in any order. Same tensors, same metadata: same bytes."""

    def __init__(
        self, path: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, str]
    ) -> None:
        self._specs = {spec.key: spec for spec in specs}
        self._offsets: dict[str, int] = {}
        self._metadata, self._entries = dict(metadata), dict[str, Any]()
        end = 0
        for key, spec in sorted(
            self._specs.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])
        ):
            begin, end = end, end + prod(spec.shape) * spec.dtype.itemsize
            self._entries[key] = {
                "dtype": _NAMES[spec.dtype],
                "shape": spec.shape,
                "data_offsets": [begin, end],
            }
            self._offsets[key] = begin
        header = self._header()
        self._start = len(header)
        self._file: BinaryIO = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by close()
        try:
            self._write(memoryview(header))
            self._file.truncate(self._start + end)
        except BaseException:
            self.close()
            raise

    def write(self, key: str, value: Tensor) -> None:
        """Write one tensor, given with the shape and dtype that was announced."""
        spec = self._specs[key]
        assert (tuple(value.shape), value.dtype) == (spec.shape, spec.dtype), (
            value.shape,
            value.dtype,
            spec,
        )
        self._file.seek(self._start + self._offsets.pop(key))
        self._write(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)

    def amend(self, metadata: Mapping[str, str]) -> None:
        """Put what was not known when the file was begun over metadata of the same length."""
        self._metadata |= metadata
        header = self._header()
        assert len(header) == self._start, "amended metadata are as long as the first"
        self._file.seek(0)
        self._write(memoryview(header))

    def _header(self) -> bytes:
        header = {"__metadata__": dict(sorted(self._metadata.items())), **self._entries}
        raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)  # tensors start at a multiple of 8
        return len(raw).to_bytes(8, "little") + raw

    def finish(self) -> None:
        """Every announced tensor must have been written."""
        assert not self._offsets, f"never written: {sorted(self._offsets)}"
        self.close()

    def close(self) -> None:
        """Let go of the file, whole or not."""
        self._file.close()

    def _write(self, data: memoryview) -> None:
        while len(data):  # a nearly full disk takes a part
            data = data[self._file.write(data) :]
