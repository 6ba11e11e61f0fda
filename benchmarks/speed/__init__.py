"""How fast gam-merge is, over the least work and next to PEFT and a dense merge, and how exact.

floor.py      reading, writing and the least arithmetic, at the rates of this machine
cases.py      gam-merge over that floor, and the memory that it takes
peers.py      PEFT and a dense merge on the shapes of one model
accuracy.py   float32 against the dense float64 oracle of the tests
report.py     the tables of docs/benchmarks.md and the plot, from the results
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))
