"""A small laboratory for claims about merging: adapters of SmolLM2 on tasks with known answers.

design.py       what is measured, in what order, at what cost
adapters.py     trains an adapter, once
preferences.py  pairs of a weak and a weaker model, and adapters by DPO on them
measure.py      merges, loads the result into the model, measures it
run.py          one unit of work: adapters, merges, rows; can be stopped and resumed
pool.py         units of work over processes
rows.py         the results, one JSON object per line
statistics.py   means, intervals, paired tests
choose.py       a method for a set of adapters, chosen without data or by a few questions
chosen.py       tables of such choices
markdown.py     figures as text, and tables of them
report.py       tables and plots from the results, into results.md
check.py        the verdict of README.md again from the rows, by other code
check_studies.py  the same for what it says on the studies
command.py      python -m benchmarks lab
gpu.py          the paper's optimiser with its batch of 128 pairs, in one run on a GPU
studies/        preference deltas of the paper's optimiser, and noisy crowds, in float32

The scripts of examples/pda import each other by name: their folder is put on the path.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "examples" / "pda"))
