"""Layouts: how a module stores its factors, and the stack of low-rank matrices that they are.

Methods and kernels know stacks of matrices alone; a layout takes the tensors of equal modules there
and back.
Tensor legend: ``L`` modules, ``S`` matrices in each, ``m`` out, ``n`` in, ``r`` rank of one matrix.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """One matrix: A is (r, n) and B is (m, r). Linear layers, and all that PEFT treats as one.

    ``str`` gives the words for it in an error.
    """

    def __str__(self) -> str:
        return "a linear layer"

    @property
    def stack(self) -> int:
        """S, the number of matrices."""
        return 1

    @property
    def groups(self) -> int:
        """How many of the matrices share the rank of the module; in other layouts each has it."""
        return 1

    def split(self, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Turn the stored factors of L modules into matrices: (L S, m, r), (L S, r, n)."""
        return b, a

    def join(self, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """Turn matrices (L S, m, r), (L S, r, n) into the stored factors of L modules."""
        return b, a

    def magnitude_shape(self, m: int) -> Shape:
        """Return the shape of a stored magnitude vector of DoRA."""
        return (m,)

    def split_shapes(self, b: Shape, a: Shape) -> tuple[Shape, Shape]:
        """Return the shapes of the matrices of one module: (S, m, r), (S, r, n)."""
        return _split_shapes(self, b, a)

    def join_shapes(self, m: int, n: int, r: int) -> tuple[Shape, Shape]:
        """Return the shapes of the stored B and A of one module."""
        b, a = _shapes(self.join, (self.stack, m, r), (self.stack, r, n))
        return b[1:], a[1:]


@dataclass(frozen=True)
class EmbeddingLayout(Layout):
    """One matrix (dim, vocabulary): A is (r, vocabulary) and B is (dim, r)."""

    def __str__(self) -> str:
        return "an embedding"


@dataclass(frozen=True)
class ConvLayout(Layout):
    """A is (r, channels, *kernel), B is (m, r / groups, 1, ...).

    The kernel is flattened into the columns. B alone is grouped: group g sees rows g of A, so a
    module of rank r is ``groups`` matrices of m / groups rows and rank r / groups, one below the
    other.
    """

    kernel: tuple[int, ...]
    groups: int = 1

    def __str__(self) -> str:
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        return f"a convolution of kernel {' x '.join(map(str, self.kernel))}{groups}"

    @property
    def stack(self) -> int:
        return self.groups

    def magnitude_shape(self, m: int) -> Shape:
        return (1, m, *(1 for _ in self.kernel))

    def split(self, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        b, a = (
            x.flatten(2).unflatten(1, (self.groups, -1)) for x in (b, a)
        )  # (L, S, m, r), (L, S, r, n)
        return b.flatten(0, 1), a.flatten(0, 1)

    def join(self, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        b, a = (
            x.unflatten(0, (-1, self.groups)).flatten(1, 2) for x in (b, a)
        )  # (L, m', r), (L, r', n)
        channels = a.shape[-1] // prod(self.kernel)
        return b.unflatten(2, (-1, *(1 for _ in self.kernel))), a.unflatten(
            2, (channels, *self.kernel)
        )


@dataclass(frozen=True)
class ExpertsLayout(Layout):
    """``count`` matrices, one per expert: A is (count * r, n), B is (m, r * count).

    The expert is the slow index in A, the fast one in B. ``parameters`` are the parameters of the
    module that are adapted: the keys number them without naming them, so two adapters mean the
    same one only if they adapt the same set.
    """

    count: int
    parameters: tuple[str, ...]

    def __str__(self) -> str:
        noun = "parameter" if len(self.parameters) == 1 else "parameters"
        experts = f" of {self.count} experts" if self.count > 1 else ""
        return f"the {noun} {' and '.join(self.parameters)}{experts}"

    @property
    def stack(self) -> int:
        return self.count

    def split(self, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        b = b.unflatten(2, (-1, self.count)).movedim(-1, 1)  # (L, m, r S) -> (L, S, m, r)
        a = a.unflatten(1, (self.count, -1))  # (L, S r, n) -> (L, S, r, n)
        return b.flatten(0, 1), a.flatten(0, 1)

    def join(self, b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        b, a = (x.unflatten(0, (-1, self.count)) for x in (b, a))  # (L, S, m, r), (L, S, r, n)
        return b.movedim(1, -1).flatten(2), a.flatten(1, 2)


@lru_cache  # thousands of modules have few shapes
def _split_shapes(layout: Layout, b: Shape, a: Shape) -> tuple[Shape, Shape]:
    return _shapes(layout.split, (1, *b), (1, *a))


def _shapes(
    move: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], b: Shape, a: Shape
) -> tuple[Shape, Shape]:
    moved_b, moved_a = move(torch.empty(b, device="meta"), torch.empty(a, device="meta"))
    return tuple(moved_b.shape), tuple(moved_a.shape)
