"""Core space: the deltas of a bucket as small matrices in one pair of orthonormal bases of all that they span.

A map that commutes with orthonormal changes of basis may be run on the cores and lifted afterwards: nothing of size
out x in is formed, and the result is exact.

Tensor legend: ``N`` adapters, ``L`` modules, ``m`` out, ``n`` in, ``R`` sum of ranks, ``k`` numerical rank of a delta,
``K`` and ``J`` dimensions of what the deltas span together on the left and on the right.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from gam_kernels import Delta, gram, span
from gam_merge._deltas.bucket import Bucket, Merged

_EPS = torch.finfo(torch.float64).eps


class InCore(NamedTuple):
    """A merged core (L, K, J) and what was doubtful about it, for which modules."""

    x: Tensor
    warnings: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class Core:
    """delta_i = Q_u m_i Q_v^T with m_i = left_i core_i right_i^T and orthonormal left_i, right_i, Q_u, Q_v.

    Q_u = [b_1 ... b_N] u and Q_v = [a_1 ... a_N] v are not formed.
    """

    bucket: Bucket
    u: Tensor  # (L, R, K)
    v: Tensor  # (L, R, J)
    lefts: tuple[Tensor, ...]  # (L, K, k_i)
    cores: tuple[Tensor, ...]  # (L, k_i, k_i)
    rights: tuple[Tensor, ...]  # (L, J, k_i)

    @cached_property
    def m(self) -> Tensor:
        """The deltas in core space: (L, N, K, J)."""
        parts = zip(self.lefts, self.cores, self.rights, strict=True)
        return torch.stack([p @ core @ q.mT for p, core, q in parts], 1)

    @cached_property
    def norms(self) -> Tensor:
        """|delta_i|: (L, N)."""
        return torch.stack([torch.linalg.matrix_norm(core) for core in self.cores], -1)

    @cached_property
    def svds(self) -> tuple[tuple[Tensor, Tensor, Tensor], ...]:
        """Thin SVD of each m_i = P diag(s) Q^T: P (L, K, k_i), s (L, k_i), Q (L, J, k_i)."""
        svds = []
        for left, core, right in zip(self.lefts, self.cores, self.rights, strict=True):
            p, s, qt = torch.linalg.svd(core)
            svds.append((left @ p, s, right @ qt.mT))
        return tuple(svds)

    def right_basis(self) -> Tensor:
        """Q_v itself: (L, n, J) float64."""
        parts = self.v.split([x.a64.shape[-1] for x in self.bucket.deltas], -2)
        return sum(
            (x.a64 @ part for x, part in zip(self.bucket.deltas, parts, strict=True)),
            torch.zeros(()).double(),
        )

    def orient(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Singular vectors in core space, each with the sign that makes the entries of Q_u u or Q_v v add up to more
        than zero: (L, K, k), (L, J, k). For rules that see signs, whatever the machine made of them."""
        b = torch.cat([x.b64.sum(-2, keepdim=True) for x in self.bucket.deltas], -1)  # (L, 1, R)
        a = torch.cat([x.a64.sum(-2, keepdim=True) for x in self.bucket.deltas], -1)
        return u * torch.where(b @ self.u @ u < 0, -1.0, 1.0), v * torch.where(
            a @ self.v @ v < 0, -1.0, 1.0
        )

    def scaled(self, c: Tensor) -> "Core":
        """Delta i times c_i: (L, N)."""
        return replace(
            self, cores=tuple(core * c[:, i, None, None] for i, core in enumerate(self.cores))
        )

    def mapped(self, s: Tensor) -> "Core":
        """Every delta with a regular s (L, K, K) from the left."""
        parts = [torch.linalg.qr(s @ left) for left in self.lefts]
        cores = tuple(r @ core for (_, r), core in zip(parts, self.cores, strict=True))
        return replace(self, lefts=tuple(q for q, _ in parts), cores=cores)

    def read_lefts(self) -> list[Tensor]:
        """The factors scale * B as they were read, in the basis Q_u: (L, K, r_i)."""
        stack = torch.cat([x.b64 for x in self.bucket.deltas], -1)  # (L, m, R)
        return [self.u.mT @ gram(stack, x.b) * x.scale[:, None, None] for x in self.bucket.factors]

    def small(self) -> Bucket:
        """The cores as a bucket of modules of shape (K, J), for rules that are written for buckets."""
        deltas = []
        for left, core, right in zip(self.lefts, self.cores, self.rights, strict=True):
            eye = torch.eye(core.shape[-1], dtype=core.dtype, device=core.device).expand_as(core)
            rank = torch.full(core.shape[:1], core.shape[-1], device=core.device)
            deltas.append(Delta(left, right, left, right, eye, eye, core, rank, rank > 0))
        shape = self.u.shape[-1], self.v.shape[-1]
        return replace(
            self.bucket, shape=shape, deltas=tuple(deltas), factors=(), spans=None, grams=None
        )

    def lift(self, merged: InCore) -> Merged:
        """A merged core in coefficients of the stacked factors, as balanced singular pairs."""
        p, s, qt = torch.linalg.svd(merged.x, full_matrices=False)  # (L, K, k), (L, k), (L, k, J)
        root = s.sqrt().unsqueeze(-2)
        return Merged(self.u @ (p * root), self.v @ (qt.mT * root), merged.warnings, s)


def by_span(bucket: Bucket) -> Iterator[Bucket]:
    """Split a bucket into those whose deltas span spaces of the same dimensions, with these spans worked out."""
    if not bucket.deltas:
        yield bucket
        return
    eps = torch.finfo(bucket.deltas[0].b.dtype).eps
    g_u, g_v = bucket.basis_grams
    left = span(
        g_u, partial(_stack, [(x.b64, x.u) for x in bucket.deltas]), rows=bucket.shape[0], eps=eps
    )
    right = span(
        g_v, partial(_stack, [(x.a64, x.v) for x in bucket.deltas]), rows=bucket.shape[1], eps=eps
    )
    keys = torch.stack(
        [left.rank, right.rank, (left.wide | right.wide).long()], -1
    ).tolist()  # (L, 3)
    groups: dict[tuple[int, ...], list[int]] = {}
    for j, key in enumerate(keys):
        groups.setdefault(tuple(key), []).append(j)
    for (rank_u, rank_v, wide), members in groups.items():
        index = torch.tensor(members, device=left.coef.device)
        part = bucket.select(index, wide=bool(wide))
        yield replace(part, spans=(left.select(index, rank_u), right.select(index, rank_v)))


def core_of(bucket: Bucket) -> Core:
    """The core of a bucket that ``by_span`` made."""
    assert bucket.spans is not None, "only methods that ask for cores get buckets that have one"
    left, right = bucket.spans
    ranks = list(bucket.ranks)
    u = [x.u @ part for x, part in zip(bucket.deltas, left.coef.split(ranks, -2), strict=True)]
    v = [x.v @ part for x, part in zip(bucket.deltas, right.coef.split(ranks, -2), strict=True)]
    lefts, rights = left.coords.split(ranks, -1), right.coords.split(ranks, -1)
    return Core(
        bucket,
        torch.cat(u, -2),
        torch.cat(v, -2),
        lefts,
        tuple(x.core for x in bucket.deltas),
        rights,
    )


def significant(s: Tensor, size: int) -> Tensor:
    """Which singular values (L, k), falling, are more than rounding noise of matrices with sides up to ``size``."""
    return s > _EPS * size * s[..., :1]


def weighted_sum(weights: Tensor, x: Tensor) -> Tensor:
    """sum w_i x_i: (L, N), (L, N, p, q) -> (L, p, q)."""
    return torch.einsum("ln,lnpq->lpq", weights, x)


def isometry(x: Tensor, size: int) -> Tensor:
    """The nearest matrices that keep lengths on the row space of x and drop the rest: (L, K, d) -> (L, K, d)."""
    p, s, qt = torch.linalg.svd(x, full_matrices=False)
    return p * significant(s, size).unsqueeze(-2) @ qt


def _stack(bases: Sequence[tuple[Tensor, Tensor]], index: Tensor) -> Tensor:
    """The orthonormal bases x u of the modules of ``index`` side by side: (L', m, sum k)."""
    return torch.cat([x[index] @ u[index] for x, u in bases], -1)
