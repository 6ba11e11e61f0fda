"""Rules that look at entries against dense float64, in every space, and what makes them trustworthy: the same bytes
however the work is cut up, thresholds that are exact, and parity with PEFT where PEFT is right."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dense_entries as oracle
import pytest
import torch
from catalogue import PROBLEMS, full, merged, related
from helpers import adapter, delta, random_factors, relative
from peft import PeftModel
from real import save_adapter
from strategies import Problem
from torch import Tensor

import gam_merge as gm
from gam_merge import GamMergeError
from gam_merge._methods import _entries
from gam_merge._methods._entries import generator

RULES: dict[str, list[dict[str, Any]]] = {
    "mean": [{}],
    "sum": [{}],
    "ties": [{}, {"density": 0.6, "sign": "total"}, {"density": 1.0, "sign": "frequency"}],
    "elect": [{}, {"sign": "frequency"}],
    "magnitude": [{}, {"density": 0.2}],
    "magmax": [{}],
    "breadcrumbs": [{}, {"density": 0.5, "gamma": 0.1}, {"density": 0.95, "gamma": 0.05}],
    "dare": [{}, {"density": 0.4}],
    "dare_ties": [{}, {"density": 0.4, "sign": "frequency"}],
    "della": [{}, {"density": 0.5, "epsilon": 0.5}],
    "della_linear": [{}, {"density": 0.3, "epsilon": 0.3}],
}
CASES = [(rule, params) for rule, sets in RULES.items() for params in sets]
SPACES = {"core": oracle.in_core, "knots": oracle.in_knots, "delta": oracle.in_delta}


def expected(
    rule: str,
    xs: list[Tensor],
    weights: list[float],
    params: dict[str, Any],
    part: str,
    seed: int = 0,
) -> Tensor:
    if rule in ("mean", "sum"):
        return oracle.linear(xs, weights)
    if rule == "elect":
        return oracle.elect(xs, weights, params.get("sign", "weighted"))
    if rule in ("dare", "dare_ties", "della", "della_linear"):
        draws = [generator(seed, f"adapter-{i}#0", "w", part) for i in range(len(xs))]
        uniforms = [
            torch.rand(x.shape, generator=g, dtype=torch.float64)
            for x, g in zip(xs, draws, strict=True)
        ]
        return getattr(oracle, rule)(xs, weights, uniforms, **params)
    return getattr(oracle, rule)(xs, weights, **params)


@pytest.mark.parametrize("name", ["three", "mixed ranks", "full"])
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(("rule", "params"), CASES)
def test_equals_the_equations(name: str, space: str, rule: str, params: dict[str, Any]) -> None:
    problem = PROBLEMS[name]
    xs, back = SPACES[space](problem.deltas)
    wanted = back(expected(rule, xs, list(problem.weights), params, space))
    more = {"columns": full(problem)} if space == "delta" else {}
    assert relative(merged(problem, f"{rule}@{space}", **params, **more), wanted) < 1e-9


@pytest.mark.parametrize("options", [{}, {"beta": 0.5}, {"k": 2}, {"k": 5, "beta": 1.0}])
@pytest.mark.parametrize(("rule", "params"), CASES)
def test_equals_the_equations_in_ctm(
    options: dict[str, Any], rule: str, params: dict[str, Any]
) -> None:
    problem = related(count=3, seed=12, ranks=(3, 2))
    xs, back = oracle.in_ctm(problem.deltas, options.get("k", 3), options.get("beta", 0.0))
    wanted = back(expected(rule, xs, list(problem.weights), params, "ctm"))
    found = merged(problem, f"{rule}@ctm", **params, **options, tolerance=1e-11)
    assert relative(found, wanted) < 1e-9


def test_ctm_converges_or_says_that_it_did_not() -> None:
    """Also where it takes a hundred turns, and with modules that need many next to others that need few."""
    slow, fast = related(seed=1, shape=(60, 60), ranks=(8,), shared=0.3), PROBLEMS["close"]
    xs, back = oracle.in_ctm(slow.deltas, 8)
    wanted = back(oracle.linear(xs, slow.weights))
    assert relative(merged(slow, "mean@ctm"), wanted) < 1e-4
    assert relative(merged(slow, "mean@ctm", tolerance=1e-10), wanted) < 1e-7
    assert relative(merged(fast, "mean@ctm"), back_of(fast)) < 1e-6
    for iterations, warned in ((10, True), (1000, False)):
        result = gm.merge(slow.adapters, method="mean@ctm", params={"iterations": iterations})
        assert ("the shared bases did not converge" in result.report.warnings) is warned


def back_of(problem: Problem) -> Tensor:
    """The mean in the shared bases of a problem."""
    xs, back = oracle.in_ctm(problem.deltas, 3)
    return back(oracle.linear(xs, problem.weights))


@pytest.mark.parametrize("name", ["three", "mixed ranks", "full"])
@pytest.mark.parametrize("options", [{}, {"keep": 0.5, "least": 0.2}, {"keep": 1.0, "least": 0.0}])
@pytest.mark.parametrize("space", ["drm_h", "drm_v"])
@pytest.mark.parametrize("rule", ["elect", "mean", "magmax", "magnitude", "dare_ties"])
def test_equals_the_equations_of_drm(
    name: str, options: dict[str, float], space: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = PROBLEMS[name]
    xs, back = oracle.in_drm(problem.deltas, **options, vertical=space == "drm_v")
    wanted = back(expected(rule, xs, list(problem.weights), {}, space))
    assert relative(merged(problem, f"{rule}@{space}", **options), wanted) < 1e-9
    if rule == "elect":
        assert relative(merged(problem, space, **options), wanted) < 1e-9
    monkeypatch.setattr(_entries, "BLOCK", 70)
    assert relative(merged(problem, f"{rule}@{space}", **options), wanted) < 1e-9


@pytest.mark.parametrize(("rule", "params"), CASES)
def test_equals_the_equations_on_factors(rule: str, params: dict[str, Any]) -> None:
    problem = related(count=3, seed=13)
    weights = list(problem.weights)
    sums = rule in ("sum", "magnitude", "magmax", "breadcrumbs", "dare", "della_linear")
    scale = 2.0
    adapters = [
        adapter({"w": pair}, scale=scale, source=f"adapter-{i}")
        for i, pair in enumerate(problem.pairs)
    ]
    found = delta(
        gm.merge(adapters, method=f"{rule}@factor", weights=weights, params=params).adapter
    )
    w = [x**0.5 for x in weights] if sums else weights
    b = expected(rule, [scale**0.5 * b for b, _ in problem.pairs], w, params, "B")
    a = expected(rule, [scale**0.5 * a for _, a in problem.pairs], w, params, "A")
    assert relative(found, b @ a) < 1e-9


def test_factors_of_unlike_rank_are_refused() -> None:
    with pytest.raises(
        GamMergeError, match=r"module w has ranks \(4, 2, 1, 3\); @factor adds factors"
    ):
        gm.merge(PROBLEMS["mixed ranks"].adapters, method="ties@factor")


THEIRS = {
    "sum@factor": ("linear", {}),
    "ties@factor": ("ties", {"density": 0.5}),
    "ties@factor frequency": ("ties", {"density": 0.5, "majority_sign_method": "frequency"}),
    "magnitude@factor": ("magnitude_prune", {"density": 0.25}),
    "ties@delta": ("ties_svd", {"density": 0.5, "svd_rank": 12}),
    "magnitude@delta": ("magnitude_prune_svd", {"density": 0.5, "svd_rank": 12}),
}


@pytest.mark.parametrize(
    ("method", "theirs", "options"), [(m, *t) for m, t in THEIRS.items()], ids=list(THEIRS)
)
def test_equals_peft(
    llama: Any, tmp_path: Path, method: str, theirs: str, options: dict[str, Any]
) -> None:
    """At alpha = r, where PEFT counts the scale once, with weights of one: its ties does not divide by them."""
    paths = [save_adapter(llama, tmp_path / str(i), seed=i, r=4, lora_alpha=4) for i in range(3)]
    signed = theirs in ("linear", "magnitude_prune", "magnitude_prune_svd")
    weights = [0.5, 1.0, -0.25] if signed else [1.0, 1.0, 1.0]
    model = PeftModel.from_pretrained(llama, paths[0], "0")
    for i in (1, 2):
        model.load_adapter(paths[i], str(i))
    model.add_weighted_adapter(
        ["0", "1", "2"], weights, "merged", combination_type=theirs, **options
    )
    method, _, sign = method.partition(" ")
    params = {"density": options["density"]} if "density" in options else {}
    params |= {"sign": sign or "total"} if "ties" in method else {}
    params |= {"columns": 24} if "delta" in method else {}
    rank = 12 if "delta" in method else None
    result = gm.merge(
        paths, method=method, weights=weights, params=params, rank=rank, dtype="fp32"
    ).adapter
    for name, module in result.modules.items():
        wanted = model.get_submodule(f"base_model.model.{name}").get_delta_weight("merged")
        assert relative(module.delta(), wanted) < 1e-5
    model.unload()


RANDOM = ["dare@core", "dare_ties@knots", "della@ctm", "dare@factor", "della_linear@delta"]


def many(count: int = 3, modules: int = 4) -> list[gm.Adapter]:
    generator = torch.Generator().manual_seed(20)
    shapes = {f"layers.{i}.q": (12, 9, 3) for i in range(modules)}
    return [
        adapter(
            {
                name: random_factors(generator, *shape, torch.float32)
                for name, shape in shapes.items()
            },
            source=f"run/{i}",
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("method", RANDOM)
def test_the_same_bytes_whatever_comes_along(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the size of the buckets, nor other modules, nor where an adapter lies moves a random number."""
    import gam_merge._run.walk as walking

    adapters = many()
    together = gm.merge(adapters, method=method).adapter
    monkeypatch.setattr(walking, "_CHUNK_BYTES", 1)
    apart = gm.merge(adapters, method=method).adapter
    moved = [
        gm.Adapter(f"/elsewhere/{x.source}", {n: x.modules[n] for n in list(x.modules)[:1]})
        for x in adapters
    ]
    alone = gm.merge(moved, method=method).adapter
    for name in together.modules:
        assert torch.equal(delta(apart, name), delta(together, name))
    first = next(iter(together.modules))
    assert torch.equal(delta(alone, first), delta(apart, first))


@pytest.mark.parametrize("method", RANDOM)
def test_order_of_the_adapters_moves_no_random_number(method: str) -> None:
    adapters = many()
    one, other = (
        gm.merge(adapters, method=method).adapter,
        gm.merge(adapters[::-1], method=method).adapter,
    )
    for name in one.modules:
        assert relative(delta(one, name), delta(other, name)) < 1e-6


@pytest.mark.parametrize("method", RANDOM)
def test_seed_moves_all_random_numbers(method: str) -> None:
    adapters = many()
    one, other = (
        gm.merge(adapters, method=method, params={"seed": seed, "density": 0.5}).adapter
        for seed in (0, 1)
    )
    assert all(relative(delta(one, name), delta(other, name)) > 1e-3 for name in one.modules)


def test_counting_entries_by_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 40, 50, generator=generator, dtype=torch.float64)
    x[0, 1] = x[0, 1].round()  # entries of equal size, zeros among them
    part = _entries.Part.of("core", x)
    for count in (1, 2, 399, 1000, 2000):
        monkeypatch.setattr(_entries, "_MANY", 1 << 15)
        expected = _entries.largest(part, count)
        monkeypatch.setattr(_entries, "_MANY", 0)
        assert _entries.largest(part, count).equal(expected)


@pytest.mark.parametrize("rule", ["ties", "magnitude", "breadcrumbs", "dare_ties", "della"])
def test_blocks_of_rows_change_nothing(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds found by counting over blocks are those found by sorting, random numbers come in the same order."""
    problem = PROBLEMS["three"]
    whole, seen = (
        merged(problem, f"{rule}@delta", columns=full(problem)),
        merged(problem, f"{rule}@knots"),
    )
    monkeypatch.setattr(_entries, "BLOCK", 70)
    monkeypatch.setattr("gam_merge._methods.spaces.delta._HELD", 0)
    assert relative(merged(problem, f"{rule}@delta", columns=full(problem)), whole) < 1e-12
    assert relative(merged(problem, f"{rule}@knots"), seen) < 1e-12


@pytest.mark.parametrize(("rule", "params"), CASES)
@pytest.mark.parametrize("space", ["delta", "knots", "core", "factor"])
def test_float32_sources(space: str, rule: str, params: dict[str, Any]) -> None:
    """Entries are seen in float32 where the deltas are large; nothing else changes."""
    problem = PROBLEMS["three"]
    narrow = Problem(tuple((b.float(), a.float()) for b, a in problem.pairs), problem.weights)
    wide = Problem(tuple((b.double(), a.double()) for b, a in narrow.pairs), problem.weights)
    more = {"columns": 11} if space == "delta" else {}
    found, wanted = (merged(p, f"{rule}@{space}", **params, **more) for p in (narrow, wide))
    assert relative(found, wanted) < 1e-5


def test_delta_says_what_compression_lost() -> None:
    problem = related(count=3, seed=14, shape=(40, 35), ranks=(3,))
    whole = merged(problem, "ties@delta", columns=35)
    for columns, rank in ((0, 9), (12, 12), (12, 5)):
        result = gm.merge(
            problem.adapters,
            method="ties@delta",
            weights=problem.weights,
            rank=rank,
            params={"columns": columns},
        )
        best = float(torch.linalg.svdvals(whole)[:rank].square().sum() / whole.square().sum())
        assert result.report.energy_kept == pytest.approx(best, rel=1e-4)
        assert relative(delta(result.adapter), whole) == pytest.approx(
            (1 - result.report.energy_kept) ** 0.5, rel=1e-3
        )


@pytest.mark.parametrize(
    "method", ["ties@core", "ties@factor", "magnitude@delta", "breadcrumbs@knots"]
)
def test_global_scope_ranks_entries_over_all_modules(method: str) -> None:
    """A module a thousand times smaller than the others loses all its entries, where each for itself keeps a share."""
    generator = torch.Generator().manual_seed(30)
    pairs = [
        {n: random_factors(generator, 9, 8, 2) for n in ("large.0", "large.1", "small")}
        for _ in range(3)
    ]
    for factors in pairs:
        factors["small"] = (1e-2 * factors["small"][0], 1e-2 * factors["small"][1])
    adapters = [adapter(factors, source=str(i)) for i, factors in enumerate(pairs)]
    params = {"density": 0.5} | ({"gamma": 0.0} if "breadcrumbs" in method else {})
    local = gm.merge(adapters, method=method, params=params).adapter
    globally = gm.merge(adapters, method=method, params={**params, "scope": "global"}).adapter
    assert delta(local, "small").any()
    assert not delta(globally, "small").any()
    assert relative(delta(globally, "large.0"), delta(local, "large.0")) > 1e-3


def test_global_scope_on_workers_changes_no_byte() -> None:
    """What a first pass found travels to them, and back and forth between processes."""
    adapters, params = many(), {"scope": "global"}
    here = gm.merge(adapters, method="ties@core", params=params).adapter
    with ThreadPoolExecutor(3) as pool:
        there = gm.merge(adapters, method="ties@core", params=params, executor=pool).adapter
    assert all(torch.equal(delta(here, name), delta(there, name)) for name in here.modules)
    summary = _entries.Histogram({("core", 0): torch.arange(5)})
    again = pickle.loads(pickle.dumps(summary + summary))
    assert again.counts["core", 0].tolist() == [0, 2, 4, 6, 8]


def rank_and_trim(adapters: list[gm.Adapter], name: str, count: int) -> Tensor:
    """The sum of what is left of a module where each adapter keeps that many entries over all modules."""
    total = torch.zeros_like(delta(adapters[0], name))
    for one in adapters:
        sizes = torch.cat([module.delta().abs().flatten() for module in one.modules.values()])
        least = sizes.sort(descending=True).values[count - 1]
        total += delta(one, name) * (delta(one, name).abs() >= least)
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_global_scope_keeps_exactly_what_is_asked_for(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bins of a thousandth alone would keep dozens of entries more."""
    generator = torch.Generator().manual_seed(31)
    names = [f"layers.{i}" for i in range(6)]
    adapters = [
        adapter({n: random_factors(generator, 60, 50, 3, dtype) for n in names}, source=str(i))
        for i in range(2)
    ]
    params = {"density": 0.2, "scope": "global", "columns": 50}
    for block in (1 << 20, 1000):
        monkeypatch.setattr(_entries, "BLOCK", block)
        result = gm.merge(adapters, method="magnitude@delta", params=params, rank=50).adapter
        for name in names:
            wanted = rank_and_trim(adapters, name, 6 * 60 * 50 // 5)
            assert relative(delta(result, name), wanted) < 1e-6


def test_global_scope_with_densities_by_module() -> None:
    """Each module asks for a threshold of its own, over the entries of all."""
    adapters = many(count=2, modules=3)
    params = {
        "scope": "global",
        "density": [{"filter": "layers.0", "value": 0.1}, {"filter": "*", "value": 0.5}],
    }
    result = gm.merge(adapters, method="magnitude@delta", params=params | {"columns": 9}, rank=9)
    counts = {f"layers.{i}.q": int(d * 3 * 12 * 9) for i, d in enumerate((0.1, 0.5, 0.5))}
    for name, count in counts.items():
        wanted = rank_and_trim(adapters, name, count)
        assert relative(delta(result.adapter, name), wanted) < 1e-5


def test_global_scope_of_one_module_is_that_module() -> None:
    problem = PROBLEMS["three"]
    for method in ("ties@core", "ties@knots", "ties@delta"):
        assert relative(merged(problem, method, scope="global"), merged(problem, method)) < 1e-9


def test_outliers_that_are_less_than_an_entry_are_none() -> None:
    problem = PROBLEMS["three"]
    assert (
        relative(
            merged(problem, "breadcrumbs@core", gamma=0.001, density=1.0), merged(problem, "sum")
        )
        < 1e-9
    )
    assert merged(problem, "breadcrumbs@core", gamma=1e-9, density=0.5).any()


def test_dare_is_the_sum_on_average() -> None:
    problem = related(count=2, seed=15, shape=(6, 5), ranks=(2,))
    draws = [merged(problem, "dare@core", density=0.8, seed=seed) for seed in range(200)]
    assert relative(sum(draws) / len(draws), merged(problem, "sum")) < 0.08
