"""adapter_model.bin, as old versions of PEFT wrote it: a pickle, read as data.

torch's reader, even the one of weights alone, calls what the file names: ``bytearray(n)`` takes any
amount of memory. Here opcodes build dicts and places of tensors, and nothing is called; tensors are
read when a merge asks for them, like those of safetensors.

A file is a zip archive without compression, with the pickle in ``NAME/data.pkl`` and the numbers of
each storage in ``NAME/data/KEY``; before torch 1.6 several pickles, and the storages after them.
"""

import io
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import check_ends
from gam_merge._common.signature import mistaken_weights
from gam_merge._common.tensors import FileTensor, dtype_name, read
from gam_merge._read.whole_model import check_keys

NOTE = (
    "its weights are a pickle, of which only tensors are read; "
    "save them as safetensors before you share them"
)

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Bytes of memory that an opcode, an entry of an archive or a tensor may take here. What they take
# together must be at most four times the file, or 64 MB.
_PER_OPCODE, _PER_ENTRY = 128, 1024
_TIMES, _LEAST = 4, 1 << 26
_MAX_SIDES = 64  # of a tensor, as in safetensors
_LOCAL_HEADER = 30  # bytes before the name of an entry of an archive
_LEGACY_PARTS = 3  # pickles before the one of the tensors: magic number, protocol, system
_CUT = re.compile("exhausted|but only|expected .* bytes")  # what pickletools says of a short file
_UNREADABLE = (
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class _Storage:
    """Numbers that tensors are views of."""

    key: str
    dtype: torch.dtype
    size: int


@dataclass(frozen=True)
class _View:
    """A tensor as a pickle describes it: numbers of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def end(self) -> int:
        """The number of the storage after the last one that is seen."""
        if not prod(self.shape):
            return self.offset
        steps = zip(self.shape, self.stride, strict=True)
        return self.offset + sum((n - 1) * step for n, step in steps) + 1


@dataclass(frozen=True)
class PickledTensor:
    """A tensor whose numbers are in a pickled file, perhaps in another order."""

    span: FileTensor  # from its first number to its last, in one dimension
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """As it is stored."""
        return self.span.dtype

    def read_into(self, out: Tensor, start: int = 0) -> None:
        """Fill ``out`` with elements from number ``start`` on."""
        if self.stride == _contiguous(self.shape):
            self.span.read_into(out, start)
            return
        flat = torch.as_strided(read(self.span), self.shape, self.stride).reshape(-1)
        out.copy_(flat[start : start + out.numel()].view(out.shape))


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a tensor whose numbers are in order."""
    return tuple(prod(shape[i + 1 :]) for i in range(len(shape)))


def read_pickle(path: Path) -> dict[str, PickledTensor]:
    """Read which tensors the file holds, and where.

    Raises GamMergeError if it holds anything but float tensors, or single numbers, by name.
    """
    try:
        check_ends(path)
        with open(path, "rb") as file:
            content, places = _read(path, file)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    except OSError as error:
        raise GamMergeError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise GamMergeError(f"{path}: is not a dict of tensors by name")
    if not all(map(_is_float_tensor, content.values())):
        check_keys(str(path), content)  # a quantised model
    tensors = {key: _located(path, key, value, places) for key, value in content.items()}
    total = sum(prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values())
    _check_memory(path, total, "its tensors share numbers, and would")
    return tensors


_Places = Mapping[str, tuple[int, int]]  # key of a storage -> offset and size in bytes


def _read(path: Path, file: BinaryIO) -> tuple[Any, _Places]:
    """Return the content of the pickle, and the places of all storages."""
    if not zipfile.is_zipfile(file):
        return _read_legacy(path, file)
    _check_memory(path, _PER_ENTRY * _entries(file), "its archive would")
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise GamMergeError(
                    f"{path}: is compressed, which torch.save does not do; save it as safetensors"
                )
            if entry.file_size > path.stat().st_size:
                raise ValueError(f"{entry.filename} does not fit into it")
        (pickle,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        stem = f"{pickle.removesuffix('data.pkl')}data/"
        places: dict[str, tuple[int, int]] = {}
        for entry in archive.infolist():
            if entry.filename.startswith(stem):
                key = entry.filename.removeprefix(stem)
                places[key] = _place(file, entry), entry.file_size
        order = f"{pickle.removesuffix('data.pkl')}byteorder"
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("its numbers are not little-endian")
        return _built(path, io.BytesIO(archive.read(pickle))), places


def _entries(file: BinaryIO) -> int:
    """Return an upper limit for the entries of an archive, from their signatures."""
    count, tail = 0, b""
    file.seek(0)
    while piece := file.read(1 << 20):
        block = tail + piece
        count += block.count(b"PK\x01\x02")
        tail = block[-3:]
    return count


def _place(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Return where the bytes of an entry begin: after its local header."""
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER)
    lengths = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    return entry.header_offset + _LOCAL_HEADER + sum(lengths)


def _read_legacy(path: Path, file: BinaryIO) -> tuple[Any, _Places]:
    """Read a file of torch before 1.6. Each storage begins with its number of elements."""
    file.seek(0)
    file = io.BytesIO(file.read())
    for _ in range(_LEGACY_PARTS):
        _built(path, file)
    storages: dict[str, _Storage] = {}
    content = _built(path, file, storages)
    keys = _built(path, file)
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        if not isinstance(key, str):
            raise TypeError("a storage without a name")
        length = file.read(8)
        if len(length) < 8:
            raise EOFError
        size = int.from_bytes(length, "little", signed=True)
        nbytes = size * storages[key].dtype.itemsize
        if size != storages[key].size:
            raise ValueError(f"storage {key} has {size} numbers")
        places[key] = file.tell(), nbytes
        file.seek(nbytes, 1)
    return content, places


def _is_float_tensor(view: Any) -> bool:
    if not isinstance(view, _View):
        return False
    return view.storage.dtype in _FLOATS or prod(view.shape) == 1  # a format may take one number


def _located(path: Path, key: str, view: Any, places: _Places) -> PickledTensor:
    """Return a tensor of floats, or of one number, at its place.

    Raises GamMergeError for anything else, and for what is not all stored.
    """
    if not isinstance(view, _View):
        raise GamMergeError(
            f"{path}: holds {key}, which is not a tensor ({type(view).__name__}); save the dict of "
            "the adapter's tensors alone"
        )
    if not _is_float_tensor(view):
        kind = dtype_name(view.storage.dtype)
        raise GamMergeError(
            f"{path}: tensor {key} is stored as {kind}; convert it to F32, F16 or BF16"
        )
    dtype = view.storage.dtype
    start, nbytes = places.get(view.storage.key, (0, 0))
    nbytes = min(nbytes, path.stat().st_size - start)
    stored = min(view.storage.size, nbytes // dtype.itemsize)
    if view.end > stored or prod(view.shape) > stored:
        raise GamMergeError(f"{path}: tensor {key} is larger than its storage")
    offset = start + view.offset * dtype.itemsize
    span = FileTensor(path, key, (view.end - view.offset,), dtype, offset)
    return PickledTensor(span, view.shape, view.stride)


def _check_memory(path: Path, nbytes: int, subject: str) -> None:
    """Raise GamMergeError for what takes more memory than its file explains."""
    if nbytes > max(_LEAST, _TIMES * path.stat().st_size):
        raise GamMergeError(
            f"{path}: {subject} take {nbytes} bytes of memory, many times the file; "
            "save it as safetensors on a machine that trusts it"
        )


def _unreadable(path: Path, error: Exception) -> GamMergeError:
    """Return the error for a file that is cut off, or something else than a pickle of tensors."""
    mistaken = mistaken_weights(path)
    if mistaken:
        return GamMergeError(f"{path}: {mistaken}")
    if isinstance(error, EOFError) or _CUT.search(str(error)) or _is_cut_archive(path):
        return GamMergeError(f"{path}: is a pickle that was cut off; download it again")
    return _not_tensors(path, str(error) or type(error).__name__)


def _is_cut_archive(path: Path) -> bool:
    """Tell whether a file begins like a zip archive, and does not end like one."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04" and not zipfile.is_zipfile(file)


def _not_tensors(path: Path, reason: str) -> GamMergeError:
    return GamMergeError(
        f"{path}: is not a pickle of tensors alone ({reason}); "
        "save it as safetensors on a machine that trusts it"
    )


# --- the opcodes of a pickle ----------------------------------------------------------------------

_MARK = object()


def _built(path: Path, file: io.BytesIO, storages: dict[str, _Storage] | None = None) -> Any:
    """Build what a pickle describes, from its opcodes. storages: filled with those that it names.

    file: in memory, where a length that is only claimed allocates nothing. Raises what is
    ``_UNREADABLE``, or GamMergeError for more opcodes than the file explains.
    """
    machine = _Machine({} if storages is None else storages)
    most = max(_LEAST, _TIMES * path.stat().st_size) // _PER_OPCODE
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count > most:
            _check_memory(path, count * _PER_OPCODE, "its pickle would")
        machine.step(opcode.name, argument)
    return machine.stack.pop()


class _Machine:
    """A stack, a memo, and the opcodes that torch.save writes."""

    def __init__(self, storages: dict[str, _Storage]) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._storages = storages

    def step(self, name: str, argument: Any) -> None:
        """Do what an opcode says."""
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            self.stack.append(tuple(self._pop(_TUPLES[name])))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self._memo[argument])
        else:
            self._combine(name, argument)

    def _combine(self, name: str, argument: Any) -> None:
        """Do an opcode that makes one thing of several."""
        match name:
            case "PROTO" | "STOP":
                pass
            case "GLOBAL":
                self.stack.append(_Name(argument))
            case "TUPLE":
                self.stack.append(tuple(self._marked()))
            case "SETITEM":
                self._update(self._pop(2))
            case "SETITEMS":
                self._update(self._marked())
            case "APPEND":
                (value,) = self._pop(1)
                self._list().append(value)
            case "APPENDS":
                values = self._marked()
                self._list().extend(values)
            case "BINPERSID":
                self.stack.append(self._storage(*self._pop(1)))
            case "REDUCE":
                function, arguments = self._pop(2)
                self.stack.append(_called(function, arguments))
            case "BUILD":  # attributes of an OrderedDict, of no use here
                self._pop(1)
                self._dict()
            case _:
                raise ValueError(f"opcode {name}")

    def _pop(self, count: int) -> list[Any]:
        values = self.stack[len(self.stack) - count :]
        if len(values) < count or any(value is _MARK for value in values):
            raise ValueError("too few values on its stack")
        del self.stack[len(self.stack) - count :]
        return values

    def _marked(self) -> list[Any]:
        """Pop all values above the last mark, and the mark."""
        values: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _update(self, entries: Sequence[Any]) -> None:
        """Set keys and values, one after the other, in the dict on top of the stack."""
        keys = entries[::2]
        if not all(isinstance(key, str | int) for key in keys):  # a tuple may take ages to hash
            raise TypeError("a key that is neither text nor a number")
        self._dict().update(zip(keys, entries[1::2], strict=True))

    def _dict(self) -> dict[Any, Any]:
        if not isinstance(self.stack[-1], dict):
            raise TypeError("entries of what is not a dict")
        return self.stack[-1]

    def _list(self) -> list[Any]:
        if not isinstance(self.stack[-1], list):
            raise TypeError("items of what is not a list")
        return self.stack[-1]

    def _storage(self, identity: Any) -> _Storage:
        """Return the storage of a persistent id: ("storage", type, key, device, size, ...)."""
        kind, name, key, _, size, view = (*identity[:6], None)[:6]
        named = isinstance(name, _Name) and isinstance(key, str)
        if kind != "storage" or not named or not _is_count(size) or view is not None:
            raise ValueError("a storage of an unknown kind")
        module, _, word = name.rpartition(" ")
        if module != "torch" or word not in _DTYPES:
            raise ValueError(name)
        storage = _Storage(key, _DTYPES[word], size)
        if self._storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {key} is described twice")
        return storage


class _Name(str):
    """The module and the name of something that a pickle would import."""


_VALUES = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "UNICODE"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "MARK": lambda: _MARK,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _called(function: Any, arguments: Any) -> Any:
    """Return what one of the few functions that torch.save names would make."""
    if not isinstance(function, _Name):
        raise TypeError("a call of what is not a function")
    match function:
        case "collections OrderedDict" if arguments == ():
            return {}
        case "torch._utils _rebuild_tensor" | "torch._utils _rebuild_tensor_v2":
            return _view(*arguments[:4])
        case "torch._utils _rebuild_parameter" if isinstance(arguments[0], _View):
            return arguments[0]
    raise ValueError(function)


def _view(storage: Any, offset: Any, shape: Any, stride: Any) -> _View:
    numbers = (offset, *shape, *stride)
    sound = isinstance(storage, _Storage) and all(map(_is_count, numbers))
    if not sound or len(shape) != len(stride) or len(shape) > _MAX_SIDES:
        raise ValueError("a tensor of an unknown kind")
    return _View(storage, offset, tuple(shape), tuple(stride))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62
