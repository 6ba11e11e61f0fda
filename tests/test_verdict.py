"""The advice holds against what the laboratory has measured."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lab import choose
from gam_merge._diagnose.verdict import REGIMES
from gam_merge._methods import get_method

RESULTS = Path(__file__).parent.parent / "benchmarks" / "lab" / "results.jsonl"
KINDS = {"specialists": "specialists", "same goal": "one goal"}  # laboratory: regime
NAMES = {("consensus(-0.25)", "own"): ("consensus", {"p": -0.25})}
CLOSE = 0.05  # nats: what few seeds cannot tell apart


def rows() -> Iterator[dict[str, Any]]:
    return (row for row in map(json.loads, RESULTS.read_text().splitlines()) if row["size"] == 4)


def test_sets_of_known_kind_are_told_apart():
    seen = [
        (row["kind"], (row["overlap_u"] - row["chance_u"]) / (1 - row["chance_u"]))
        for row in rows()
        if "overlap_u" in row
    ]
    assert {kind for kind, _ in seen} >= KINDS.keys()
    for kind, above in seen:
        if kind in KINDS:
            assert next(r.kind for r in REGIMES if above <= r.max_overlap) == KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_recommended_was_close_to_the_best(kind):
    """By mean NLL over all seeds and both kinds of initialisation, at the sum of ranks, scales not tuned."""
    among = [
        one for one in choose.sets(rows()) if one.cell[0] == kind
    ]  # with every method measured
    nll = {choice: choose.mean_nll(among, choose.always(choice)) for choice in choose.CHOICES}
    first = next(regime for regime in REGIMES if regime.kind == KINDS[kind]).best
    (name,) = [
        name for name, candidate in NAMES.items() if candidate == (first.method, first.params)
    ]
    assert nll[name] < min(nll.values()) + CLOSE
    assert nll[name] < nll["mean", "own"] + CLOSE


def test_it_beat_the_mean_in_every_set_of_preferences():
    sets = [one for one in choose.sets(rows()) if one.cell[0] == "preferences"]
    assert len(sets) > 4
    for one in sets:
        assert one.nll["consensus(-0.25)", "own"] < one.nll["mean", "own"]
        assert one.nll["consensus(-0.25)", "norm"] < one.nll["consensus(-0.25)", "own"]


def test_every_regime_names_a_method_that_takes_its_parameters():
    for regime in REGIMES:
        get_method(regime.best.method).validate(regime.best.params)
    assert REGIMES[-1].max_overlap == 1.0  # every overlap belongs to a regime
