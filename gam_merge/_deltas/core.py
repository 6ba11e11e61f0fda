"""Core space: the deltas of a bucket as small matrices, in orthonormal bases of all they span.

A map that commutes with orthonormal changes of basis may be run on the cores and lifted afterwards:
nothing of size out x in is formed, and the result is exact.

Tensor legend: ``N`` adapters, ``L`` modules, ``m`` out, ``n`` in, ``R`` sum of ranks, ``k``
numerical rank of a delta, ``K`` and ``J`` dimensions of what the deltas span together on the left
and on the right.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from gam_kernels import Delta, Span, gram, span, thin_svd
from gam_merge._deltas.bucket import Bucket, Merged

_EPS = torch.finfo(torch.float64).eps


class InCore(NamedTuple):
    """A merged core, and in words what was doubtful about it, in which modules.

    Example:
        >>> from gam_merge.rules import InCore, rule, weighted_sum
        >>> import torch
        >>> @rule("core", "plain_mean", summary="the mean, with a warning")
        ... def plain_mean(core, weights):
        ...     x = weighted_sum(weights, core.m)  # (L, K, J)
        ...     opposed = torch.linalg.matrix_norm(x) < 1e-3 * core.norms.amin(-1)  # (L,)
        ...     return InCore(x, {"the adapters cancel out": opposed})
        >>> plain_mean.kind
        'core'
    """

    x: Tensor  # (L, K, J)
    warnings: Mapping[str, Tensor] = {}  # text -> (L,) bool


@dataclass(frozen=True)
class Core:
    """The deltas of a bucket in core space: delta_i = Q_u m_i Q_v^T, m_i = left_i core_i right_i^T.

    left_i, right_i, Q_u and Q_v are orthonormal. Q_u = [b_1 ... b_N] u and Q_v = [a_1 ... a_N] v
    are not formed.

    Example:
        >>> import torch
        >>> from gam_merge.rules import Core, InCore, rule
        >>> @rule("core", "loudest", summary="the delta with the largest norm", rank="largest")
        ... def loudest(core: Core, weights):
        ...     winner = core.norms.argmax(-1)  # (L,)
        ...     return InCore(core.m[torch.arange(len(winner)), winner])
        >>> loudest.rank
        'largest'
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

    def left_basis(self) -> Tensor:
        """Return Q_u itself: (L, m, K) float64."""
        return _product([x.b64 for x in self.bucket.deltas], self.u)

    def right_basis(self) -> Tensor:
        """Return Q_v itself: (L, n, J) float64."""
        return _product([x.a64 for x in self.bucket.deltas], self.v)

    def orient(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return singular vectors in core space, their signs decided: (L, K, k), (L, J, k).

        Each gets the sign that makes the entries of Q_u u or Q_v v add up to more than zero. For
        rules that see signs, whichever the decomposition returned.
        """
        deltas = self.bucket.deltas
        b = torch.cat([_column_sums(x.exact_b) for x in deltas], -1)  # (L, 1, R)
        a = torch.cat([_column_sums(x.exact_a) for x in deltas], -1)
        u = u * torch.where(b @ self.u @ u < 0, -1.0, 1.0)
        v = v * torch.where(a @ self.v @ v < 0, -1.0, 1.0)
        return u, v

    def scaled(self, c: Tensor) -> "Core":
        """Return every delta i times c_i: (L, N)."""
        cores = tuple(core * c[:, i, None, None] for i, core in enumerate(self.cores))
        return replace(self, cores=cores)

    def mapped(self, s: Tensor) -> "Core":
        """Return every delta multiplied by a regular s (L, K, K) from the left."""
        lefts, cores = [], []
        for left, core in zip(self.lefts, self.cores, strict=True):
            q, r = torch.linalg.qr(s @ left)
            lefts.append(q)
            cores.append(r @ core)
        return replace(self, lefts=tuple(lefts), cores=tuple(cores))

    def read_lefts(self) -> list[Tensor]:
        """Return the factors scale * B as they were read, in the basis Q_u: (L, K, r_i)."""
        stack = torch.cat([x.b64 for x in self.bucket.deltas], -1)  # (L, m, R)
        return [self.u.mT @ gram(stack, x.b) * x.scale[:, None, None] for x in self.bucket.factors]

    def small(self) -> Bucket:
        """Return the cores as a bucket of modules (K, J), for rules written for buckets."""
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
        """Return a merged core in coefficients of the stacked factors: balanced singular pairs."""
        p, s, qt = thin_svd(merged.x)  # (L, K, k), (L, k), (L, k, J)
        root = s.sqrt().unsqueeze(-2)
        return Merged(self.u @ (p * root), self.v @ (qt.mT * root), merged.warnings, s)


def by_span(bucket: Bucket) -> Iterator[Bucket]:
    """Split a bucket by the dimensions of what its deltas span, and work out these spans."""
    if not bucket.deltas:
        yield bucket
        return
    left, right = _spans(bucket)
    wide = (left.wide | right.wide).long()
    keys = torch.stack([left.rank, right.rank, wide], -1).tolist()  # (L, 3)
    groups: dict[tuple[int, ...], list[int]] = {}
    for j, key in enumerate(keys):
        groups.setdefault(tuple(key), []).append(j)
    for (rank_u, rank_v, is_wide), members in groups.items():
        index = torch.tensor(members, device=left.coef.device)
        part = bucket.select(index, wide=bool(is_wide))
        yield replace(part, spans=(left.select(index, rank_u), right.select(index, rank_v)))


def _spans(bucket: Bucket) -> tuple[Span, Span]:
    """Joint spans of the U_i and of the V_i."""
    eps = torch.finfo(bucket.deltas[0].b.dtype).eps
    g_u, g_v = bucket.basis_grams
    u = partial(_stack, [(x.exact_b, x.u) for x in bucket.deltas])
    v = partial(_stack, [(x.exact_a, x.v) for x in bucket.deltas])
    m, n = bucket.shape
    return span(g_u, u, rows=m, eps=eps), span(g_v, v, rows=n, eps=eps)


def core_of(bucket: Bucket) -> Core:
    """Return the core of a bucket that ``by_span`` made."""
    assert bucket.spans is not None, "only methods that ask for cores get buckets that have one"
    left, right = bucket.spans
    ranks = list(bucket.ranks)
    u = [x.u @ part for x, part in zip(bucket.deltas, left.coef.split(ranks, -2), strict=True)]
    v = [x.v @ part for x, part in zip(bucket.deltas, right.coef.split(ranks, -2), strict=True)]
    return Core(
        bucket,
        u=torch.cat(u, -2),
        v=torch.cat(v, -2),
        lefts=left.coords.split(ranks, -1),
        cores=tuple(x.core for x in bucket.deltas),
        rights=right.coords.split(ranks, -1),
    )


def significant(s: Tensor, size: int) -> Tensor:
    """Return which singular values are more than the rounding noise of matrices.

    Args:
        s: Singular values (L, k), falling.
        size: The longest side of the matrices.

    Returns:
        Which count: (L, k) bool.

    Example:
        >>> import torch
        >>> from gam_merge.rules import significant
        >>> significant(torch.tensor([[1.0, 1e-3, 1e-18]]), size=4096).tolist()
        [[True, True, False]]
    """
    return s > _EPS * size * s[..., :1]


def weighted_sum(weights: Tensor, x: Tensor) -> Tensor:
    """Return sum w_i x_i.

    Args:
        weights: (L, N).
        x: Matrices (L, N, p, q).

    Returns:
        The sums (L, p, q).

    Example:
        >>> import torch
        >>> from gam_merge.rules import weighted_sum
        >>> weighted_sum(torch.tensor([[0.5, 0.25]]), torch.ones(1, 2, 3, 3))[0, 0, 0].item()
        0.75
    """
    return torch.einsum("ln,lnpq->lpq", weights, x)


def isometry(x: Tensor, size: int) -> Tensor:
    """Return the nearest matrices that keep lengths on the row space of x and drop the rest.

    x: (L, K, d) -> (L, K, d). size: as in ``significant``.
    """
    p, s, qt = torch.linalg.svd(x, full_matrices=False)
    return p * significant(s, size).unsqueeze(-2) @ qt


def flat(s: Tensor, size: int) -> Tensor:
    """Return singular values (L, k), falling, all set to the mean of the significant ones.

    Those that are not significant become zero. size: as in ``significant``.
    """
    real = significant(s, size)
    mean = (s * real).sum(-1, keepdim=True) / real.sum(-1, keepdim=True).clamp(min=1)
    return mean * real


def _column_sums(x: Tensor) -> Tensor:
    """Return the sums of columns, added in float64 without a copy: (L, m, r) -> (L, 1, r)."""
    return x.sum(-2, keepdim=True, dtype=torch.float64)


def _product(factors: Sequence[Tensor], coefficients: Tensor) -> Tensor:
    """[x_1 ... x_N] c without stacking: factors (L, m, r_i), c (L, R, K) -> (L, m, K)."""
    parts = coefficients.split([x.shape[-1] for x in factors], -2)
    out = factors[0] @ parts[0]
    for x, part in zip(factors[1:], parts[1:], strict=True):
        out = out + x @ part
    return out


def _stack(bases: Sequence[tuple[Tensor, Tensor]], index: Tensor) -> Tensor:
    """The orthonormal bases x u of some modules side by side: (L', m, sum k) float64."""
    return torch.cat([x[index].double() @ u[index] for x, u in bases], -1)
