"""A file of tensors that is written as they arrive."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a file to be written."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return prod(self.shape) * self.dtype.itemsize


class TensorWriter(Protocol):
    """Writes a file of tensors that were announced, in any order."""

    def write(self, key: str, value: Tensor) -> None:
        """Write one tensor, in the shape and dtype that were announced."""
        ...

    def amend(self, metadata: Mapping[str, str]) -> None:
        """Replace metadata by values of the same length that were not known at the beginning."""
        ...

    def data_sha256(self) -> str:
        """Return the SHA-256 of all tensors, once they are written."""
        ...

    def finish(self) -> None:
        """Complete the file and close it. Every announced tensor must have been written."""
        ...

    def close(self) -> None:
        """Close the file, complete or not."""
        ...


class PlacedWriter(ABC):
    """Writes a file of a header and then the tensors, at offsets that are settled beforehand.

    A ``TensorWriter``. A container derives from it, and gives the bytes of the header.
    """

    def __init__(
        self,
        path: Path,
        specs: Sequence[TensorSpec],
        metadata: Mapping[str, str],
        offsets: Mapping[str, int],
        nbytes: int,
    ) -> None:
        """Open the file. offsets: of the tensors after the header, of ``nbytes`` together."""
        self._specs = {spec.key: spec for spec in specs}
        self._metadata, self._offsets = dict(metadata), dict(offsets)
        header = self._header()
        self._start = len(header)
        self._file: BinaryIO = open(path, "w+b", buffering=0)  # noqa: SIM115 - closed by close()
        try:
            self._write(memoryview(header))
            self._file.truncate(self._start + nbytes)
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _header(self) -> bytes:
        """Return the header, with the metadata as they are now."""

    def write(self, key: str, value: Tensor) -> None:
        """Write one tensor, in the shape and dtype that were announced."""
        spec = self._specs[key]
        assert (tuple(value.shape), value.dtype) == (spec.shape, spec.dtype), (value, spec)
        self._file.seek(self._start + self._offsets.pop(key))
        self._write(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)

    def amend(self, metadata: Mapping[str, str]) -> None:
        """Replace metadata by values of the same length that were not known at the beginning."""
        self._metadata |= metadata
        header = self._header()
        assert len(header) == self._start, "amended metadata must be as long as before"
        self._file.seek(0)
        self._write(memoryview(header))

    def data_sha256(self) -> str:
        """Return the SHA-256 of all tensors, without the header."""
        self._file.seek(self._start)
        digest = hashlib.sha256()
        while piece := self._file.read(1 << 20):
            digest.update(piece)
        return digest.hexdigest()

    def finish(self) -> None:
        """Close the file. Every announced tensor must have been written."""
        assert not self._offsets, f"never written: {sorted(self._offsets)}"
        self.close()

    def close(self) -> None:
        """Close the file, complete or not."""
        self._file.close()

    def _write(self, data: memoryview) -> None:
        while len(data):  # a nearly full disk accepts only a part
            data = data[self._file.write(data) :]
