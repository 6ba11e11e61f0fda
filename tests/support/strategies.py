"""Merges to try a property on, drawn by hypothesis: shapes, ranks and weights; the entries come from a seed."""

from dataclasses import dataclass

import torch
from helpers import random_factors, stack
from hypothesis import strategies as st
from torch import Tensor

from gam_merge import Adapter


@dataclass(frozen=True)
class Problem:
    """N adapters of one module (m, n), and their weights, which sum to one."""

    pairs: tuple[tuple[Tensor, Tensor], ...]
    weights: tuple[float, ...]

    @property
    def deltas(self) -> list[Tensor]:
        return [b.double() @ a.double() for b, a in self.pairs]

    @property
    def adapters(self) -> list[Adapter]:
        return stack(self.pairs)


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    sizes: tuple[int, int] = (2, 5),
    equal_ranks: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """Small and awkward: wide and tall, r = 1, r = min(m, n), ranks all alike or not, weights all alike or not."""
    m, n = draw(st.integers(2, 17)), draw(st.integers(2, 17))
    count = draw(st.integers(*sizes))
    rank = st.integers(1, min(m, n, 6))
    ranks = [draw(rank)] * count if equal_ranks else [draw(rank) for _ in range(count)]
    raw = draw(
        st.just([1.0] * count) | st.lists(st.floats(0.05, 1.0), min_size=count, max_size=count)
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    pairs = tuple(random_factors(generator, m, n, r, dtype) for r in ranks)
    return Problem(pairs, tuple(w / sum(raw) for w in raw))


def well_posed(problem: Problem) -> bool:
    """No principal angle is so close to a right one that the rotation is decided by rounding: the condition number
    of the polar factor is one over the smallest cosine."""
    spaces = [[torch.linalg.qr(x)[0] for x in (b.double(), a.double().T)] for b, a in problem.pairs]
    cosines = [
        torch.linalg.svdvals(p.T @ q).min()
        for x in spaces
        for y in spaces
        for p, q in zip(x, y, strict=True)
    ]
    return min(cosines) > 1e-3


generators = st.integers(0, 2**32 - 1).map(lambda seed: torch.Generator().manual_seed(seed))
