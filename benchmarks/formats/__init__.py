"""Every format, merged, and read back by the readers of its files: what they make of it.

readers.py    what a reader makes of the sources and of the merge
rows.py       the formats, with sources and readers
measure.py    one row of the table
report.py     docs/formats.md, from the results

The toy models are those of the tests, whose folder is put on the path.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))
