"""Hostile files by the thousand: headers, configs, keys, recipes and base models. Each ends in a result or in a
GamMergeError, within bounds of time and memory, and leaves no part of an output."""

import os
import time
from pathlib import Path

import fuzzing
import pytest
from fuzz_cases import KINDS, Action, Kind
from fuzz_draw import Draw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_cases_by_number(kind: Kind, tmp_path: Path) -> None:
    found, lost = fuzzing.run(kind, range(250), tmp_path)
    assert lost == []
    assert min(found["merged"], found["refused"]) > 20, (
        found
    )  # neither all nonsense nor all harmless


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=64))
def test_cases_by_hypothesis(
    kind: Kind, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which shrinks what it finds."""
    monkeypatch.chdir(tmp_path)
    fuzzing.good(tmp_path)
    assert fuzzing.attempt(kind, data, tmp_path) in ("merged", "refused")


def sleep(draw: Draw, folder: Path) -> Action:
    return lambda: time.sleep(60)


def spin(draw: Draw, folder: Path) -> Action:
    return lambda: sum(1 for _ in range(10**10))


def fill(draw: Draw, folder: Path) -> Action:
    return lambda: bytearray(fuzzing.MEMORY)


def crash(draw: Draw, folder: Path) -> Action:
    return os.abort


def stumble(draw: Draw, folder: Path) -> Action:
    return lambda: 1 // 0


def litter(draw: Draw, folder: Path) -> Action:
    return (folder / os.urandom(4).hex()).touch


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (sleep, "died of SIGALRM"),
        (spin, "died of SIGPROF"),
        (fill, "MemoryError"),
        (crash, "died of SIGABRT"),
        (stumble, "ZeroDivisionError"),
        (litter, "something else was written"),
    ],
)
def test_what_a_case_must_not_do_is_seen(kind: Kind, what: str, tmp_path: Path) -> None:
    found, lost = fuzzing.run(
        kind, range(2), tmp_path, seconds=0.5, wall=1.0 if kind is sleep else 60.0
    )
    assert not found
    assert [what in line for line in lost] == [True, True], lost
