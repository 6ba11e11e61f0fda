"""Geometric Alignment Merging (arXiv 2606.00357, section 4, equations 1 to 5).

    delta_i = U_i S_i V_i^T
    R_i^U = argmin over R of |U_i R - U_ref|_F, likewise R_i^V
    merged = (sum w_i U_i R_i^U) (sum w_i R_i^U^T S_i R_i^V) (sum w_i V_i R_i^V)^T

The result depends on the subspaces and the products alone, so any orthonormal bases with a full
core serve in place of singular vectors. It is a consensus filter: for two adapters of equal weight
it is the mean, projected on the directions that they share most (docs/gam.md has the proof).

Extensions of the paper's rule: ``anchor=mean`` aligns to the running mean of the aligned bases
instead of one adapter (generalised Procrustes; Gower, Psychometrika 40, 1975). ``anchor=none``
aligns nothing: it is P_U (sum w_i delta_i) P_V, with the projectors on the leading eigenvectors of
sum w_i U_i U_i^T and sum w_i V_i V_i^T, as many as the largest rank. ``orthonormalize=polar``
brings the two mean bases back to orthonormal ones (a reading of the paper's appendix C), so that
only the core shrinks.
"""

from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from gam_kernels import procrustes
from gam_merge._deltas.bucket import Bucket, Merged
from gam_merge._methods._rule import rule
from gam_merge._methods._schema import Range

_SINGULAR = 1e-6  # a smaller principal cosine leaves the rotation to rounding
_CONVERGED = 1e-12  # relative change of the running mean
_ARBITRARY = "the adapters share too little: their mean is arbitrary"


class _Aligned(NamedTuple):
    """Rotations of each adapter's bases (L, k_i, k), and where one is left to rounding."""

    u: list[Tensor]
    v: list[Tensor]
    warnings: dict[str, Tensor]


@rule(
    "bucket",
    "gam",
    summary="align singular subspaces by orthogonal Procrustes, then average bases and cores",
    reference="arXiv 2606.00357, equations 1 to 5; anchor=mean and anchor=none: this project",
    use="to repeat the paper, or where what the adapters do not share is noise; no better than the "
    "mean in what was measured",
    avoid="for specialists and separate initialisations: where subspaces do not overlap, little is "
    "left; the default, auto, tests for that",
    rank="largest",
    anchored=True,
    breaks={"permutation": "the anchor is one of the adapters (anchor=none and =mean have none)"},
)
def gam(
    bucket: Bucket,
    weights: Tensor,
    *,
    anchor: Annotated[
        Literal["adapter", "mean", "none"],
        "align to one adapter or to the running mean of all, or project the mean on what is shared",
    ] = "adapter",
    orthonormalize: Annotated[
        Literal["none", "polar"], "polar: make the mean bases orthonormal"
    ] = "none",
    iterations: Annotated[int, Range(1), "maximum number of iterations of anchor=mean"] = 200,
) -> Merged:
    if anchor == "none":
        return _projected_mean(bucket, weights)
    aligned = _to_adapter(bucket) if anchor == "adapter" else _to_mean(bucket, weights, iterations)
    core = torch.zeros((), dtype=torch.float64, device=weights.device)
    lefts, rights = [], []
    for i, delta in enumerate(bucket.deltas):
        w = weights[:, i, None, None]  # (L, 1, 1)
        lefts.append(w * delta.u @ aligned.u[i])  # (L, r_i, k)
        rights.append(w * delta.v @ aligned.v[i])
        core = core + w * aligned.u[i].mT @ delta.core @ aligned.v[i]  # (L, k, k)
    left, right = torch.cat(lefts, -2), torch.cat(rights, -2)  # (L, R, k)
    if orthonormalize == "polar":
        gram_b, gram_a = bucket.stacked_grams
        left, right = _orthonormal(left, gram_b), _orthonormal(right, gram_a)
    return _balanced(left, core, right, aligned.warnings)


def _projected_mean(bucket: Bucket, weights: Tensor) -> Merged:
    """Project the mean on the directions that the adapters share most: P_U mean P_V."""
    gram_u, gram_v = bucket.basis_grams
    u, doubtful_u = _most_shared(bucket.ranks, gram_u, weights)  # (L, sum k, k)
    v, doubtful_v = _most_shared(bucket.ranks, gram_v, weights)
    within_u = (gram_u @ u).split(bucket.ranks, -2)  # U_i^T U, (L, k_i, k) each
    within_v = (gram_v @ v).split(bucket.ranks, -2)
    core = torch.zeros((), dtype=torch.float64, device=weights.device)
    for i, delta in enumerate(bucket.deltas):
        core = core + weights[:, i, None, None] * within_u[i].mT @ delta.core @ within_v[i]
    lefts, rights = u.split(bucket.ranks, -2), v.split(bucket.ranks, -2)
    left = torch.cat([x.u @ part for x, part in zip(bucket.deltas, lefts, strict=True)], -2)
    right = torch.cat([x.v @ part for x, part in zip(bucket.deltas, rights, strict=True)], -2)
    return _balanced(left, core, right, {_ARBITRARY: doubtful_u | doubtful_v})


def _balanced(left: Tensor, core: Tensor, right: Tensor, warnings: dict[str, Tensor]) -> Merged:
    """Return left core right^T, the core half on each side."""
    p, s, qt = torch.linalg.svd(core)
    balance = s.sqrt().unsqueeze(-2)  # (L, 1, k)
    return Merged(left @ (p * balance), right @ (qt.mT * balance), warnings)


def _most_shared(ranks: tuple[int, ...], g: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the directions that subspaces share most, and where they are arbitrary.

    g: the Gram matrix of X = [U_1 ... U_N]. The directions are the leading eigenvectors X c of
    sum w_i U_i U_i^T, as many as the largest rank: c (L, sum k, k). They are arbitrary (L,) where
    the next one is shared as much.
    """
    k = max(ranks)
    counts = torch.tensor(ranks, device=weights.device)
    root = torch.repeat_interleave(weights, counts, -1).sqrt().unsqueeze(-1)  # (L, sum k, 1)
    values, z = torch.linalg.eigh(root * g * root.mT)
    c = root * z[..., -k:] * values[:, None, -k:].rsqrt()
    if g.shape[-1] == k:
        return c, torch.zeros(len(g), dtype=torch.bool, device=g.device)
    return c, values[:, -k] - values[:, -k - 1] < _SINGULAR


def _to_adapter(bucket: Bucket) -> _Aligned:
    """Align to the reference adapter, in one step."""
    reference = bucket.reference
    us, vs = [], []
    doubtful = torch.zeros(len(bucket.names), dtype=torch.bool, device=bucket.norms.device)
    for i, delta in enumerate(bucket.deltas):
        if i == reference:
            eye = torch.eye(delta.core.shape[-1], dtype=torch.float64, device=doubtful.device)
            us.append(eye)
            vs.append(eye)
            continue
        (u, cosines_u), (v, cosines_v) = map(procrustes, bucket.cross(i, reference))
        doubtful |= torch.minimum(cosines_u[:, -1], cosines_v[:, -1]) < _SINGULAR
        us.append(u)
        vs.append(v)
    warnings = {"a subspace is orthogonal to the anchor's: the alignment is arbitrary": doubtful}
    if len(bucket.deltas) > 1 and bucket.adapters[reference] != bucket.anchor:
        text = (
            f"aligned to adapter {bucket.adapters[reference]}: "
            "the anchor's delta has a lower rank here, or is missing"
        )
        warnings[text] = torch.ones_like(doubtful)
    return _Aligned(us, vs, warnings)


def _to_mean(bucket: Bucket, weights: Tensor, iterations: int) -> _Aligned:
    """Align to the running mean of both sides, which do not depend on each other."""
    gram_u, gram_v = bucket.basis_grams
    us, doubts_u = _procrustes_mean(bucket.ranks, gram_u, weights, iterations)
    vs, doubts_v = _procrustes_mean(bucket.ranks, gram_v, weights, iterations)
    return _Aligned(us, vs, {text: doubts_u[text] | doubts_v[text] for text in doubts_u})


def _procrustes_mean(
    ranks: tuple[int, ...], g: Tensor, weights: Tensor, iterations: int
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Rotations (L, k_i, k) that bring bases close to their own mean.

    g: the Gram matrix of [U_1 ... U_N].

    The mean is X c with X = [U_1 ... U_N]. It starts at the directions that are shared most, which
    no order of the adapters changes, and each step lowers sum w_i |U_i R_i - mean|^2.
    """
    sizes = list(ranks)
    counts = torch.tensor(sizes, device=weights.device)
    w = torch.repeat_interleave(weights, counts, -1)  # (L, sum k)
    mean, arbitrary = _most_shared(ranks, g, weights)  # (L, sum k, k)
    moving = torch.ones(len(g), dtype=torch.bool, device=g.device)
    for _ in range(iterations):
        rotations, _ = _rotations(g @ mean, sizes)
        new = w.unsqueeze(-1) * torch.cat(rotations, -2)
        new = torch.where(moving[:, None, None], new, mean)
        moving &= ~((new - mean).norm(dim=(-2, -1)) <= _CONVERGED * new.norm(dim=(-2, -1)))
        mean = new
        if not moving.any():
            break
    rotations, smallest = _rotations(g @ mean, sizes)
    return rotations, {
        "the running mean did not converge": moving,
        _ARBITRARY: arbitrary | (smallest < _SINGULAR),
    }


def _rotations(cross: Tensor, sizes: list[int]) -> tuple[list[Tensor], Tensor]:
    """Rotations (L, k_i, k) towards a mean, and the smallest cosine (L,): cross (L, sum k, k)."""
    aligned = [procrustes(x) for x in cross.split(sizes, -2)]
    smallest = torch.stack([polar.cosines[:, -1] for polar in aligned]).amin(0)
    return [polar.rotation for polar in aligned], smallest


def _orthonormal(x: Tensor, g: Tensor) -> Tensor:
    """Coefficients of the orthonormal basis nearest to that of x: (L, R, k).

    g: (L, R, R), the Gram matrix of the factors.
    """
    values, vectors = torch.linalg.eigh(x.mT @ g @ x)
    floor = torch.finfo(values.dtype).eps * values[:, -1:]
    inverse = torch.where(values > floor, values.rsqrt(), 0.0).unsqueeze(-2)
    return x @ (vectors * inverse) @ vectors.mT
