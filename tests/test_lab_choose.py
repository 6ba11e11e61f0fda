"""The choice without data: it splits where the sets part, and the seeds that judge it take no part in it."""

from typing import Any

import pytest

from benchmarks.lab import choose
from benchmarks.lab.design import METHODS


def rows(seed: int, *, good: dict[str, str]) -> list[dict[str, Any]]:
    """A set of every kind, in which one method is better than all others."""
    found: list[dict[str, Any]] = []
    for kind, overlap in (("specialists", 0.1 + seed / 100), ("same goal", 0.5 + seed / 100)):
        about = {"kind": kind, "regime": "shared", "seed": seed, "size": 4}
        measured = {"overlap_u": overlap, "chance_u": 0.0, "overlap_v": 0.5, "chance_v": 0.0, "cosine": 0.0}
        found.append({**about, "method": "compare", "scale_rule": "own", "rank": "r", **measured})
        for label in METHODS:
            for scale in ("own", "norm"):
                nll = 1.0 if (label, scale) == (good[kind], "own") else 2.0 + seed
                found.append({**about, "method": label, "scale_rule": scale, "rank": "R", "nll": {"a": nll, "b": nll}})
    return found


VALIDATION = [row for seed in choose.VALIDATION for row in rows(seed, good={"specialists": "tsvm", "same goal": "gam"})]


def test_the_split_is_where_the_sets_part() -> None:
    known, test = choose.halves(VALIDATION)
    assert not test
    rule = choose.fit(known, "overlap U")
    assert (rule.low, rule.high) == (("tsvm", "own"), ("gam", "own"))
    assert rule.most == pytest.approx((0.11 + 0.5) / 2)
    assert choose.mean_nll(known, rule) == 1.0


def test_seeds_that_judge_take_no_part() -> None:
    others = rows(2, good={"specialists": "mean", "same goal": "ctm"})
    known, test = choose.halves([*VALIDATION, *others])
    assert choose.fit(known, "overlap U") == choose.fit(choose.halves(VALIDATION)[0], "overlap U")
    assert {one.seed for one in test} == {2}
    assert choose.mean_nll(test, choose.fit(known, "overlap U")) == 4.0


def test_against_is_paired_by_seed_and_cell() -> None:
    good = {"specialists": "tsvm", "same goal": "gam"}
    test = choose.halves([row for seed in (2, 3, 4) for row in rows(seed, good=good)])[1]
    found = choose.against(test, choose.always(("tsvm", "own")), choose.always(("mean", "own")))
    assert found["specialists, shared"].interval.mean == pytest.approx(-4.0)  # 1 against 4, 5 and 6
    assert found["same goal, shared"].interval.mean == 0.0
    assert found[choose.ALL].interval.mean == pytest.approx(-2.0)


def test_a_set_with_a_method_missing_is_left_out() -> None:
    assert len(choose.sets(VALIDATION)) == 4
    assert len(choose.sets(VALIDATION[:-1])) == 3
