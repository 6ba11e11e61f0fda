"""Public bug reports about LoRA files: the tests of them, each a case."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.nightly.trial import Outcome

_ROOT = Path(__file__).parents[2]
FILES = ("tests/test_public_reports.py", "tests/test_peft_bugs.py", "tests/test_names.py")


def reports(folder: Path, cases: int) -> Outcome:
    """Run the tests. One that fails is lost, and so is one that is no longer there."""
    results = folder / "results.xml"
    command = [sys.executable, "-m", "pytest", "-q", f"--junit-xml={results}", *FILES]
    subprocess.run(command, cwd=_ROOT, capture_output=True)
    tests = list(ElementTree.parse(results).iter("testcase"))
    lost = [str(test.get("name")) for test in tests if len(test)]  # with a failure, or skipped
    lost += [f"test {number} is not there" for number in range(len(tests), cases)]
    return Outcome(lost, f"{len(tests) - len(lost)} passed")
