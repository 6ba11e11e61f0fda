"""Every kind of adapter that PEFT writes, merged by PEFT, mergekit and gam-merge, and measured.

The adapters and the correct results are those of the tests, whose folder is put on the path.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests" / "support"))
