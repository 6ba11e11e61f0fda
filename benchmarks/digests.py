"""The sha256 of the merged example adapters by every method, which a refactoring must not change.

``python -m benchmarks digests --against REVISION`` compares the working tree with a commit.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
EXAMPLES = [ROOT / "examples" / "adapters" / name for name in ("addition", "sorting", "spelling")]
SPACES = ("core", "knots", "drm_h", "drm_v", "ctm", "factor", "delta")
COMPOSITIONS = (
    *("norm_equalise+mean", "mad_cap+gam", "pico+tsvm", "iso_c+svc", "consensus+subspace_boost"),
    *("pico+ties@core+svc", "ctm", "knots"),
)


def main(against: str | None) -> bool:
    """Print the digests, next to those of a commit if one is named.

    Returns whether all are equal.
    """
    in_tree = _digests_of(ROOT)
    at_commit = _digests_at(against) if against else {}
    table = Table("method", "sha256 here", f"sha256 at {against}" if against else "")
    different: list[str] = []
    for method in sorted({*in_tree, *at_commit}):
        digest, other = in_tree.get(method, "-"), at_commit.get(method, "-" if against else "")
        differs = against is not None and digest != other
        if differs:
            different.append(method)
        table.add_row(method, digest[:16], other[:16], style="red" if differs else "")
    Console().print(table)
    print(f"{len(in_tree)} methods, {len(different)} different {' '.join(different)}")
    return not different


def _digests_at(revision: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory(prefix="gam-merge-digests-") as folder:
        tree = Path(folder, "tree")
        subprocess.run(
            ["git", "worktree", "add", "--detach", "-q", tree, revision], cwd=ROOT, check=True
        )
        try:
            return _digests_of(tree)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)


def _digests_of(tree: Path) -> dict[str, str]:
    """Return the digests of the code in a checkout, from a process of its own."""
    path = os.pathsep.join(str(tree / folder) for folder in (".", "kernels", "cli"))
    command = [sys.executable, Path(__file__)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True, text=True
    )
    return dict(line.split() for line in done.stdout.splitlines())


def _names() -> Iterator[str]:
    """Yield every rule, every rule on entries in every space, and compositions with plug-ins."""
    import gam_merge as gm

    for method in gm.methods():
        yield method.name
        if method.to_dict()["in_spaces"]:
            yield from (f"{method.name}@{space}" for space in SPACES)
    yield from COMPOSITIONS


def _print_digests() -> None:
    import gam_merge as gm

    for name in _names():
        count = gm.get_method(name).adapters or len(EXAMPLES)
        with tempfile.TemporaryDirectory(prefix="gam-merge-digests-") as folder:
            gm.merge(EXAMPLES[:count], method=name, out=Path(folder, "out"))
            weights = Path(folder, "out", "adapter_model.safetensors").read_bytes()
        print(name, sha256(weights).hexdigest(), flush=True)


if __name__ == "__main__":
    _print_digests()
