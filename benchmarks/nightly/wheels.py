"""The wheel is a function of the sources: built elsewhere and later, it has the same bytes."""

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
    """Build copies of the sources with other paths, times, rights, hash seeds and time zones."""
    digests = [_build(folder / str(case), case) for case in range(cases)]
    lost: list[str] = []
    for case, digest in enumerate(digests):
        if digest != digests[0]:
            lost.append(f"build {case} differs from the first")
    return Outcome(lost, f"{len(set(digests))} sha256")


def _build(home: Path, case: int) -> str:
    """Return the sha256 of a wheel."""
    for name in _SOURCES:
        source, target = _ROOT / name, home / ("x" * case) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    for path in home.rglob("*"):
        umask = 0o077 * (case % 2)  # git keeps no more of the rights
        path.chmod((0o755 if path.is_dir() else 0o644) & ~umask)
        os.utime(path, (1e9 + case * 1e7,) * 2)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["-w", str(home / "wheel"), str(target.parent)]
    environment = {**os.environ, "PYTHONHASHSEED": str(case), "TZ": ("UTC", "Asia/Tokyo")[case % 2]}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise Unmeasured(f"no wheel was built: {done.stderr.strip().splitlines()[-1:]}")
    (wheel,) = (home / "wheel").glob("*.whl")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()
