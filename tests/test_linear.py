"""One linear rule under four names, and PEFT where PEFT is right."""

from pathlib import Path
from typing import Any

import dense_methods as oracle
import pytest
import torch
from catalogue import PROBLEMS, full, merged
from helpers import relative
from peft import PeftModel
from real import save_adapter

import gam_merge as gm


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("method", ["mean", "sum", "cat"])
def test_is_the_weighted_sum(problem: Any, method: str) -> None:
    assert (
        relative(merged(problem, method), oracle.weighted(problem.deltas, problem.weights)) < 1e-9
    )


@pytest.mark.parametrize("method", ["sum", "cat", "svd_k"])
def test_weights_of_a_sum_are_one_each_and_may_be_negative(method: str) -> None:
    problem = PROBLEMS["three"]
    rank = full(problem)
    result = gm.merge(problem.adapters, method=method, rank=rank).adapter.modules["w"].delta()
    assert relative(result, sum(problem.deltas)) < 1e-9
    assert (
        relative(
            merged(problem, method, weights=[1, -0.5, 2]),
            oracle.weighted(problem.deltas, [1, -0.5, 2]),
        )
        < 1e-9
    )


def test_default_ranks() -> None:
    adapters = PROBLEMS["mixed ranks"].adapters  # of rank 4, 2, 1, 3
    ranks = {
        method: gm.merge(adapters, method=method).report.rank
        for method in ("mean", "sum", "cat", "svd_k", "gam")
    }
    assert ranks == {"mean": 4, "sum": 10, "cat": 10, "svd_k": 4, "gam": 4}
    assert (
        gm.merge(PROBLEMS["full"].adapters, method="cat").report.rank == 5
    )  # a module of 6 x 5 holds no more


def test_scale_multiplies_the_result() -> None:
    problem = PROBLEMS["three"]
    assert relative(merged(problem, "sum", scale=0.3), 0.3 * merged(problem, "sum")) < 1e-12


@pytest.mark.parametrize(
    ("method", "theirs", "options"), [("cat", "cat", {}), ("svd_k", "svd", {"svd_rank": 4})]
)
def test_equals_peft(
    llama: Any, tmp_path: Path, method: str, theirs: str, options: dict[str, Any]
) -> None:
    """At alpha = r: PEFT's svd counts the scale twice otherwise."""
    paths = [save_adapter(llama, tmp_path / str(i), seed=i, r=4, lora_alpha=4) for i in range(3)]
    weights = [0.5, 1.0, -0.25]
    model = PeftModel.from_pretrained(llama, paths[0], "0")
    for i in (1, 2):
        model.load_adapter(paths[i], str(i))
    model.add_weighted_adapter(
        ["0", "1", "2"], weights, "merged", combination_type=theirs, **options
    )
    result = gm.merge(paths, method=method, weights=weights, dtype="fp32").adapter
    for name, module in result.modules.items():
        expected = model.get_submodule(f"base_model.model.{name}").get_delta_weight("merged")
        assert relative(module.delta(), expected) < 1e-5
    model.unload()


def test_unlike_a_mean_a_sum_of_disjoint_modules_is_whole() -> None:
    from helpers import adapter, random_factors

    generator = torch.Generator().manual_seed(0)
    pairs = {name: random_factors(generator, 8, 7, 2) for name in "xy"}
    apart = [adapter({name: pair}, source=name) for name, pair in pairs.items()]
    for method, share in (("sum", 1.0), ("mean", 0.5)):
        modules = gm.merge(apart, method=method, missing="zero").adapter.modules
        for name, (b, a) in pairs.items():
            assert relative(modules[name].delta(), share * b @ a) < 1e-9
