"""Hostile files bred by the code that they reach, which finds more than numbered cases do."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from fuzz_cases import KINDS

from benchmarks.nightly.trial import Outcome, Unmeasured


def bred(folder: Path, cases: int) -> Outcome:
    """Try as many of each kind, in a process with an instrumented library: see ``guided``."""
    if find_spec("atheris") is None:
        raise Unmeasured("needs atheris, pip install -e '.[fuzz]'")
    lost, reached = list[str](), list[str]()
    for kind in KINDS:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.nightly.guided", kind, str(cases // len(KINDS))],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        edges = re.findall(r"cov: (\d+)", done.stdout)
        reached.append(f"{kind} {edges[-1] if edges else 0}")
        if done.returncode != 0:
            errors = re.findall(r"^[\w.]*(?:Error|SUMMARY|Base64)\b.*", done.stdout, re.MULTILINE)
            lost.append(f"{kind}: {'; '.join(errors)[-700:]}")
    return Outcome(lost, f"edges of code: {', '.join(reached)}")
