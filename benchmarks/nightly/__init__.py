"""Faults and hostile files by the hundred, too long for every commit: what was tried, and how often a promise broke.

A trial is a function of a folder and a number of cases in a file of its own, named in ``trials``. The tests run each of
them with few cases; ``python -m benchmarks nightly`` runs all cases and writes the table of the README.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))
