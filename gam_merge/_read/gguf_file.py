"""The GGUF container of an adapter: its header read without the data, files written through gguf.

Layout, all little-endian: ``GGUF``, a version, how many tensors and fields there are; the fields of
the metadata; name, sides, type and offset of each tensor; padding; the tensors, padded one by one.
Sides are listed from the fastest one, so the reverse of torch's shape.

The library gguf writes headers and unpacks quantised blocks. It does not read here: its reader maps
the file, keeps an object per entry of a vocabulary, and runs for ever on an array whose length is a
lie. The tests read files back with it.
"""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import check_ends
from gam_merge._common.tensors import DerivedTensor, FileTensor, LazyTensor
from gam_merge._read.container import PlacedWriter, TensorSpec

MAGIC = b"GGUF"
VERSION_KEY = "GGUF.version"  # in the metadata that are read, as the library's reader has it
ARCHITECTURE, TYPE = "general.architecture", "general.type"
_ALIGNMENT = "general.alignment"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_HEADER = 1 << 26  # as for safetensors
_MAX_SIDES = 4  # of a tensor of ggml

_STRING, _ARRAY = 8, 9
_NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_UINT32, _FLOAT32 = 4, 6
# The types of fields that llama.cpp requires; every other field that is written is a string.
_FIELD_TYPES = {
    ARCHITECTURE: _STRING,
    TYPE: _STRING,
    "adapter.type": _STRING,
    "adapter.lora.alpha": _FLOAT32,
    "general.base_model.count": _UINT32,
    _ALIGNMENT: _UINT32,
}

_TENSOR_TYPES = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
WRITTEN = {dtype: number for number, dtype in _TENSOR_TYPES.items()}
_Q8_0, _BLOCK, _BLOCK_BYTES = 8, 32, 34  # a half-precision scale and 32 integers of 8 bits


def library() -> Any:
    """Return the library gguf. Raises GamMergeError, with the extra, where it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise GamMergeError(
            "GGUF is written, translated and unpacked by the library gguf; "
            "pip install 'gam-merge[gguf]'"
        ) from error
    return gguf


def read_gguf(path: Path) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Read the tensors and the metadata of an adapter in GGUF from its header alone.

    Metadata come as text. Raises GamMergeError for a file that is incomplete, or holds anything but
    an adapter of floats or Q8_0.
    """
    try:
        check_ends(path)
        with open(path, "rb") as file:
            header = _Header(path, file)
            return _parse(header)
    except OSError as error:
        raise GamMergeError(f"{path}: cannot be read: {error.strerror}") from error


def _parse(header: "_Header") -> tuple[dict[str, LazyTensor], dict[str, str]]:
    header.take(len(MAGIC))
    version = header.number("I")
    if version not in _VERSIONS:
        raise GamMergeError(
            f"{header.path}: is a GGUF file of version {version} or of another byte order; only "
            "little-endian files of version 2 and 3 are read"
        )
    tensor_count, field_count = header.number("Q"), header.number("Q")
    metadata = {VERSION_KEY: str(version)}
    for _ in range(field_count):
        key = header.text()
        if key in metadata:
            raise header.invalid(f"it has two fields {key}")
        metadata[key] = _field(header, key)
    _check_is_adapter(header.path, metadata)
    entries: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(tensor_count):
        name = header.text()
        if name in entries:
            raise header.invalid(f"it has two tensors {name}")
        entries[name] = (_shape(header, name), header.number("I"), header.number("Q"))
    alignment = int(metadata.get(_ALIGNMENT, _DEFAULT_ALIGNMENT))
    if alignment == 0 or alignment & (alignment - 1):
        raise header.invalid(f"its alignment is {alignment}, not a power of two")
    return _tensors(header, entries, alignment), metadata


def _field(header: "_Header", key: str) -> str:
    """Read the value of a field as text; of an array only how long it is."""
    kind = header.number("I")
    if kind != _FIELD_TYPES.get(key, kind):
        raise header.invalid(f"its field {key} is of type {kind}, not {_FIELD_TYPES[key]}")
    if kind == _STRING:
        return header.text()
    if kind == _ARRAY:
        return f"[{_skip_array(header)}]"
    return str(header.number(_number_format(header, kind)))


def _skip_array(header: "_Header") -> int:
    """Read past an array; return its length."""
    kind, count = header.number("I"), header.number("Q")
    if kind == _STRING:
        for _ in range(count):
            header.skip(header.number("Q"))
    else:
        header.skip(count * struct.calcsize(_number_format(header, kind)))
    return count


def _number_format(header: "_Header", kind: int) -> str:
    if kind not in _NUMBERS:
        raise header.invalid(f"it has a field of type {kind}")
    return _NUMBERS[kind]


def _shape(header: "_Header", name: str) -> tuple[int, ...]:
    """Read the shape of a tensor, in torch's order."""
    sides = header.number("I")
    if sides > _MAX_SIDES:
        raise header.invalid(f"tensor {name} has {sides} sides")
    return tuple(header.number("Q") for _ in range(sides))[::-1]


def _tensors(
    header: "_Header", entries: Mapping[str, tuple[tuple[int, ...], int, int]], alignment: int
) -> dict[str, LazyTensor]:
    """Return the tensors, which must follow each other and lie within the file."""
    start, end = _padded(header.position, alignment), 0
    tensors: dict[str, LazyTensor] = {}
    for name, (shape, kind, offset) in entries.items():
        if offset != end:
            raise header.invalid(f"tensor {name} starts at byte {offset}, not at {end}")
        tensor, nbytes = _tensor(header, name, shape, kind, start + offset)
        if start + offset + nbytes > header.size:
            raise header.invalid(f"tensor {name} does not fit into it")
        tensors[name] = tensor
        end = _padded(offset + nbytes, alignment)
    return tensors


def _tensor(
    header: "_Header", name: str, shape: tuple[int, ...], kind: int, offset: int
) -> tuple[LazyTensor, int]:
    """Return a tensor, and how many bytes of the file it takes."""
    if kind in _TENSOR_TYPES:
        tensor = FileTensor(header.path, name, shape, _TENSOR_TYPES[kind], offset)
        return tensor, tensor.nbytes
    if kind != _Q8_0:
        raise GamMergeError(
            f"{header.path}: tensor {name} is stored in type {kind} of ggml; convert the adapter "
            "to F32, F16, BF16 or Q8_0"
        )
    if not shape or shape[-1] % _BLOCK:
        raise header.invalid(f"tensor {name} of type Q8_0 has no rows of {_BLOCK} entries")
    row_bytes = shape[-1] // _BLOCK * _BLOCK_BYTES
    packed = FileTensor(header.path, name, (*shape[:-1], row_bytes), torch.uint8, offset)
    return DerivedTensor(shape, torch.float32, _unpacked, (packed,)), packed.nbytes


def _unpacked(blocks: Tensor) -> Tensor:
    """Return the floats that blocks of Q8_0 stand for."""
    gguf = library()
    return torch.from_numpy(gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType.Q8_0))


def _check_is_adapter(path: Path, metadata: Mapping[str, str]) -> None:
    kind, architecture = metadata.get(TYPE), metadata.get(ARCHITECTURE)
    if kind == "adapter":
        return
    if kind == "model" or f"{architecture}.block_count" in metadata:
        raise GamMergeError(
            f"{path}: is a GGUF file of a whole {architecture} model, not of an adapter; name the "
            "adapter"
        )
    raise GamMergeError(
        f"{path}: is a GGUF file whose general.type must be 'adapter', got {kind!r}"
    )


def _padded(nbytes: int, alignment: int) -> int:
    return nbytes + -nbytes % alignment


class _Header:
    """The header of a file, read from its beginning on, never past its end or a sane length."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file, self.position = path, file, 0
        self.size = path.stat().st_size

    def take(self, count: int) -> bytes:
        """Read the next bytes."""
        self._advance(count)
        return self._file.read(count)

    def skip(self, count: int) -> None:
        """Leave out the next bytes."""
        self._advance(count)
        self._file.seek(self.position)

    def number(self, kind: str) -> Any:
        """Read a number by its letter in ``struct``."""
        (value,) = struct.unpack(f"<{kind}", self.take(struct.calcsize(kind)))
        return value

    def text(self) -> str:
        """Read a string: its length and its bytes."""
        raw = self.take(self.number("Q"))
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.invalid("a name in it is not UTF-8") from error

    def invalid(self, reason: str) -> GamMergeError:
        """Return the error for this file."""
        return GamMergeError(
            f"{self.path}: is not a complete GGUF file ({reason}); download it again"
        )

    def _advance(self, count: int) -> None:
        self.position += count
        if self.position > self.size:
            raise self.invalid(f"its header claims {self.position} bytes of {self.size}")
        if self.position > _MAX_HEADER:
            raise GamMergeError(
                f"{self.path}: its header is longer than {_MAX_HEADER} bytes, the limit here; no "
                "adapter needs more"
            )


class GgufWriter(PlacedWriter):
    """Writes a GGUF file whose tensors arrive in any order.

    Same tensors, same metadata: same bytes.
    """

    def __init__(
        self, path: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, str]
    ) -> None:
        self._library = library()
        offsets: dict[str, int] = {}
        end = 0
        for spec in specs:
            offsets[spec.key] = end
            end = _padded(end + spec.nbytes, _DEFAULT_ALIGNMENT)
        super().__init__(path, specs, metadata, offsets, end)

    def _header(self) -> bytes:
        types = self._library.GGUFValueType
        with TemporaryDirectory(prefix="gam-merge-") as folder:
            file = Path(folder) / "header.gguf"
            writer = self._library.GGUFWriter(file, self._metadata[ARCHITECTURE])
            for key, text in sorted(self._metadata.items()):
                if key != ARCHITECTURE:  # the library has written it, as the first
                    kind = types(_FIELD_TYPES.get(key, _STRING))
                    writer.add_key_value(key, _VALUES.get(kind, str)(text), kind)
            for spec in self._specs.values():
                kind = self._library.GGMLQuantizationType(WRITTEN[spec.dtype])
                writer.add_tensor_info(spec.key, spec.shape, None, spec.nbytes, raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            writer.close()
            raw = file.read_bytes()
        return raw + bytes(-len(raw) % _DEFAULT_ALIGNMENT)


_VALUES = {_UINT32: int, _FLOAT32: float}  # of the text of a field that is not a string
