"""Choices: without data they split where sets part, and other seeds judge; by a few questions each set has its own."""

from typing import Any

import pytest

from benchmarks.lab import choose, chosen
from benchmarks.lab.design import BY_OVERLAP, FEW, METHODS


def rows(seed: int, *, good: dict[str, str]) -> list[dict[str, Any]]:
    """A set of every kind, in which one method is better than all others."""
    found: list[dict[str, Any]] = []
    for kind, overlap in (("specialists", 0.1 + seed / 100), ("same goal", 0.5 + seed / 100)):
        about = {"kind": kind, "regime": "shared", "seed": seed, "size": 4}
        measured = {
            "overlap_u": overlap,
            "chance_u": 0.0,
            "overlap_v": overlap,
            "chance_v": 0.0,
            "cosine": overlap,
        }
        found.append({**about, "method": "compare", "scale_rule": "own", "rank": "r", **measured})
        for label in METHODS:
            for scale in ("own", "norm"):
                nll = 1.0 if (label, scale) == (good[kind], "own") else 2.0 + seed
                found.append(
                    {
                        **about,
                        "method": label,
                        "scale_rule": scale,
                        "rank": "R",
                        "nll": {"a": nll, "b": nll},
                    }
                )
    return found


VALIDATION = [
    row
    for seed in choose.VALIDATION
    for row in rows(seed, good={"specialists": "tsvm", "same goal": "gam"})
]


def points(seed: int, *, good: str) -> list[dict[str, Any]]:
    """Points of the plane: one is the best on test questions; one question takes the last one for it, more do not."""
    found: list[dict[str, Any]] = []
    for kind in ("specialists", "same goal"):
        about = {"kind": kind, "regime": "shared", "seed": seed, "size": 4}
        for label, scale in choose.POINTS:
            best = 0.5 if (label, scale) == (good, "norm") else 3.0
            few = {str(most): best for most in FEW} | {
                "1": 0.0 if (label, scale) == choose.POINTS[-1] else 1.0
            }
            nll = {"a": best, "b": best}
            found.append(
                {**about, "method": label, "scale_rule": scale, "rank": "R", "nll": nll, "few": few}
            )
    return found


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
    assert found[choose.ALL].interval.n == 3
    half = [one for one in test if one.seed == 2 or one.cell == ("same goal", "shared")]
    found = choose.against(half, choose.always(("tsvm", "own")), choose.always(("mean", "own")))
    assert found[choose.ALL].interval.mean == pytest.approx(
        -0.5
    )  # -3 and 0 in one seed, 0 in the others


def test_a_set_with_a_method_missing_is_left_out() -> None:
    assert len(choose.sets(VALIDATION)) == 4
    assert len(choose.sets(VALIDATION[:-1])) == 3


def test_a_few_questions_choose_for_each_set() -> None:
    good = {0: "consensus(0, 0.5)", 1: "consensus(-0.5, 1)"}
    known, _ = choose.halves(
        [*VALIDATION, *(row for s in good for row in points(s, good=good[s]))], choose.POINTS
    )
    assert {one.seed: choose.by_few(4)(one) for one in known} == {
        s: (label, "norm") for s, label in good.items()
    }
    assert {choose.by_few(1)(one) for one in known} == {("consensus(0, 1)", "own")}
    assert choose.mean_nll(known, choose.by_few(16)) == 0.5


def test_tables_of_choices_in_the_plane() -> None:
    good = {"specialists": "tsvm", "same goal": "gam"}
    every = [
        row for s in range(4) for row in [*rows(s, good=good), *points(s, good="consensus(0, 0.5)")]
    ]
    first, *rest = chosen.in_the_plane(every)
    assert "| 4 questions per family | - | - | - | 0.500 | 0.500 |" in first
    assert "| 1 question per family | - | - | - | 3.000 | 3.000 |" in first
    by_four = rest[rest.index("By 4 questions per family, on all seeds:") + 1]
    assert (
        "| specialists, shared | 0.00 ± 0.00, same (p 1) |" in by_four
    )  # against the fixed point that is the best
    assert chosen.in_the_plane(VALIDATION) == ["unmeasured"]


def test_what_suggested_a_point_does_not_judge_it() -> None:
    label, _ = choose.CANDIDATE
    good = {"specialists": "tsvm", "same goal": "gam"}
    every = [row for s in (1, 2, 3) for row in [*rows(s, good=good), *points(s, good=label)]]
    title, found = chosen.one_for_all(every)
    assert "on 4 sets" in title  # of six: seed 2 has seen it
    assert "| specialists, shared | -3.50 ± 12.71, open" in found  # 0.5 against 3 and 5
    assert chosen.one_for_all([row for row in every if row["seed"] == 2]) == ["unmeasured"]


def test_p_from_the_overlaps_is_held_against_fixed_methods() -> None:
    good = {"specialists": "tsvm", "same goal": "gam"}
    every = [row for s in (0, 1, 2) for row in rows(s, good=good)]
    more = [
        {**row, "method": label, "scale_rule": rule, "nll": {"a": 2.0}}
        for row in every
        if row["method"] == "mean" and row["scale_rule"] == "own"
        for label in BY_OVERLAP
        for rule in ("own", "norm")
    ]
    first, _, cells = chosen.by_overlap([*every, *more])
    assert "| over 6 sets |" in first
    assert "| consensus, p of each module, own | 2.000 |" in first
    assert "| specialists, shared | -1.00 ± 2.48, open" in cells  # 2 against 2, 3 and 4
    assert chosen.by_overlap(every) == ["unmeasured"]
