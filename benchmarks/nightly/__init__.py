"""Faults and hostile files by the hundred, which take too long for every commit.

A trial is a function of a folder and a number of cases, in a file of its own, and listed in
``trials``. The tests run each with few cases; ``python -m benchmarks nightly`` runs all cases and
writes the table of docs/benchmarks.md.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))
