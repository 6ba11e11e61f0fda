"""LoRA-LEGO (arXiv 2409.16167): group the rank-one units of all adapters, keep one unit per group.

    units x = [a; b] of all adapters: row a of A with column b of B
    k groups by k-means, each replaced by its mean, at the mean max norm of its units

The two published implementations differ, and the official one was not found: Compress then Merge
groups the units as they are and multiplies the result by (R / k)^(1/2), R the number of units;
TARA-Merge groups by direction and multiplies by (r / k)^(1/2), r the rank of an adapter.
"""

from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from gam_kernels import Delta
from gam_merge._common.random import generator
from gam_merge._deltas.bucket import Bucket, Merged
from gam_merge._methods._entries import Seed
from gam_merge._methods._factors import balanced
from gam_merge._methods._rule import rule
from gam_merge._methods._schema import Range

_NOTHING = 1e-12  # of the mean size of its units: a shorter mean is rounding
_TIED = 1e-10  # of the largest square of a unit: singular pairs of one adapter are equally far


@rule(
    "bucket",
    "lego",
    summary="group the rank-one units of all adapters by k-means, and keep the mean of each group",
    reference="arXiv 2409.16167 (ICLR 2025), after two independent implementations",
    use="as a baseline of rank r; try several seeds",
    avoid="where results must not depend on a seed",
    rank="largest",
    composes=False,
    reads_factors=True,
)
def lego(
    bucket: Bucket,
    weights: Tensor,
    *,
    k: Annotated[int, Range(0), "number of groups; 0: the rank of the largest adapter"] = 0,
    factors: Annotated[
        Literal["fixed", "read"], "units of balanced singular pairs, or of the factors as read"
    ] = "fixed",
    distance: Annotated[
        Literal["units", "directions"], "group units as they are, or with both halves at length one"
    ] = "units",
    output_scale: Annotated[
        Literal["rank", "units"], "times (r / k)^(1/2) as in TARA-Merge, or (R / k)^(1/2) as in CtM"
    ] = "rank",
    restarts: Annotated[int, Range(1), "runs of k-means, of which the tightest counts"] = 10,
    iterations: Annotated[int, Range(1), "maximum number of iterations of a run"] = 100,
    seed: Seed = 0,
) -> Merged:
    pairs = list(map(_singular_units, bucket.deltas))
    if factors == "read":
        pairs = list(map(balanced, bucket.factors))
    ranks = [b.shape[-1] for b, _ in pairs]
    k = min(k or max(ranks), sum(ranks))
    b, a = (torch.cat(side, -1) for side in zip(*pairs, strict=True))  # (L, m, R), (L, n, R)
    starts = _random(bucket, ranks, seed, restarts, k)  # (restarts, k, L, R)
    members = _groups(_gram(b, a, distance), starts, iterations)  # (L, R, k)
    owner = torch.repeat_interleave(torch.tensor(ranks)).to(b.device)
    c = _centroids(b, a, members * weights[:, owner].unsqueeze(-1))  # (L, R, k)
    count = max(ranks) if output_scale == "rank" else sum(ranks)
    return Merged(c * (count / k) ** 0.5, c, b=b, a=a)


def _singular_units(x: Delta) -> tuple[Tensor, Tensor]:
    """Balanced singular pairs of a delta, signs decided by b: (L, m, k), (L, n, k)."""
    p, s, qt = torch.linalg.svd(x.core)
    root = s.sqrt().unsqueeze(-2)
    b, a = x.b64 @ x.u @ (p * root), x.a64 @ x.v @ (qt.mT * root)
    sign = torch.where(b.sum(-2, keepdim=True) < 0, -1.0, 1.0)
    return b * sign, a * sign


def _random(bucket: Bucket, ranks: list[int], seed: int, restarts: int, k: int) -> Tensor:
    """Random numbers for every choice of a first centre, by unit: (restarts, k, L, R).

    Each adapter has a stream of its own, so that their order does not count.
    """
    modules = []
    for name in bucket.matrices:
        units = []
        for label, rank in zip(bucket.labels, ranks, strict=True):
            stream = generator(seed, label, name, "lego")
            units.append(torch.rand(restarts, k, rank, generator=stream, dtype=torch.float64))
        modules.append(torch.cat(units, -1))
    return torch.stack(modules, -2).to(bucket.norms.device)


def _gram(b: Tensor, a: Tensor, distance: str) -> Tensor:
    """Inner products of the units that are grouped: (L, R, R)."""
    if distance == "directions":
        b, a = (torch.nn.functional.normalize(x, dim=-2) for x in (b, a))
    return b.mT @ b + a.mT @ a


def _groups(gram: Tensor, starts: Tensor, iterations: int) -> Tensor:
    """Which unit is in which group: (L, R, k), one in each row."""
    best, least = gram.new_zeros(()), gram.new_full(gram.shape[:1], torch.inf)
    for random in starts:  # (k, L, R)
        labels, spread = _lloyd(gram, _first(gram, random), iterations)
        members = one_hot(labels, len(random)).to(gram.dtype)
        best = torch.where((spread < least)[:, None, None], members, best)
        least = torch.minimum(spread, least)
    return best


def _first(gram: Tensor, random: Tensor) -> Tensor:
    """First centres, as coefficients of the units: (L, R, k).

    k-means++: each is drawn with a probability that is its squared distance from those before it.
    """
    squares = gram.diagonal(dim1=-2, dim2=-1)  # (L, R)
    nearest = torch.ones_like(squares)
    chosen: list[Tensor] = []
    for numbers in random:  # (L, R): nearest / exponential is largest with this probability
        unit = (nearest / -numbers.clamp(min=1e-300).log()).argmax(-1)  # (L,)
        to_unit = gram.gather(-1, unit[:, None, None].expand(-1, gram.shape[-1], 1)).squeeze(-1)
        own = squares.gather(-1, unit[:, None])
        apart = (squares - 2 * to_unit + own).clamp(min=0.0)  # (L, R)
        nearest = torch.minimum(nearest, apart) if chosen else apart
        chosen.append(one_hot(unit, gram.shape[-1]))
    return torch.stack(chosen, -1).to(gram.dtype)


def _lloyd(gram: Tensor, centres: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Labels (L, R), and the sum of squared distances from the centres (L,)."""
    squares = gram.diagonal(dim1=-2, dim2=-1)
    labels = torch.full_like(squares, -1, dtype=torch.long)
    for _ in range(iterations):
        cross = gram @ centres  # (L, R, k)
        distances = (centres * cross).sum(-2, keepdim=True) - 2 * cross
        before, labels = labels, _nearest(distances, _TIED * squares.amax(-1))
        members = one_hot(labels, centres.shape[-1]).to(gram.dtype)
        counts = members.sum(-2, keepdim=True)  # (L, 1, k)
        centres = torch.where(counts > 0, members / counts.clamp(min=1), centres)
        if torch.equal(before, labels):
            break
    spread = squares + distances.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return labels, spread.sum(-1)


def _nearest(distances: Tensor, margin: Tensor) -> Tensor:
    """The first of the nearest centres: (L, R, k), (L,) -> (L, R)."""
    least = distances.amin(-1, keepdim=True) + margin[:, None, None]
    return (distances <= least).int().argmax(-1)


def _centroids(b: Tensor, a: Tensor, members: Tensor) -> Tensor:
    """The mean of each group at the mean max norm of its units: coefficients (L, R, k)."""
    total = members.sum(-2, keepdim=True)
    c = members / torch.where(total == 0, 1.0, total)
    sizes = torch.maximum(b.abs().amax(-2), a.abs().amax(-2)).unsqueeze(-2)  # (L, 1, R)
    wanted = sizes @ c  # (L, 1, k)
    size = torch.maximum((b @ c).abs().amax(-2), (a @ c).abs().amax(-2)).unsqueeze(-2)
    real = size > _NOTHING * wanted.abs()
    return c * torch.where(real, wanted / torch.where(real, size, 1.0), 0.0)
