"""The common ground of each pair of adapters in a bucket, from small matrices alone.

Tensor legend: ``p`` adapters in the bucket, ``L`` modules, ``m`` out, ``n`` in, ``r`` rank, ``k``
numerical rank, ``s`` sampled rows.
"""

from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from gam_kernels import principal_cosines
from gam_merge._deltas.bucket import Bucket

Pair = tuple[int, int]  # positions of two adapters, the lower first


class Angles(NamedTuple):
    """Cosines of the principal angles of each pair: (L, min(k_i, k_j)), descending."""

    u: dict[Pair, Tensor]  # between column spaces
    v: dict[Pair, Tensor]  # between row spaces


def pairwise(bucket: Bucket) -> tuple[dict[str, Tensor], Angles]:
    """Compute fields of ``Measures``, (L, p, p) float64 each, and the principal angles.

    Pairs are positions in the bucket.
    """
    _ = bucket.stacked_grams  # all pairs are needed: one product for all
    ranks = torch.tensor(bucket.ranks, dtype=torch.float64, device=bucket.deltas[0].core.device)
    energy = bucket.norms.square()  # (L, p)
    gram, common = torch.diag_embed(energy), torch.diag_embed(energy)  # (L, p, p)
    squares_u = torch.diag(ranks).expand_as(gram).clone()  # (L, p, p)
    squares_v = squares_u.clone()
    angles = Angles({}, {})
    for i, j in combinations(range(len(bucket.deltas)), 2):
        x, y = bucket.deltas[i].core, bucket.deltas[j].core  # (L, k_i, k_i), (L, k_j, k_j)
        u, v = bucket.cross(i, j)  # (L, k_i, k_j)
        angles.u[i, j], angles.v[i, j] = principal_cosines(u), principal_cosines(v)
        squares_u[:, i, j] = squares_u[:, j, i] = _energy(u)
        squares_v[:, i, j] = squares_v[:, j, i] = _energy(v)
        gram[:, i, j] = gram[:, j, i] = ((x.mT @ u @ y) * v).sum((-2, -1))
        common[:, i, j], common[:, j, i] = _energy(u.mT @ x @ v), _energy(u @ y @ v.mT)
    m, n = bucket.shape
    products = ranks[:, None] * ranks  # (p, p)
    held = energy.unsqueeze(-1).expand_as(gram)  # (L, p, p), the energy of i in column j
    sums = {
        "gram": gram,
        "common": common,
        "squares_u": squares_u,
        "squares_v": squares_v,
        "held": held,
        "angles": torch.minimum(ranks[:, None], ranks),
        "expected_u": products / m,
        "expected_v": products / n,
        "expected_common": held * ranks.square() / (m * n),
    }
    return {name: value.expand_as(gram) for name, value in sums.items()}, angles


def signs(bucket: Bucket, rows: Tensor) -> dict[str, Tensor]:
    """Count the entries of the given rows whose signs agree, and the entries compared.

    rows: (s,) -> fields of ``Measures``, (L, p, p) float64 each. Nothing else looks at entries of
    the deltas; these are s rows of size n.
    """
    rows_of_signs = []
    for x in bucket.deltas:
        left = x.b64[:, rows] @ (x.u @ x.core @ x.v.mT)  # (L, s, r)
        rows_of_signs.append((left @ x.a64.mT).sign().flatten(1))  # (L, s n)
    stacked = torch.stack(rows_of_signs, 1)  # (L, p, s n)
    nonzero = stacked.abs()
    sampled = nonzero @ nonzero.mT  # (L, p, p), entries in which neither is zero
    balance = stacked @ stacked.mT  # (L, p, p), equal signs less unequal ones
    return {"sampled": sampled, "same_sign": (sampled + balance) / 2}


def _energy(x: Tensor) -> Tensor:
    return x.square().sum((-2, -1))
