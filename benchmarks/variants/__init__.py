"""Every kind of adapter that PEFT writes, merged by PEFT, by mergekit and by gam-merge: what is right is measured.

The adapters and what is right of them are those of the tests, whose folder is put on the path.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))
