"""How fast, against what cannot be done without, and against PEFT and a dense merge; how exact; how it grows.

floor.py      reading, writing and the least arithmetic at this machine's own rate
cases.py      gam-merge over that floor, and the memory that it takes
peers.py      PEFT and a dense merge on the shapes of one model
accuracy.py   float32 against the dense float64 oracle of the tests
report.py     the tables of the README and the plot, from the results alone
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))
