"""Tensors that are known before they are read: name, shape and dtype first, bytes on request."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from math import prod
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from gam_merge._common.errors import GamMergeError


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name that users write and read: ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


class LazyTensor(Protocol):
    """A tensor that is known before it is read."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def read_into(self, out: Tensor, start: int = 0) -> None:
        """Fill ``out``, contiguous and of this dtype, with the elements from number ``start`` on.

        Raises GamMergeError.
        """
        ...


@dataclass(frozen=True)
class FileTensor:
    """Bytes of a safetensors file.

    They are read, not mapped: mapped pages count as memory, and a mapped file that shrinks kills
    the process.
    """

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int  # from the start of the file, in bytes

    def __str__(self) -> str:
        return f"{self.shape} {dtype_name(self.dtype)}"

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def is_plain(self) -> bool:
        """Whether it holds floats of 16 bits or more, which can be added to.

        Quantised weights are packed into other types.
        """
        return self.dtype.is_floating_point and self.dtype.itemsize > 1

    def read_into(self, out: Tensor, start: int = 0) -> None:
        view = out.flatten().view(torch.uint8).numpy().data
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self.offset + start * self.dtype.itemsize)
                while len(view):
                    count = file.readinto(view)
                    if not count:
                        raise GamMergeError(
                            f"{self.path}: ends within tensor {self.key}; download the file again"
                        )
                    view = view[count:]
        except OSError as error:
            raise GamMergeError(
                f"{self.path}: cannot read tensor {self.key}: {error.strerror}"
            ) from error


@dataclass(frozen=True)
class MemoryTensor:
    """A tensor in memory, on any device."""

    value: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    def read_into(self, out: Tensor, start: int = 0) -> None:
        flat = self.value.detach().reshape(-1)
        out.copy_(flat[start : start + out.numel()].view(out.shape))


@dataclass(frozen=True)
class DerivedTensor:
    """A tensor that is computed from others when it is read.

    ``compute`` is a function of a module, or a partial of one, so that workers can be sent it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    compute: Callable[..., Tensor]  # of the tensors of ``inputs``
    inputs: tuple[LazyTensor, ...]

    def read_into(self, out: Tensor, start: int = 0) -> None:
        """Fill ``out`` with elements from number ``start`` on; all of it is computed for them."""
        flat = self.compute(*map(read, self.inputs)).to(self.dtype).reshape(-1)
        out.copy_(flat[start : start + out.numel()].view(out.shape))


@dataclass(frozen=True)
class TensorRows:
    """Some rows of a tensor: of one in a file no others are read."""

    whole: LazyTensor
    first: int
    count: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.count, *self.whole.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        return self.whole.dtype

    def read_into(self, out: Tensor, start: int = 0) -> None:
        self.whole.read_into(out, self.first * prod(self.whole.shape[1:]) + start)


def stored_dtype(tensor: LazyTensor) -> torch.dtype:
    """Return the dtype in which a file holds a tensor, or what it is computed from."""
    if isinstance(tensor, TensorRows):
        return stored_dtype(tensor.whole)
    if isinstance(tensor, DerivedTensor):
        dtype = reduce(torch.promote_types, map(stored_dtype, tensor.inputs))
        return dtype if dtype.is_floating_point else tensor.dtype  # packed bytes say nothing
    return tensor.dtype


def transposed(stored: LazyTensor) -> DerivedTensor:
    """Return a matrix (n, m) as (m, n)."""
    return DerivedTensor(stored.shape[::-1], stored.dtype, _transpose, (stored,))


def _transpose(matrix: Tensor) -> Tensor:
    return matrix.mT


@dataclass(frozen=True)
class PromisedTensor:
    """A tensor that a merge would make: planned with, never read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def read_into(self, out: Tensor, start: int = 0) -> None:
        raise AssertionError("a plan reads no tensor")


def read(tensor: LazyTensor) -> Tensor:
    """Return the tensor itself, on the CPU."""
    out = torch.empty(tensor.shape, dtype=tensor.dtype)
    tensor.read_into(out)
    return out


def blocks(tensor: LazyTensor, size: int = 1 << 22) -> Iterator[tuple[slice, Tensor]]:
    """Yield flat pieces of a tensor, of at most ``size`` elements, with their places."""
    total = prod(tensor.shape)
    for start in range(0, total, size):
        part = slice(start, min(start + size, total))
        out = torch.empty(part.stop - part.start, dtype=tensor.dtype)
        tensor.read_into(out, start)
        yield part, out


_DTYPES = {
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float32": torch.float32,
    "fp32": torch.float32,
    "float64": torch.float64,
    "fp64": torch.float64,
}


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return the dtype of a name. Raises GamMergeError."""
    if dtype is None or dtype in _DTYPES.values():
        return dtype  # type: ignore[return-value]
    if dtype not in _DTYPES:
        raise GamMergeError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    return _DTYPES[str(dtype)]


def pick_device(device: str | torch.device) -> torch.device:
    """Return the device of a name, or the best one for ``auto``. Raises GamMergeError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, dtype=torch.float64, device=chosen).item()
    except (RuntimeError, AssertionError, TypeError) as error:
        raise GamMergeError(
            f"device {device!r} cannot be used here: {str(error).splitlines()[0]}"
        ) from error
    return chosen
