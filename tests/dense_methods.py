"""Oracles: the catalogue's methods on dense float64 matrices, one module at a time, written from their equations.

Nothing here is shared with the library. ``deltas`` are (m, n) with the scale folded in, ``weights`` sum to one where a
method averages.
"""

from collections.abc import Sequence

import torch
from dense import numerical_rank, polar
from torch import Tensor

Deltas, Weights = Sequence[Tensor], Sequence[float]


def thin(delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, k), s (k), V (n, k) of the numerical rank k."""
    u, s, vt = torch.linalg.svd(delta, full_matrices=False)
    k = numerical_rank(delta)
    return u[:, :k], s[:k], vt[:k].T


def weighted(deltas: Deltas, weights: Weights) -> Tensor:
    return sum(w * delta for w, delta in zip(weights, deltas, strict=True))


def rescaled(x: Tensor, deltas: Deltas, weights: Weights) -> Tensor:
    """To the mean norm of the deltas."""
    mean = sum(w * d.norm() for w, d in zip(weights, deltas, strict=True)) / sum(weights)
    return x * mean / x.norm()


def procrustes_mean(bases: Sequence[Tensor], weights: Weights, steps: int = 500) -> list[Tensor]:
    """The bases, each rotated towards the mean of all until nothing moves."""
    k = max(q.shape[1] for q in bases)
    projector = sum(w * q @ q.T for w, q in zip(weights, bases, strict=True))
    mean = torch.linalg.eigh(projector)[1][:, -k:]
    for _ in range(steps):
        aligned = [q @ polar(q.T @ mean) for q in bases]
        mean = weighted(aligned, weights)
    return aligned


def gam(deltas: Deltas, weights: Weights, *, anchor: int | None = 0, orthonormal: bool = False) -> Tensor:
    """GAM with its options. ``anchor=None``: the running mean."""
    us, _, vs = zip(*(thin(delta) for delta in deltas), strict=True)
    if anchor is None:
        us_aligned, vs_aligned = procrustes_mean(us, weights), procrustes_mean(vs, weights)
    else:
        us_aligned = [u @ polar(u.T @ us[anchor]) for u in us]
        vs_aligned = [v @ polar(v.T @ vs[anchor]) for v in vs]
    u_mean, v_mean = weighted(us_aligned, weights), weighted(vs_aligned, weights)
    if orthonormal:
        u_mean, v_mean = polar(u_mean), polar(v_mean)
    parts = zip(us_aligned, deltas, vs_aligned, strict=True)
    core = weighted([torch.linalg.pinv(u) @ delta @ torch.linalg.pinv(v).T for u, delta, v in parts], weights)
    return u_mean @ core @ v_mean.T


def power(p: Tensor, exponent: float, floor: float) -> Tensor:
    """A symmetric matrix's function max(l, floor)^exponent on its range, zero off it."""
    values, vectors = torch.linalg.eigh(p)
    real = values > 1e-10
    return vectors * torch.where(real, values.clamp(min=floor) ** exponent, 0.0) @ vectors.T


def flat(x: Tensor, q: float) -> Tensor:
    """Every non-zero singular value s becomes mean(s)^(1-q) s^q."""
    u, s, v = thin(x)
    return u * (s.mean() ** (1 - q) * s**q) @ v.T


def consensus(
    deltas: Deltas, weights: Weights, *, p_u: float, p_v: float, q: float = 1.0, floor: bool = True
) -> Tensor:
    us, _, vs = zip(*(thin(delta) for delta in deltas), strict=True)
    floor = 1 / len(deltas) if floor else 1e-300
    left = power(weighted([u @ u.T for u in us], weights), p_u, floor)
    right = power(weighted([v @ v.T for v in vs], weights), p_v, floor)
    return flat(left @ weighted(deltas, weights) @ right, q)


def iso_c(deltas: Deltas, weights: Weights) -> Tensor:
    return flat(weighted(deltas, weights), 0.0)


def tsvm(deltas: Deltas, weights: Weights) -> Tensor:
    us, ss, vs = zip(*(thin(delta) for delta in deltas), strict=True)
    s = torch.cat([w * s for w, s in zip(weights, ss, strict=True)])
    return isometry(torch.cat(us, 1)) * s @ isometry(torch.cat(vs, 1)).T


def isometry(x: Tensor) -> Tensor:
    """The polar factor on the row space of x."""
    p, _, q = thin(x)
    return p @ q.T


def iso_cts(deltas: Deltas, weights: Weights, fraction: float = 0.8) -> Tensor:
    scaled = [w * delta for w, delta in zip(weights, deltas, strict=True)]
    k = min(numerical_rank(torch.cat(scaled, 1)), numerical_rank(torch.cat(scaled, 0)))
    own = int((1 - fraction) * k / len(deltas) + 1e-9)
    u, s, v = (side[..., : k - len(deltas) * own] for side in thin(sum(scaled)))
    parts = [[side[..., :own] for side in thin(delta - u @ u.T @ delta)] for delta in scaled]
    u, s, v = (torch.cat(side, -1) for side in zip((u, s, v), *parts, strict=True))
    return s.mean() * isometry(u) @ isometry(v).T
