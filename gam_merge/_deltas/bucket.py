"""The input and output of methods: deltas in orthonormal coordinates, and a merged bucket.

Tensor legend: ``N`` adapters, ``L`` modules in the bucket, ``m`` out, ``n`` in, ``r`` rank, ``R``
sum of ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
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

    Every delta has full numerical rank: ``delta_i = U_i core_i V_i^T`` with orthonormal ``U_i = b_i
    u_i`` (L, m, k_i), ``V_i = a_i v_i`` (L, n, k_i) and a regular core (L, k_i, k_i). Random
    methods are seeded with ``labels``, which do not depend on the order of the adapters.

    Example:
        >>> import torch
        >>> from gam_kernels import factored_delta
        >>> from gam_merge.rules import Bucket
        >>> generator = torch.Generator().manual_seed(0)
        >>> b = torch.randn(1, 30, 4, generator=generator)  # (L, m, r)
        >>> a = torch.randn(1, 20, 4, generator=generator)  # (L, n, r)
        >>> delta = factored_delta(b, a, scale=torch.tensor([2.0]))
        >>> bucket = Bucket(("q_proj",), (30, 20), adapters=(0, 1), deltas=(delta, delta))
        >>> bucket.ranks
        (4, 4)
        >>> torch.allclose(bucket.norms[0, 0], torch.linalg.norm(2 * b[0] @ a[0].T).double())
        True
    """

    names: tuple[str, ...]  # of modules, one per matrix
    shape: tuple[int, int]  # (m, n)
    adapters: tuple[int, ...]  # their positions in the merge
    deltas: tuple[Delta, ...]
    # Position in the merge of the adapter that the user wants the others aligned to.
    anchor: int = 0
    labels: tuple[str, ...] = ()  # of the adapters
    factors: tuple[Factors, ...] = ()  # as read, for methods that ask for them
    # What the U_i and the V_i span together, for methods that ask for it.
    spans: tuple[Span, Span] | None = None
    # Which matrix of its module each is, where modules are stacks; else empty.
    indices: tuple[int, ...] = ()
    output_rank: int = 0  # columns that the result may have
    rows: RowScaling | None = None  # how DoRA scales the rows of the base weights
    # The stacked Gram matrices, where one product for all was the cheapest way.
    grams: tuple[Tensor, Tensor] | None = None
    # Products of full size are formed in float64, since float32 does not serve.
    fell_back: bool = False

    @property
    def matrices(self) -> tuple[str, ...]:
        """The names of the matrices: those of the modules, with an index in stacks."""
        if not self.indices:
            return self.names
        return tuple(f"{name}[{i}]" for name, i in zip(self.names, self.indices, strict=True))

    @property
    def ranks(self) -> tuple[int, ...]:
        """The numerical ranks k_i."""
        return tuple(delta.core.shape[-1] for delta in self.deltas)

    @property
    def reference(self) -> int:
        """The index into ``deltas`` of the one to align to.

        That is the anchor if none has a higher rank, else the first of the highest: aligning to a
        smaller rank would cut the others down silently.
        """
        highest = max(self.ranks)
        for position, adapter in enumerate(self.adapters):
            if adapter == self.anchor and self.ranks[position] == highest:
                return position
        return self.ranks.index(highest)

    @cached_property
    def norms(self) -> Tensor:
        """|delta_i|: (L, N) float64."""
        return torch.stack([norm(delta) for delta in self.deltas], -1)

    def cross(self, i: int, j: int) -> tuple[Tensor, Tensor]:
        """Return U_i^T U_j and V_i^T V_j, from the factors as read: (L, k_i, k_j) float64."""
        x, y = self.deltas[i], self.deltas[j]
        left, right = self._grams(i, j)
        return x.u.mT @ left @ y.u, x.v.mT @ right @ y.v

    @cached_property
    def stacked_grams(self) -> tuple[Tensor, Tensor]:
        """Gram matrices of [b_1 ... b_N] and [a_1 ... a_N]: (L, R, R) float64, at a cost of N^2."""
        if self.grams is not None:
            return self.grams
        b = stacked_gram([x.exact_b for x in self.deltas])
        return b, stacked_gram([x.exact_a for x in self.deltas])

    @property
    def known_grams(self) -> tuple[Tensor, Tensor] | None:
        """The stacked Gram matrices, if they have been formed."""
        return vars(self).get("stacked_grams", self.grams)

    @cached_property
    def basis_grams(self) -> tuple[Tensor, Tensor]:
        """Gram matrices of [U_1 ... U_N] and of [V_1 ... V_N]: (L, sum k, sum k) float64."""
        b, a = self.stacked_grams
        return _in_bases(b, [x.u for x in self.deltas]), _in_bases(a, [x.v for x in self.deltas])

    def select(self, index: Tensor, *, wide: bool) -> "Bucket":
        """Return the modules of ``index`` (sorted).

        wide: whether products of full size are formed in float64.
        """
        positions = index.tolist()
        deltas = tuple(x.select(index, rank=x.core.shape[-1], wide=wide) for x in self.deltas)
        factors = tuple(Factors(x.b[index], x.a[index], x.scale[index]) for x in self.factors)
        grams = self.known_grams
        return replace(
            self,
            names=tuple(self.names[j] for j in positions),
            indices=tuple(self.indices[j] for j in positions) if self.indices else (),
            deltas=deltas,
            rows=self.rows and self.rows.select(index),
            factors=factors,
            spans=self.spans and (self.spans[0].select(index), self.spans[1].select(index)),
            grams=grams and (grams[0][index], grams[1][index]),
        )

    def _grams(self, i: int, j: int) -> tuple[Tensor, Tensor]:
        """b_i^T b_j and a_i^T a_j, cut out of the stacked Gram matrices if those are known."""
        x, y = self.deltas[i], self.deltas[j]
        if self.known_grams is None:
            return gram(x.exact_b, y.exact_b), gram(x.exact_a, y.exact_a)
        widths = [delta.b.shape[-1] for delta in self.deltas]
        starts = [0, *accumulate(widths)]
        rows, columns = slice(*starts[i : i + 2]), slice(*starts[j : j + 2])
        left, right = self.known_grams
        return left[:, rows, columns], right[:, rows, columns]


@dataclass(frozen=True)
class Merged:
    """A merged bucket as coefficients of tall factors: merged = b left right^T a^T.

    The factors are the stacks [b_1 ... b_N] and [a_1 ... a_N] of the bucket, unless the result left
    their span: then the method brings its own ``b`` or ``a``. ``warnings`` says what was doubtful,
    and in which modules.

    Example:
        >>> from gam_merge.rules import Merged, rule
        >>> @rule("bucket", "first", summary="the delta of the first adapter", rank="largest")
        ... def first(bucket, weights):
        ...     x = bucket.deltas[0]
        ...     return Merged(x.u @ x.core, x.v, b=x.b, a=x.a)
        >>> first.kind
        'bucket'
    """

    left: Tensor  # (L, R, k) float64
    right: Tensor  # (L, R, k) float64
    warnings: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])  # text -> (L,) bool
    # (L, k) falling, if column j of either side is the j-th singular pair, each sqrt(s_j) long.
    s: Tensor | None = None
    b: Tensor | None = None  # (L, m, R)
    a: Tensor | None = None  # (L, n, R)
    # (L,) share of energy that is left, where the method itself had to cut.
    kept: Tensor | None = None

    def sides(self, bucket: Bucket) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return the tall factors, in pieces whose columns add up to R."""
        b, a = [x.b for x in bucket.deltas], [x.a for x in bucket.deltas]
        if self.b is not None:
            b = [self.b]
        if self.a is not None:
            a = [self.a]
        return b, a

    def grams(self, bucket: Bucket) -> tuple[Tensor, Tensor]:
        """Return b^T b and a^T a: (L, R, R) float64."""
        grams = []
        for side, factor in enumerate((self.b, self.a)):
            grams.append(bucket.stacked_grams[side] if factor is None else stacked_gram([factor]))
        return grams[0], grams[1]

    def norm(self, bucket: Bucket) -> Tensor:
        """Return |merged|: (L,) float64."""
        if self.s is not None:
            return self.s.norm(dim=-1)
        b, a = self.grams(bucket)
        square = (self.left.mT @ b @ self.left) * (self.right.mT @ a @ self.right)  # (L, k, k)
        return square.sum((-2, -1)).clamp(min=0.0).sqrt()

    def scaled(self, c: Tensor | float) -> "Merged":
        """Return the result times c, a number or (L,)."""
        c = torch.as_tensor(c, dtype=self.left.dtype, device=self.left.device)
        c = c.reshape(-1, 1)  # (L or 1, 1)
        half = c.abs().sqrt().unsqueeze(-1)
        s = None if self.s is None else self.s * c.abs()
        left = self.left * half * c.sign().unsqueeze(-1)
        return replace(self, left=left, right=self.right * half, s=s)


def diagonal_blocks(g: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Cut out the blocks of the sizes r_i: (L, R, R) -> (L, r_i, r_i) each."""
    return [rows.split(list(sizes), -1)[i] for i, rows in enumerate(g.split(list(sizes), -2))]


def _in_bases(g: Tensor, bases: Sequence[Tensor]) -> Tensor:
    """Return u^T g u for g (L, R, R) and the u (L, r_i, k_i) on a diagonal: (L, sum k, sum k)."""
    sizes = [u.shape[-2] for u in bases]
    pairs = list(zip(bases, g.split(sizes, -2), strict=True))
    rows = torch.cat([u.mT @ part for u, part in pairs], -2)  # (L, sum k, R)
    columns = zip(rows.split(sizes, -1), bases, strict=True)
    return torch.cat([part @ u for part, u in columns], -1)


def block_diagonal(blocks: Sequence[Tensor]) -> Tensor:
    """Put blocks on the diagonal: (L, r_i, k_i) each -> (L, sum r, sum k)."""
    rows = sum(block.shape[-2] for block in blocks)
    columns = sum(block.shape[-1] for block in blocks)
    out = blocks[0].new_zeros(len(blocks[0]), rows, columns)
    row = column = 0
    for block in blocks:
        r, k = block.shape[-2:]
        out[:, row : row + r, column : column + k] = block
        row, column = row + r, column + k
    return out
