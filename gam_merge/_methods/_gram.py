"""Inner products of deltas, per module and over all modules of a merge.

Tensor legend: ``N`` adapters of the merge, ``L`` modules in a bucket.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gam_merge._deltas.bucket import Bucket
from gam_merge._methods._rule import Coefficients


def inner_products(bucket: Bucket) -> Tensor:
    """Return <delta_i, delta_j>: (L, N, N) float64."""
    g = torch.diag_embed(bucket.norms.square())
    for i, x in enumerate(bucket.deltas):
        for j, y in enumerate(bucket.deltas[:i]):
            u, v = bucket.cross(i, j)  # (L, k_i, k_j)
            g[:, i, j] = g[:, j, i] = ((x.core.mT @ u) * (v @ y.core.mT)).sum((-2, -1))
    return g


@dataclass(frozen=True)
class GramSummary:
    """<delta_i, delta_j> over all modules, and the weights, by positions of adapters in the merge.

    Summaries of buckets add up, in any order.
    """

    inner: dict[tuple[int, int], float]
    weights: dict[int, float]

    @staticmethod
    def of(bucket: Bucket, weights: Tensor) -> "GramSummary":
        """Sum over the modules of a bucket."""
        g = inner_products(bucket).sum(0).tolist()  # (N, N)
        inner = {}
        for i, row in zip(bucket.adapters, g, strict=True):
            for j, product in zip(bucket.adapters, row, strict=True):
                inner[i, j] = product
        return GramSummary(inner, dict(zip(bucket.adapters, weights[0].tolist(), strict=True)))

    def __add__(self, other: "GramSummary") -> "GramSummary":
        inner = dict(self.inner)
        for pair, product in other.inner.items():
            inner[pair] = inner.get(pair, 0.0) + product
        return GramSummary(inner, self.weights | other.weights)

    def on(self, bucket: Bucket, run: Callable[[Tensor, Tensor], Coefficients]) -> Coefficients:
        """Return the coefficients for the adapters of a bucket, found for those of the whole merge.

        The engine will scale the result by the share of all weight that its adapters hold, but a
        missing delta is zero here already: that share is taken out.
        """
        adapters = sorted(self.weights)
        g = torch.zeros(len(adapters), len(adapters), dtype=torch.float64)
        for (i, j), product in self.inner.items():
            g[adapters.index(i), adapters.index(j)] = product
        w = torch.tensor([self.weights[i] for i in adapters], dtype=torch.float64)
        c, warnings = run(g.unsqueeze(0), (w / w.sum()).unsqueeze(0))  # (1, N)
        present = [adapters.index(i) for i in bucket.adapters]
        share = float(w[present].sum() / w.sum())
        modules, device = len(bucket.names), bucket.norms.device
        c = c[:, present].expand(modules, -1).to(device) / share
        spread = {text: doubtful.expand(modules).to(device) for text, doubtful in warnings.items()}
        return Coefficients(c, spread)
