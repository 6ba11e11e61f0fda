"""The wheel is a function of the sources: built elsewhere, later, by another hand, it is the same bytes."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.nightly.trial import Outcome, Unmeasured

_ROOT = Path(__file__).parents[2]
_SOURCES = ("gam_merge", "kernels", "cli", "pyproject.toml", "README.md", "LICENSE")


def wheels(folder: Path, cases: int) -> Outcome:
    """Each build from a copy of the sources in another place, with other times, rights, hash seed and time zone."""
    digests = [_build(folder / str(case), case) for case in range(cases)]
    differ = [
        f"build {case} differs from the first"
        for case, found in enumerate(digests)
        if found != digests[0]
    ]
    return Outcome(differ, f"{len(set(digests))} sha256")


def _build(home: Path, case: int) -> str:
    """The sha256 of a wheel."""
    for name in _SOURCES:
        source, target = _ROOT / name, home / ("x" * case) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    for path in home.rglob("*"):
        path.chmod(
            (0o755 if path.is_dir() else 0o644) & ~(0o077 * (case % 2))
        )  # a umask: git keeps no more
        os.utime(path, (1e9 + case * 1e7,) * 2)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "-w",
        str(home / "wheel"),
        str(target.parent),
    ]
    environment = {**os.environ, "PYTHONHASHSEED": str(case), "TZ": ("UTC", "Asia/Tokyo")[case % 2]}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise Unmeasured(f"no wheel was built: {done.stderr.strip().splitlines()[-1:]}")
    (wheel,) = (home / "wheel").glob("*.whl")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()
