"""What may stand before and after a rule, against dense float64."""

from typing import Any

import dense
import dense_entries
import dense_methods as oracle
import pytest
import torch
from catalogue import PROBLEMS, full, merged
from helpers import delta, relative, stack
from strategies import Problem

import gam_merge as gm
from gam_merge import GamMergeError

EVERY = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def rule(name: str, deltas: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """Rules of every kind."""
    if name == "gam":
        return dense.gam(deltas, weights)
    if name == "karcher":
        return oracle.karcher(deltas, weights, 300)
    if name == "ties@core":
        xs, back = dense_entries.in_core(deltas)
        return back(dense_entries.ties(xs, weights))
    return getattr(oracle, {"mean": "weighted", "sum": "weighted"}.get(name, name))(deltas, weights)


RULES = pytest.mark.parametrize(
    "name", ["mean", "sum", "gam", "iso_c", "tsvm", "karcher", "ties@core"]
)
PARAMS: dict[str, dict[str, Any]] = {"karcher": {"tolerance": 1e-14}}


@EVERY
@RULES
@pytest.mark.parametrize("factors", ["fixed", "read"])
def test_pico(problem: Problem, name: str, factors: str) -> None:
    bs = problem.deltas if factors == "fixed" else [b for b, _ in problem.pairs]
    seen = oracle.pico(problem.deltas, bs)
    weights = list(problem.weights)
    expected = oracle.rescaled(rule(name, seen, weights), problem.deltas, weights)
    assert (
        relative(
            merged(problem, f"pico+{name}", **{"pico.factors": factors}, **PARAMS.get(name, {})),
            expected,
        )
        < 1e-8
    )


@EVERY
@RULES
@pytest.mark.parametrize("beta", [0.0, 0.25])
def test_norm_equalise(problem: Problem, name: str, beta: float) -> None:
    norms = [delta.norm() for delta in problem.deltas]
    mean = sum(norms) / len(norms)
    seen = [
        d / n * (beta * n + (1 - beta) * mean) for d, n in zip(problem.deltas, norms, strict=True)
    ]
    expected = rule(name, seen, list(problem.weights))
    found = merged(
        problem, f"norm_equalise+{name}", **{"norm_equalise.beta": beta}, **PARAMS.get(name, {})
    )
    assert relative(found, expected) < 1e-9


def test_mad_cap_tames_one_loud_adapter() -> None:
    pairs = list(PROBLEMS["full"].pairs)
    loud = [*pairs, (50 * pairs[0][0], pairs[0][1])]
    norms = torch.stack([(b @ a).norm() for b, a in loud])
    median = norms.median()
    cap = median + 3 * (norms - median).abs().median()
    seen = [b @ a * min(1.0, float(cap / (b @ a).norm())) for b, a in loud]
    found = delta(gm.merge(stack(loud), method="mad_cap+mean", rank=5).adapter)
    assert relative(found, sum(seen) / 5) < 1e-9


@EVERY
@RULES
@pytest.mark.parametrize("alpha", [None, 0.1])
def test_svc(problem: Problem, name: str, alpha: float | None) -> None:
    if name == "iso_c":
        result = gm.merge(problem.adapters, method="iso_c+svc")
        assert "singular values are equal: their calibration is arbitrary" in result.report.warnings
        return
    weights = list(problem.weights)
    expected = oracle.svc(rule(name, problem.deltas, weights), problem.deltas, alpha)
    assert (
        relative(
            merged(problem, f"{name}+svc", **{"svc.alpha": alpha}, **PARAMS.get(name, {})), expected
        )
        < 1e-8
    )


@EVERY
@RULES
@pytest.mark.parametrize("beta", [0.01, 0.5, 0.9])
def test_subspace_boost(problem: Problem, name: str, beta: float) -> None:
    expected = oracle.subspace_boost(rule(name, problem.deltas, list(problem.weights)), beta)
    params = {"subspace_boost.beta": beta, **PARAMS.get(name, {})}
    assert relative(merged(problem, f"{name}+subspace_boost", **params), expected) < 1e-7


@EVERY
@RULES
def test_isotropize(problem: Problem, name: str) -> None:
    expected = oracle.flat(rule(name, problem.deltas, list(problem.weights)), 0.0)
    found = merged(problem, f"{name}+isotropize", **PARAMS.get(name, {}))
    assert relative(found, expected) < 1e-7


@EVERY
@pytest.mark.parametrize("name", ["ties@knots", "elect@drm_v", "sum@delta", "dare@delta"])
@pytest.mark.parametrize(("after", "q"), [("isotropize", 0.0), ("subspace_boost", None)])
def test_spectra_change_in_any_space(
    problem: Problem, name: str, after: str, q: float | None
) -> None:
    columns = {"columns": full(problem)} if "delta" in name else {}
    plain = merged(problem, name, **columns)
    expected = oracle.subspace_boost(plain) if q is None else oracle.flat(plain, q)
    assert relative(merged(problem, f"{name}+{after}", **columns), expected) < 1e-7


@pytest.mark.parametrize("name", ["two", "three", "apart", "close"])
@pytest.mark.parametrize("method", ["ties@factor", "robustmerge", "lego"])
def test_spectra_change_after_rules_that_leave_core_space(name: str, method: str) -> None:
    """Their singular values come from Gram matrices, which halve the digits."""
    problem = PROBLEMS[name]
    expected = oracle.flat(merged(problem, method), 0.0)
    assert relative(merged(problem, f"{method}+isotropize"), expected) < 1e-5


def test_spectra_change_one_after_the_other() -> None:
    problem = PROBLEMS["three"]
    flat = oracle.flat(merged(problem, "ties@knots"), 0.0)
    found = merged(problem, "ties@knots+isotropize+subspace_boost")
    assert relative(found, flat) < 1e-7
    pair = PROBLEMS["two"]
    flat = oracle.flat(merged(pair, "nuslerp", each="row"), 0.0)
    assert relative(merged(pair, "nuslerp+isotropize", each="row"), flat) < 1e-5


@EVERY
def test_the_sum_isotropized_is_iso_c(problem: Problem) -> None:
    assert relative(merged(problem, "sum+isotropize"), merged(problem, "iso_c")) < 1e-12


def test_before_and_after_together() -> None:
    problem, weights = PROBLEMS["three"], list(PROBLEMS["three"].weights)
    seen = oracle.pico(problem.deltas, problem.deltas)
    inner = oracle.rescaled(oracle.tsvm(seen, weights), problem.deltas, weights)
    assert relative(merged(problem, "pico+tsvm+svc"), oracle.svc(inner, problem.deltas)) < 1e-9


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("svc+mean", "svc does not belong before the rule"),
        ("mean+pico", "pico does not belong after the rule"),
        ("pico+ties@knots", "pico works in core space, which @knots leaves"),
        ("ties@factor+svc", "svc works in core space, which @factor leaves"),
        ("pico", "has 0 rules"),
        ("nuslerp+svc", "nuslerp cannot be combined with svc"),
        ("pico+core", "unknown method 'core'"),
        (
            "ties@nowhere",
            "unknown space 'nowhere'; expected one of core, knots, drm_h, drm_v, ctm, factor, delta",
        ),
    ],
)
def test_what_does_not_fit_is_refused(name: str, words: str) -> None:
    with pytest.raises(GamMergeError, match=words):
        gm.get_method(name)


def test_parameters_of_plug_ins_have_their_name() -> None:
    names = {param.name for param in gm.get_method("pico+ties@ctm+svc").params}
    assert {
        "pico.factors",
        "density",
        "sign",
        "scope",
        "k",
        "beta",
        "svc.alpha",
        "scale",
        "rescale",
    } <= names
