"""Oracles: the catalogue's methods on dense float64 matrices, one module at a time, written from their equations.

Nothing here is shared with the library. ``deltas`` are (m, n) with the scale folded in, ``weights`` sum to one where a
method averages.
"""

import math
from collections.abc import Sequence

import torch
from dense import numerical_rank, polar
from dense_entries import elect, trim
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


def gam(
    deltas: Deltas, weights: Weights, *, anchor: int | None = 0, orthonormal: bool = False
) -> Tensor:
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
    core = weighted(
        [torch.linalg.pinv(u) @ delta @ torch.linalg.pinv(v).T for u, delta, v in parts], weights
    )
    return u_mean @ core @ v_mean.T


def projected_mean(deltas: Deltas, weights: Weights) -> Tensor:
    """P_U mean P_V, on as many of the most shared directions as the largest rank."""
    us, _, vs = zip(*(thin(delta) for delta in deltas), strict=True)
    k = max(u.shape[1] for u in us)
    sides = []
    for bases in (us, vs):
        projector = sum(w * q @ q.T for w, q in zip(weights, bases, strict=True))
        shared = torch.linalg.eigh(projector)[1][:, -k:]
        sides.append(shared @ shared.T)
    return sides[0] @ weighted(deltas, weights) @ sides[1]


def power(p: Tensor, exponent: float, floor: float) -> Tensor:
    """A symmetric matrix's function max(l, floor)^exponent on its range, zero off it."""
    values, vectors = torch.linalg.eigh(p)
    real = values > 1e-10
    return vectors * torch.where(real, values.clamp(min=floor) ** exponent, 0.0) @ vectors.T


def flat(x: Tensor, q: float) -> Tensor:
    """Every non-zero singular value s becomes mean(s)^(1-q) s^q."""
    u, s, v = thin(x)
    return u * (s.mean() ** (1 - q) * s**q) @ v.T


def flat_rms(x: Tensor) -> Tensor:
    """Every non-zero singular value becomes their root mean square."""
    u, s, v = thin(x)
    return s.square().mean().sqrt() * u @ v.T


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


def dimensions(deltas: Deltas) -> int:
    """Of what the deltas span, on the narrower side."""
    side, top = torch.cat(list(deltas), 1), torch.cat(list(deltas), 0)
    return min(numerical_rank(side), numerical_rank(top))


def iso_cts(deltas: Deltas, weights: Weights, fraction: float = 0.8) -> Tensor:
    k = dimensions(deltas)
    own = min(round((k - int(fraction * k)) / len(deltas)), k // len(deltas))
    return common_and_own(deltas, weights, k, own)


def iso_cts_r(deltas: Deltas, weights: Weights, own: int = 1) -> Tensor:
    return common_and_own(deltas, weights, max(map(numerical_rank, deltas)), own)


def common_and_own(deltas: Deltas, weights: Weights, k: int, own: int) -> Tensor:
    scaled = [w * delta for w, delta in zip(weights, deltas, strict=True)]
    u, s, v = (side[..., : k - len(deltas) * own] for side in thin(sum(scaled)))
    parts = [[side[..., :own] for side in thin(delta - u @ u.T @ delta)] for delta in scaled]
    u, s, v = (torch.cat(side, -1) for side in zip((u, s, v), *parts, strict=True))
    return s.mean() * isometry(u) @ isometry(v).T


def slerp(deltas: Deltas, weights: Weights) -> Tensor:
    x, y = deltas
    return _between(x, y, x.flatten() @ y.flatten() / (x.norm() * y.norm()), weights)


def slerp_rows(deltas: Deltas, weights: Weights) -> Tensor:
    return torch.stack([slerp((x, y), weights) for x, y in zip(*deltas, strict=True)])


def _between(x: Tensor, y: Tensor, cosine: Tensor, weights: Weights) -> Tensor:
    if abs(cosine) > 0.9995:
        return weights[0] * x + weights[1] * y
    theta = torch.arccos(cosine)
    return (torch.sin(weights[0] * theta) * x + torch.sin(weights[1] * theta) * y) / torch.sin(
        theta
    )


def karcher(deltas: Deltas, weights: Weights, steps: int) -> Tensor:
    """On vectors of all entries."""
    norms = [delta.norm() for delta in deltas]
    units = [delta / norm for delta, norm in zip(deltas, norms, strict=True)]
    p = weighted(units, weights)
    p = p / p.norm()
    for _ in range(steps):
        tangent = torch.zeros_like(p)
        for w, u in zip(weights, units, strict=True):
            cos = (p * u).sum().clamp(-1, 1)
            theta = torch.arccos(cos)
            if theta > 0:
                tangent += w * theta / torch.sin(theta) * (u - cos * p)
        size = tangent.norm()
        if size > 0:
            p = torch.cos(size) * p + torch.sin(size) / size * tangent
        p = p / p.norm()
    return p * sum(w * norm for w, norm in zip(weights, norms, strict=True))


def model_stock(deltas: Deltas, weights: Weights) -> Tensor:
    n = len(deltas)
    pairs = [
        (x * y).sum() / (x.norm() * y.norm()) for i, x in enumerate(deltas) for y in deltas[:i]
    ]
    cosine = (sum(pairs) / len(pairs)).clamp(0, 1)
    return n * cosine / (1 + (n - 1) * cosine) * weighted(deltas, weights)


def geometric_median(deltas: Deltas, weights: Weights, steps: int = 3000) -> Tensor:
    x = weighted(deltas, weights)
    for _ in range(steps):
        shares = [
            w / max(float((x - delta).norm()), 1e-12)
            for w, delta in zip(weights, deltas, strict=True)
        ]
        x = weighted(deltas, [share / sum(shares) for share in shares])
    return x


def wudi(
    deltas: Deltas, weights: Weights, *, ridge: float | None = None, time: float | None = None
) -> Tensor:
    grams = [
        w / delta.norm() ** 2 * delta.T @ delta for w, delta in zip(weights, deltas, strict=True)
    ]
    c, d = sum(grams), sum(delta @ g for delta, g in zip(deltas, grams, strict=True))
    largest = torch.linalg.eigvalsh(c)[-1]
    if ridge is not None:
        return d @ torch.linalg.pinv(
            c + ridge * largest * torch.eye(len(c), dtype=c.dtype), hermitian=True, rtol=1e-12
        )
    flow = torch.linalg.matrix_exp(
        -time / largest * c
    )  # gradient flow of the least squares, from the sum
    minimiser = d @ torch.linalg.pinv(c, hermitian=True, rtol=1e-12)
    return minimiser + (weighted(deltas, weights) - minimiser) @ flow


def dc_merge(
    deltas: Deltas,
    weights: Weights,
    *,
    linear: bool = False,
    ratio: float = 5.0,
    keep: float | None = None,
) -> Tensor:
    us, ss, vs = zip(*(thin(delta) for delta in deltas), strict=True)
    u, v = isometry(torch.cat(us, 1)), isometry(torch.cat(vs, 1))
    cs = []
    for x, s, y in zip(us, ss, vs, strict=True):
        line = (
            torch.linspace(float(min(ratio, s[0] / s[-1])), 1, len(s), dtype=s.dtype)
            if linear
            else torch.ones_like(s)
        )
        if len(s) == 1:
            line = torch.ones_like(s)
        c = u.T @ x @ (s.sum() * line / line.sum()).diag() @ y.T @ v
        count = len(s) if keep is None else max(1, int(keep * c.numel()))
        cs.append(trim(c, 0, count))
    merged, start = elect(cs, weights, "weighted"), 0
    out = torch.zeros_like(merged)
    for s in ss:
        block = slice(start, start + len(s))
        out[block, block] = merged[block, block]
        start += len(s)
    return u @ out @ v.T


def frechet(deltas: Deltas, weights: Weights, steps: int = 2000) -> Tensor:
    us, ss, vs = zip(*(thin(delta) for delta in deltas), strict=True)
    u, v = us[0], vs[0]
    for _ in range(steps):
        turned = [polar(x.T @ u + y.T @ v) for x, y in zip(us, vs, strict=True)]
        u = polar(weighted([x @ q for x, q in zip(us, turned, strict=True)], weights))
        v = polar(weighted([y @ q for y, q in zip(vs, turned, strict=True)], weights))
    logs = [q.T @ s.log().diag() @ q for q, s in zip(turned, ss, strict=True)]
    return u @ torch.linalg.matrix_exp(weighted(logs, weights)) @ v.T


def pico(deltas: Deltas, bs: Deltas) -> list[Tensor]:
    """The deltas as the rule sees them. ``bs``: the factors B."""
    stack = torch.cat(list(bs), 1)
    damping = torch.linalg.inv(
        torch.eye(len(stack), dtype=stack.dtype)
        + (len(deltas) - 1) / stack.norm() ** 2 * stack @ stack.T
    )
    return [damping @ delta for delta in deltas]


def svc(merged: Tensor, deltas: Deltas, alpha: float | None = None) -> Tensor:
    alpha = 1 / len(deltas) if alpha is None else alpha
    u, s, v = thin(merged)
    calibrated = []
    for r in range(len(s)):
        row = s[r] * v[:, r]
        parts = [u[:, r] @ delta for delta in deltas]
        there = [part for part in parts if part.norm() > 1e-9]
        counted = sum(max(alpha, float(row @ part / part.norm() ** 2)) for part in there)
        calibrated.append(s[r] * len(there) / counted)
    return u * torch.stack(calibrated) @ v.T


def actmat(deltas: Deltas, weights: Weights) -> Tensor:
    grams = [w * delta.T @ delta for w, delta in zip(weights, deltas, strict=True)]
    return sum(d @ g for d, g in zip(deltas, grams, strict=True)) @ torch.linalg.pinv(
        sum(grams), hermitian=True, rtol=1e-12
    )


def star(deltas: Deltas, weights: Weights, eta: float = 0.4) -> Tensor:
    out = []
    for delta in deltas:
        u, s, v = thin(delta)
        k = next(k for k in range(1, len(s) + 1) if s[:k].sum() >= eta * s.sum() or k == len(s))
        out.append((u[:, :k] * s[:k] * s.sum() / s[:k].sum()) @ v[:, :k].T)
    return weighted(out, weights)


def cart(deltas: Deltas, weights: Weights, fraction: float = 0.04, c: float = 0.1) -> Tensor:
    k = math.ceil(fraction * dimensions(deltas))
    mean, apart = weighted(deltas, weights), []
    for delta in deltas:
        u, s, vt = torch.linalg.svd(delta - mean)
        apart.append(u[:, :k] * s[:k] @ vt[:k])
    return mean + c * len(deltas) * weighted(apart, weights)


def subspace_boost(merged: Tensor, beta: float = 0.01) -> Tensor:
    u, s, v = thin(merged)
    k = next(k for k in range(len(s)) if s[: k + 1].sum() >= beta * s.sum())
    return u * s.clamp(min=s[k]) @ v.T


def ct_merging(deltas: Deltas, weights: Weights, common: int = 4, own: int = 16) -> Tensor:
    leading = [[side[..., :own] for side in thin(delta)] for delta in deltas]
    us, ss, vs = zip(*leading, strict=True)
    shares, directions = torch.linalg.eigh(sum(x @ x.T for x in us))
    falling = [*shares.flip(0).tolist(), -1.0]
    k = min(common, numerical_rank(torch.cat(list(us), 1)))
    while k > 0 and falling[k - 1] - falling[k] < 1e-8:  # one of several equal ones
        k -= 1
    u = directions.flip(1)[:, :k]
    left, right, strengths = [], [], []
    if k:
        p, s, q = thin(u.T @ weighted(deltas, weights) / len(deltas))
        left, right = [u @ p], [q]
        strengths = [s.square().mean().sqrt().expand(len(s))]
    for w, x, s, y in zip(weights, us, ss, vs, strict=True):
        s = w * s
        rest = x - u @ (u.T @ x)
        there = rest.norm(dim=0) > 1e-9
        left.append(rest[:, there])
        right.append(y[:, there])
        strengths.append(s.square().mean().sqrt().expand(int(there.sum())))
    return isometry(torch.cat(left, 1)) * torch.cat(strengths) @ isometry(torch.cat(right, 1)).T


def np_lora(deltas: Deltas, weights: Weights, mu: float = 0.5, anchor: int = 0) -> Tensor:
    _, _, v = thin(deltas[anchor])
    projector = torch.eye(len(v), dtype=v.dtype) - mu / (1 + mu) * v @ v.T
    out = weights[anchor] * deltas[anchor]
    for i, (w, delta) in enumerate(zip(weights, deltas, strict=True)):
        out = out if i == anchor else out + w * delta @ projector
    return out


def robustmerge(
    bs: Deltas,
    as_: Deltas,
    weights: Weights,
    density: float = 0.2,
    quantile: float = 0.8,
    gain: float = 2.0,
) -> Tensor:
    """From the factors B (m, r) and A (r, n), rank by rank."""

    def pruned(x: Tensor) -> Tensor:
        return trim(x, 0, x.numel() - max(1, int(x.numel() * (1 - density))) + 1)

    rank = bs[0].shape[1]
    scales = []
    for a in as_:
        lost = [
            float(row.abs().sum() / kept.abs().sum()) if kept.any() else 0.0
            for row, kept in zip(a, pruned(a), strict=True)
        ]
        floor = sorted(lost)[min(int(rank * quantile), rank - 1)]
        scales.append([max(s, floor) for s in lost])
    b, a = torch.zeros_like(bs[0]), torch.zeros_like(as_[0])
    for w, x, y, s in zip(weights, bs, as_, scales, strict=True):
        a += gain * abs(w) ** 0.5 * (1 if w > 0 else -1) * pruned(y)
        for j in range(rank):
            b[:, j] += gain * abs(w) ** 0.5 * s[j] * pruned(x)[:, j] / sum(t[j] for t in scales)
    return b @ a


def lego(
    pairs: Sequence[tuple[Tensor, Tensor]],
    weights: Weights,
    draws: Sequence[Tensor],
    k: int,
    *,
    directions: bool = False,
    iterations: int = 100,
) -> Tensor:
    """From factors (B, A), before the scale of the output. ``draws``: (k, units) for every run."""
    units, shares = [], []
    for w, (b, a) in zip(weights, pairs, strict=True):
        units += [(b[:, j], a[j]) for j in range(b.shape[1])]
        shares += [w] * b.shape[1]
    points = [torch.cat([b / b.norm(), a / a.norm()] if directions else [b, a]) for b, a in units]
    runs = [k_means(points, draw, iterations) for draw in draws[:]]
    groups = min(runs, key=lambda run: run[1])[0]
    out = torch.zeros(len(units[0][0]), len(units[0][1]), dtype=torch.float64)
    for group in range(k):
        inside = [i for i, label in enumerate(groups) if label == group]
        total = sum(shares[i] for i in inside)
        if not inside:
            continue
        whole = [torch.cat(units[i]) for i in inside]
        mean = sum(shares[i] * x for i, x in zip(inside, whole, strict=True)) / total
        size = sum(shares[i] * x.abs().max() for i, x in zip(inside, whole, strict=True)) / total
        mean = mean * size / mean.abs().max()
        out += torch.outer(mean[: out.shape[0]], mean[out.shape[0] :])
    return out


def first_of_least(row: Sequence[float]) -> int:
    """Singular pairs of one adapter are equally far from each other."""
    return next(j for j, distance in enumerate(row) if distance <= min(row) + 1e-9)


def k_means(points: Deltas, draw: Tensor, iterations: int) -> tuple[list[int], float]:
    """Labels and spread, from first centres drawn by squared distance (k-means++)."""
    centres: list[Tensor] = []
    for numbers in draw:
        far = [min((float((x - c).square().sum()) for c in centres), default=1.0) for x in points]
        keys = [d / -math.log(float(u)) for d, u in zip(far, numbers, strict=True)]
        centres.append(points[keys.index(max(keys))])
    labels: list[int] = []
    for _ in range(iterations):
        distances = [[float((x - c).square().sum()) for c in centres] for x in points]
        before, labels = labels, [first_of_least(row) for row in distances]
        for j in range(len(centres)):
            inside = [x for x, label in zip(points, labels, strict=True) if label == j]
            centres[j] = sum(inside) / len(inside) if inside else centres[j]
        if labels == before:
            break
    spread = sum(
        float((x - centres[j]).square().sum()) for x, j in zip(points, labels, strict=True)
    )
    return labels, spread
