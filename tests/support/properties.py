"""Properties of methods, measured on small merges: each is a function of a method that tells whether it holds.

A method declares which do not (``breaks``). Tests compare both ways, and the documentation is written from the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from catalogue import related
from helpers import adapter, random_factors, relative
from torch import Tensor

import gam_merge as gm

CLOSE = 1e-7
Pairs = Sequence[tuple[Tensor, Tensor]]


def _count(method: gm.Method) -> int:
    return method.adapters or 3


def _problem(method: gm.Method, **options: Any) -> tuple[Pairs, list[float]]:
    problem = related(**{"seed": 42, "count": _count(method), "shared": 0.3, **options})
    weights = [0.5, 0.3, 0.2][: _count(method)]
    return problem.pairs, [w / sum(weights) for w in weights] if method.normalize else weights


def _run(
    method: gm.Method, pairs: Pairs, weights: Sequence[float] | None, names: Sequence[str] = "abc"
) -> Tensor:
    adapters = [adapter({"w": pair}, source=name) for pair, name in zip(pairs, names, strict=False)]
    return _merge(method, adapters, weights)


def _merge(
    method: gm.Method, adapters: list[gm.Adapter], weights: Sequence[float] | None, name: str = "w"
) -> Tensor:
    module = adapters[0].modules[name]
    params = (
        {"columns": min(module.shape)} if any(p.name == "columns" for p in method.params) else {}
    )
    result = gm.merge(
        adapters, method=method.name, weights=weights, rank=min(module.shape), params=params
    )
    return result.adapter.modules[name].delta()


def identity(method: gm.Method) -> bool:
    """A single adapter comes back unchanged."""
    pairs = [_problem(method, ranks=(r,))[0][0] for r in (3, 10)]
    return all(relative(_run(method, [(b, a)], None), b @ a) < CLOSE for b, a in pairs)


def equal(method: gm.Method) -> bool:
    """Equal adapters come back as one of them."""
    b, a = _problem(method)[0][0]
    return relative(_run(method, [(b, a)] * _count(method), None), b @ a) < CLOSE


def permutation(method: gm.Method) -> bool:
    """The order of the adapters does not matter."""
    pairs, weights = _problem(method)
    names = "abc"[: len(pairs)]
    turned = _run(method, pairs[::-1], weights[::-1], names[::-1])
    return relative(turned, _run(method, pairs, weights, names)) < CLOSE


def homogeneity(method: gm.Method) -> bool:
    """All deltas times c give the result times c."""
    pairs, weights = _problem(method)
    scaled = [(c * b, c * a) for (b, a), c in zip(pairs, [1e-3] * len(pairs), strict=True)]
    return relative(1e6 * _run(method, scaled, weights), _run(method, pairs, weights)) < CLOSE


def gauge(method: gm.Method) -> bool:
    """Only the products B A count, not how they are split."""
    pairs, weights = _problem(method)
    generator = torch.Generator().manual_seed(41)
    changed = []
    for b, a in pairs:
        g = torch.eye(b.shape[1]) + 0.3 * torch.randn(b.shape[1], b.shape[1], generator=generator)
        changed.append((b @ g.double(), torch.linalg.solve(g.double(), a)))
    return relative(_run(method, changed, weights), _run(method, pairs, weights)) < CLOSE


def zero(method: gm.Method) -> bool:
    """An adapter whose delta is zero takes its share of the weight, and nothing else, from the others."""
    pairs, weights = _problem(method)
    silent = [*pairs[:-1], (0 * pairs[-1][0], pairs[-1][1])]
    return _others(method, pairs, weights, _run(method, silent, weights))


def missing(method: gm.Method) -> bool:
    """A module that an adapter lacks is like one where its delta is zero."""
    if method.adapters == 1:
        return True  # a module that the only adapter lacks is not part of the merge
    pairs, weights = _problem(method)
    extra = random_factors(torch.Generator().manual_seed(42), 6, 5, 3)
    adapters = [
        adapter({"w": pair, "v": extra}, source=name)
        for pair, name in zip(pairs, "abc", strict=False)
    ]
    adapters[-1] = replace(adapters[-1], modules={"v": adapters[-1].modules["v"]})
    return _others(method, pairs, weights, _merge(method, adapters, weights))


def _others(method: gm.Method, pairs: Pairs, weights: Sequence[float], found: Tensor) -> bool:
    if method.adapters == 1:
        return not found.any()
    if method.adapters:  # one of two is left, and is interpolated with nothing
        return relative(found, weights[0] * pairs[0][0] @ pairs[0][1]) < CLOSE
    share = sum(weights[:-1]) if method.normalize else 1.0
    return relative(found, share * _run(method, pairs[:-1], weights[:-1])) < CLOSE


def deficient(method: gm.Method) -> bool:
    """A delta of lower rank than its factors counts as what it is."""
    pairs, weights = _problem(method)
    b, a = pairs[-1]
    wide = [*pairs[:-1], (torch.cat([b[:, :2], 0 * b[:, 2:]], 1), a)]
    narrow = [*pairs[:-1], (b[:, :2], a[:2])]
    return _same_or_refused(
        lambda: relative(_run(method, wide, weights), _run(method, narrow, weights))
    )


def mixed_ranks(method: gm.Method) -> bool:
    """Adapters of different ranks are merged, into something finite."""
    pairs, weights = _problem(method, ranks=(3, 1, 2))
    return _same_or_refused(
        lambda: 0.0 if bool(_run(method, pairs, weights).isfinite().all()) else 1.0
    )


def _same_or_refused(distance: Callable[[], float]) -> bool:
    try:
        return distance() < CLOSE
    except gm.GamMergeError:
        return False


def finite(method: gm.Method) -> bool:
    """Nothing blows up: deltas of very different sizes, orthogonal ones, opposed ones."""
    pairs, weights = _problem(method)
    eye = torch.eye(14, dtype=torch.float64)
    spaces = [slice(i, i + 3) for i in (0, 3, 6)][: len(pairs)]
    kinds = [
        [(b * 10.0 ** (-8 * i), a) for i, (b, a) in enumerate(pairs)],
        [(eye[:, s], eye[s, :11]) for s in spaces],
        [((-1.0) ** i * pairs[0][0], pairs[0][1]) for i in range(len(pairs))],
    ]
    return all(bool(_run(method, kind, weights).isfinite().all()) for kind in kinds)


def rank_bound(method: gm.Method) -> bool:
    """The result has no higher rank than the method says."""
    pairs, weights = _problem(method, shape=(30, 28))
    adapters = [adapter({"w": pair}, source=name) for pair, name in zip(pairs, "abc", strict=False)]
    result = gm.merge(adapters, method=method.name, weights=weights)
    s = torch.linalg.svdvals(result.adapter.modules["w"].delta())
    bound = 3 if method.rank == "largest" else 3 * len(pairs)
    return result.report.rank == bound and bool((s[bound:] < 1e-10 * s[0]).all())


def repeatable(method: gm.Method) -> bool:
    """The same input gives the same bytes."""
    pairs, weights = _problem(method)
    return torch.equal(_run(method, pairs, weights), _run(method, pairs, weights))


PROPERTIES: dict[str, Callable[[gm.Method], bool]] = {
    "identity": identity,
    "equal": equal,
    "permutation": permutation,
    "homogeneity": homogeneity,
    "gauge": gauge,
    "zero": zero,
    "missing": missing,
    "deficient": deficient,
    "mixed ranks": mixed_ranks,
    "finite": finite,
    "rank bound": rank_bound,
    "repeatable": repeatable,
}


def holds(method: gm.Method, name: str) -> bool:
    """Whether a property holds; a refusal by name is a no."""
    try:
        return PROPERTIES[name](method)
    except gm.GamMergeError:
        return False


def catalogue() -> list[gm.Method]:
    """Every rule in every space that it can be named with, and every plug-in around the mean."""
    methods = list(gm.methods())
    spaces = [space.name for space in gm.spaces()]
    names = [
        f"{m.rule.name}@{space}" for m in methods if m.rule.entries is not None for space in spaces
    ]
    before = [f"{plugin.name}+mean" for plugin in gm.plugins() if plugin.side == "pre"]
    after = [f"mean+{plugin.name}" for plugin in gm.plugins() if plugin.side == "post"]
    found = {
        gm.get_method(name).name: gm.get_method(name)
        for name in [m.name for m in methods] + names + before + after
    }
    return list(found.values())
