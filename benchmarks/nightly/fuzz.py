"""Hostile files: each gives a result or an error in words, within a gigabyte and five seconds."""

from pathlib import Path

import fuzzing
from fuzz_cases import KINDS

from benchmarks.nightly.trial import Outcome, counted


def fuzz(kind: str, folder: Path, cases: int) -> Outcome:
    """Try the numbered cases of a kind, in a process that is replaced if a case kills it."""
    counts, lost = fuzzing.run(KINDS[kind], range(cases), folder)
    return Outcome(lost, counted(counts))
