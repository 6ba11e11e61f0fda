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
