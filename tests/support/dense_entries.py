"""Oracles of the rules that look at entries, and of the spaces that they look at them in, on dense float64 matrices.

A space gives the matrices that a rule sees and the way back. Rules take matrices of one shape. Random rules are given
their random numbers, one matrix an adapter, since those are all that an oracle cannot know.
"""

from collections.abc import Callable, Sequence

import torch
from dense import numerical_rank
from torch import Tensor

Matrices = Sequence[Tensor]


def trim(x: Tensor, first: int, last: int) -> Tensor:
    """Of the entries by falling size, those from place ``first`` (from 0) up to ``last``; the others zero."""
    order = x.abs().flatten().argsort(descending=True)[first:last]
    out = torch.zeros_like(x).flatten()
    out[order] = x.flatten()[order]
    return out.reshape(x.shape)


def linear(xs: Matrices, weights: Sequence[float]) -> Tensor:
    return sum(w * x for w, x in zip(weights, xs, strict=True))


def elect(xs: Matrices, weights: Sequence[float], sign: str) -> Tensor:
    """Entry by entry, in the plainest words."""
    out = torch.zeros_like(xs[0])
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            entries = [(w, float(x[i, j])) for w, x in zip(weights, xs, strict=True)]
            votes = {
                "weighted": sum(w * v for w, v in entries),
                "total": sum(v for _, v in entries),
                "frequency": sum((v > 0) - (v < 0) for _, v in entries),
            }[sign]
            agree = [(w, v) for w, v in entries if (v > 0 if votes >= 0 else v < 0)]
            if agree:
                out[i, j] = sum(w * v for w, v in agree) / sum(w for w, _ in agree)
    return out


def ties(
    xs: Matrices, weights: Sequence[float], density: float = 0.2, sign: str = "weighted"
) -> Tensor:
    return elect([trim(x, 0, max(1, int(density * x.numel()))) for x in xs], weights, sign)


def magnitude(xs: Matrices, weights: Sequence[float], density: float = 0.5) -> Tensor:
    return linear([trim(x, 0, max(1, int(density * x.numel()))) for x in xs], weights)


def breadcrumbs(
    xs: Matrices, weights: Sequence[float], density: float = 0.9, gamma: float = 0.01
) -> Tensor:
    return linear(
        [trim(x, int(gamma * x.numel()), int((gamma + density) * x.numel())) for x in xs], weights
    )


def magmax(xs: Matrices, weights: Sequence[float]) -> Tensor:
    out = torch.zeros_like(xs[0])
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            entries = [w * float(x[i, j]) for w, x in zip(weights, xs, strict=True)]
            out[i, j] = max(entries, key=abs)
    return out


def dropped(xs: Matrices, uniforms: Matrices, density: float) -> list[Tensor]:
    return [torch.where(u < density, x / density, 0.0) for x, u in zip(xs, uniforms, strict=True)]


def dare(
    xs: Matrices, weights: Sequence[float], uniforms: Matrices, density: float = 0.9
) -> Tensor:
    return linear(dropped(xs, uniforms, density), weights)


def dare_ties(
    xs: Matrices,
    weights: Sequence[float],
    uniforms: Matrices,
    density: float = 0.9,
    sign: str = "weighted",
) -> Tensor:
    return elect(dropped(xs, uniforms, density), weights, sign)


def dropped_by_size(
    xs: Matrices, uniforms: Matrices, density: float, epsilon: float
) -> list[Tensor]:
    out = []
    for x, u in zip(xs, uniforms, strict=True):
        y = torch.zeros_like(x)
        for row in range(x.shape[0]):
            order = x[row].abs().argsort().tolist()
            for place, column in enumerate(order):
                p = density - epsilon + 2 * epsilon * place / max(1, len(order) - 1)
                p = min(max(p, 0.0), 1.0)
                if u[row, column] < p:
                    y[row, column] = x[row, column] / p
        out.append(y)
    return out


def della_linear(
    xs: Matrices,
    weights: Sequence[float],
    uniforms: Matrices,
    density: float = 0.7,
    epsilon: float = 0.15,
) -> Tensor:
    return linear(dropped_by_size(xs, uniforms, density, epsilon), weights)


def della(
    xs: Matrices,
    weights: Sequence[float],
    uniforms: Matrices,
    density: float = 0.7,
    epsilon: float = 0.15,
) -> Tensor:
    return elect(dropped_by_size(xs, uniforms, density, epsilon), weights, "weighted")


Back = Callable[[Tensor], Tensor]


def orient(basis: Tensor) -> Tensor:
    """Columns whose entries add up to more than zero."""
    return basis * torch.where(basis.sum(0) < 0, -1.0, 1.0)


def in_core(deltas: Matrices) -> tuple[list[Tensor], Back]:
    side, top = torch.cat(list(deltas), 1), torch.cat(list(deltas), 0)
    p = orient(torch.linalg.svd(side)[0][:, : numerical_rank(side)])
    q = orient(torch.linalg.svd(top)[2][: numerical_rank(top)].T)
    return [p.T @ delta @ q for delta in deltas], lambda x: p @ x @ q.T


def in_knots(deltas: Matrices) -> tuple[list[Tensor], Back]:
    side = torch.cat(list(deltas), 1)
    p = orient(torch.linalg.svd(side, full_matrices=False)[0][:, : numerical_rank(side)])
    return list((p.T @ side).split(deltas[0].shape[1], 1)), lambda x: p @ x


def in_drm(
    deltas: Matrices, keep: float = 0.2, least: float = 0.01, *, vertical: bool = False
) -> tuple[list[Tensor], Back]:
    """The entries of V_i, or of U_i, that stay at equal lengths, times S_i."""
    if vertical:
        rows, back = in_drm([delta.T for delta in deltas], keep, least)
        return rows, lambda x: back(x).T
    side = torch.cat(list(deltas), 1)
    u, s, _ = torch.linalg.svd(side, full_matrices=False)
    u = orient(u[:, : min(numerical_rank(side), int((s > least * s[0]).sum()))])
    rows = [u.T @ delta for delta in deltas]
    units = [row / row.norm(dim=1, keepdim=True) for row in rows]
    sizes = sorted(torch.cat(units, 0).abs().flatten().tolist(), reverse=True)
    smallest = sizes[min(round(keep * len(sizes)), len(sizes) - 1)] - 1e-9  # with its equals
    kept = [row * (unit.abs() > smallest) for row, unit in zip(rows, units, strict=True)]
    return kept, lambda x: u @ x


def in_delta(deltas: Matrices) -> tuple[list[Tensor], Back]:
    return list(deltas), lambda x: x


def in_ctm(deltas: Matrices, k: int, beta: float = 0.0) -> tuple[list[Tensor], Back]:
    norms = [float(delta.norm()) for delta in deltas]
    mean = sum(norms) / len(norms)
    targets = [
        delta / n * (beta * n + (1 - beta) * mean) for delta, n in zip(deltas, norms, strict=True)
    ]
    u = torch.linalg.svd(torch.cat(targets, 1))[0][:, :k]
    v = torch.linalg.svd(torch.cat(targets, 0))[2][:k].T
    for _ in range(1000):  # to the end
        u = torch.linalg.svd(torch.cat([d @ v for d in targets], 1))[0][:, :k]
        v = torch.linalg.svd(torch.cat([u.T @ d for d in targets], 0))[2][:k].T
    u, v = orient(u), orient(v)
    return [u.T @ delta @ v for delta in deltas], lambda x: u @ x @ v.T
