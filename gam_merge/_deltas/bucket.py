"""What a method sees: the deltas of one bucket in orthonormal coordinates, and what it gives back.

Tensor legend: ``N`` adapters, ``L`` modules in the bucket, ``m`` out, ``n`` in, ``r`` rank, ``R`` sum of ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from gam_kernels import Delta, Span, gram, norm, stacked_gram
from gam_merge._deltas.rows import RowScaling


class Factors(NamedTuple):
    """The factors of one adapter as they were read: delta = scale * b a^T."""

    b: Tensor  # (L, m, r)
    a: Tensor  # (L, n, r)
    scale: Tensor  # (L,) float64


@dataclass(frozen=True)
class Bucket:
    """Modules of one shape, seen through the adapters whose delta there is not zero.

    Every delta has full numerical rank: ``delta_i = U_i core_i V_i^T`` with orthonormal ``U_i = b_i u_i`` (L, m, k_i),
    ``V_i = a_i v_i`` (L, n, k_i) and a regular core (L, k_i, k_i). ``adapters`` are their positions in the merge.
    """

    names: tuple[str, ...]  # of modules, one a matrix
    shape: tuple[int, int]  # (m, n)
    adapters: tuple[int, ...]
    deltas: tuple[Delta, ...]
    anchor: int = (
        0  # position in the merge of the adapter that the user wants the others aligned to
    )
    labels: tuple[
        str, ...
    ] = ()  # of the adapters, whatever their order: what random methods are seeded with
    factors: tuple[Factors, ...] = ()  # as read, for methods that ask for them
    spans: tuple[Span, Span] | None = (
        None  # what the U_i and the V_i span together, for methods that ask for it
    )
    indices: tuple[
        int, ...
    ] = ()  # which matrix of its module each is, where modules are stacks; else empty
    output_rank: int = 0  # columns that the result may have
    rows: RowScaling | None = None  # how DoRA scales the rows of the base weights
    grams: tuple[Tensor, Tensor] | None = (
        None  # the stacked ones, where one product for all was the cheapest way
    )
    fell_back: bool = (
        False  # products of full size are formed in float64, since float32 does not serve
    )

    @property
    def matrices(self) -> tuple[str, ...]:
        """A name for each matrix."""
        if not self.indices:
            return self.names
        return tuple(f"{name}[{i}]" for name, i in zip(self.names, self.indices, strict=True))

    @property
    def ranks(self) -> tuple[int, ...]:
        """k_i, the numerical ranks."""
        return tuple(delta.core.shape[-1] for delta in self.deltas)

    @property
    def reference(self) -> int:
        """Index into ``deltas`` of the one to align to: the anchor if none has a higher rank, else the first of the
        highest. Aligning to a smaller rank would cut the others down without a word."""
        highest = max(self.ranks)
        if (
            self.anchor in self.adapters
            and self.ranks[position := self.adapters.index(self.anchor)] == highest
        ):
            return position
        return self.ranks.index(highest)

    @cached_property
    def norms(self) -> Tensor:
        """|delta_i|: (L, N) float64."""
        return torch.stack([norm(delta) for delta in self.deltas], -1)

    def cross(self, i: int, j: int) -> tuple[Tensor, Tensor]:
        """U_i^T U_j and V_i^T V_j: (L, k_i, k_j) float64, from the factors as they were read."""
        x, y = self.deltas[i], self.deltas[j]
        left, right = self._grams(i, j)
        return x.u.mT @ left @ y.u, x.v.mT @ right @ y.v

    @cached_property
    def stacked_grams(self) -> tuple[Tensor, Tensor]:
        """Gram matrices of [b_1 ... b_N] and of [a_1 ... a_N]: (L, R, R) float64. Cost grows with N^2."""
        if self.grams is not None:
            return self.grams
        return stacked_gram([x.exact_b for x in self.deltas]), stacked_gram(
            [x.exact_a for x in self.deltas]
        )

    @property
    def known_grams(self) -> tuple[Tensor, Tensor] | None:
        """The stacked Gram matrices, if somebody has formed them."""
        return vars(self).get("stacked_grams", self.grams)

    @cached_property
    def basis_grams(self) -> tuple[Tensor, Tensor]:
        """Gram matrices of [U_1 ... U_N] and of [V_1 ... V_N]: (L, sum k, sum k) float64."""
        u, v = (
            block_diagonal([x.u for x in self.deltas]),
            block_diagonal([x.v for x in self.deltas]),
        )
        b, a = self.stacked_grams
        return u.mT @ b @ u, v.mT @ a @ v

    def select(self, index: Tensor, *, wide: bool) -> "Bucket":
        """The modules of ``index`` (sorted); if ``wide``, products of full size are formed in float64."""
        deltas = (x.select(index, rank=x.core.shape[-1], wide=wide) for x in self.deltas)
        return replace(
            self,
            names=tuple(self.names[j] for j in index.tolist()),
            indices=tuple(self.indices[j] for j in index.tolist()) if self.indices else (),
            deltas=tuple(deltas),
            rows=self.rows and self.rows.select(index),
            factors=tuple(Factors(*(part[index] for part in raw)) for raw in self.factors),
            spans=self.spans and (self.spans[0].select(index), self.spans[1].select(index)),
            grams=self.known_grams and (self.known_grams[0][index], self.known_grams[1][index]),
        )

    def _grams(self, i: int, j: int) -> tuple[Tensor, Tensor]:
        """b_i^T b_j and a_i^T a_j, cut out of the stacked Gram matrices where those are there already."""
        x, y = self.deltas[i], self.deltas[j]
        if self.known_grams is None:
            return gram(x.exact_b, y.exact_b), gram(x.exact_a, y.exact_a)
        widths = [delta.b.shape[-1] for delta in self.deltas]
        rows, columns = (slice(sum(widths[:k]), sum(widths[: k + 1])) for k in (i, j))
        left, right = (g[:, rows, columns] for g in self.known_grams)
        return left, right


@dataclass(frozen=True)
class Merged:
    """A merged bucket as coefficients of tall factors: merged = b left right^T a^T.

    ``left`` and ``right`` are (L, R, k) float64. The factors are the stacks [b_1 ... b_N] and [a_1 ... a_N] of the
    bucket, unless the result left their span: then the method brings its own ``b`` (L, m, R) or ``a`` (L, n, R).
    ``warnings`` says in words what was doubtful, for which modules.
    """

    left: Tensor
    right: Tensor
    warnings: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])  # text -> (L,) bool
    s: Tensor | None = (
        None  # (L, k) falling, if column j of either side is the j-th singular pair, each sqrt(s_j) long
    )
    b: Tensor | None = None
    a: Tensor | None = None
    kept: Tensor | None = (
        None  # (L,) share of energy that is left, where the method itself had to cut
    )

    def sides(self, bucket: Bucket) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The tall factors, in pieces whose columns add up to R."""
        b = [x.b for x in bucket.deltas] if self.b is None else [self.b]
        a = [x.a for x in bucket.deltas] if self.a is None else [self.a]
        return b, a

    def grams(self, bucket: Bucket) -> tuple[Tensor, Tensor]:
        """b^T b and a^T a: (L, R, R) float64."""
        b = bucket.stacked_grams[0] if self.b is None else stacked_gram([self.b])
        return b, bucket.stacked_grams[1] if self.a is None else stacked_gram([self.a])

    def norm(self, bucket: Bucket) -> Tensor:
        """|merged|: (L,) float64."""
        if self.s is not None:
            return self.s.norm(dim=-1)
        b, a = self.grams(bucket)
        square = (self.left.mT @ b @ self.left) * (self.right.mT @ a @ self.right)  # (L, k, k)
        return square.sum((-2, -1)).clamp(min=0.0).sqrt()

    def scaled(self, c: Tensor | float) -> "Merged":
        """The result times c, a number or (L,)."""
        c = torch.as_tensor(c, dtype=self.left.dtype, device=self.left.device).reshape(
            -1, 1
        )  # (L or 1, 1)
        half = c.abs().sqrt().unsqueeze(-1)
        s = None if self.s is None else self.s * c.abs()
        return replace(
            self, left=self.left * half * c.sign().unsqueeze(-1), right=self.right * half, s=s
        )


def diagonal_blocks(g: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """(L, R, R) -> (L, r_i, r_i) each, with the sizes r_i."""
    return [rows.split(list(sizes), -1)[i] for i, rows in enumerate(g.split(list(sizes), -2))]


def block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """(L, r_i, k_i) each -> (L, sum r, sum k)."""
    modules = blocks[0].shape[0]
    rows, columns = (sum(block.shape[side] for block in blocks) for side in (-2, -1))
    out, row, column = blocks[0].new_zeros(modules, rows, columns), 0, 0
    for block in blocks:
        r, k = block.shape[-2:]
        out[:, row : row + r, column : column + k] = block
        row, column = row + r, column + k
    return out
