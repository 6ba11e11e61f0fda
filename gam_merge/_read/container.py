"""A file of tensors that is written as they arrive."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

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
