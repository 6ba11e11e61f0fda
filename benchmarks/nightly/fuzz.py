"""Hostile files: a result or an error in words, in a gigabyte and five seconds, and no part of an output."""

from pathlib import Path

import fuzzing
from fuzz_cases import KINDS

from benchmarks.nightly.trial import Outcome, counted


def fuzz(kind: str, folder: Path, cases: int) -> Outcome:
    """Cases of a kind by number, in a process that a new one follows where a case kills it."""
    found, lost = fuzzing.run(KINDS[kind], range(cases), folder)
    return Outcome(lost, counted(found))
