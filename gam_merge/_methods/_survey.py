"""Summaries of a whole merge, for methods that look at all modules at once: they add up over buckets, in any order.

Tensor legend: ``N`` adapters of the merge, ``L`` modules in a bucket.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gam_merge._deltas.bucket import Bucket
from gam_merge._methods._rule import Coefficients


def inner_products(bucket: Bucket) -> Tensor:
    """<delta_i, delta_j>: (L, N, N) float64."""
    g = torch.diag_embed(bucket.norms.square())
    for i, x in enumerate(bucket.deltas):
        for j, y in enumerate(bucket.deltas[:i]):
            u, v = bucket.cross(i, j)  # (L, k_i, k_j)
            g[:, i, j] = g[:, j, i] = ((x.core.mT @ u) * (v @ y.core.mT)).sum((-2, -1))
    return g


@dataclass(frozen=True)
class GramSummary:
    """<delta_i, delta_j> over all modules, and the weights, by the positions of the adapters in the merge."""

    inner: dict[tuple[int, int], float]
    weights: dict[int, float]

    @staticmethod
    def of(bucket: Bucket, weights: Tensor) -> "GramSummary":
        g = inner_products(bucket).sum(0).tolist()  # (N, N)
        inner = {
            (i, j): g[p][q]
            for p, i in enumerate(bucket.adapters)
            for q, j in enumerate(bucket.adapters)
        }
        return GramSummary(inner, dict(zip(bucket.adapters, weights[0].tolist(), strict=True)))

    def __add__(self, other: "GramSummary") -> "GramSummary":
        inner = {
            ij: self.inner.get(ij, 0.0) + other.inner.get(ij, 0.0)
            for ij in self.inner | other.inner
        }
        return GramSummary(inner, self.weights | other.weights)

    def on(self, bucket: Bucket, run: Callable[[Tensor, Tensor], Coefficients]) -> Coefficients:
        """The coefficients of all adapters, for those of a bucket. The engine will scale the result by the part of
        all weight that is theirs, but here a missing delta is zero already: that part is taken out."""
        positions = sorted(self.weights)
        g = torch.tensor(
            [[self.inner.get((i, j), 0.0) for j in positions] for i in positions],
            dtype=torch.float64,
        )
        w = torch.tensor([self.weights[i] for i in positions], dtype=torch.float64)
        c, warnings = run(g.unsqueeze(0), (w / w.sum()).unsqueeze(0))  # (1, N)
        here = [positions.index(i) for i in bucket.adapters]
        share = float(w[here].sum() / w.sum())
        modules, device = len(bucket.names), bucket.norms.device
        c = c[:, here].expand(modules, -1).to(device) / share
        return Coefficients(
            c, {text: where.expand(modules).to(device) for text, where in warnings.items()}
        )
