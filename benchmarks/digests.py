"""The sha256 of the merged weights of the example adapters, by every method: what a change of the code must not change.

``python -m benchmarks digests --against REVISION`` prints both lists, of the working tree and of a commit.
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
SPACES = ("core", "knots", "ctm", "factor", "delta")
COMPOSITIONS = (
    *("norm_equalise+mean", "mad_cap+gam", "pico+tsvm", "iso_c+svc", "consensus+subspace_boost"),
    *("pico+ties@core+svc", "ctm", "knots"),
)


def main(against: str | None) -> bool:
    """Print the digests, beside those of a commit if one is named: whether all are equal."""
    here = _digests_of(ROOT)
    there = _digests_at(against) if against else here
    table = Table("method", "sha256 here", f"sha256 at {against}" if against else "")
    for method in sorted({*here, *there}):
        mine, theirs = here.get(method, "-"), there.get(method, "-")
        table.add_row(
            method, mine[:16], theirs[:16] if against else "", style="" if mine == theirs else "red"
        )
    Console().print(table)
    different = sorted(
        method for method in {*here, *there} if here.get(method) != there.get(method)
    )
    print(f"{len(here)} methods, {len(different)} different {' '.join(different)}")
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
    """Of the code in a checkout, in a process of its own."""
    path = os.pathsep.join(str(tree / folder) for folder in (".", "kernels", "cli"))
    command = [sys.executable, Path(__file__)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True, text=True
    )
    return dict(line.split() for line in done.stdout.splitlines())


def _names() -> Iterator[str]:
    """Every rule, every rule on entries in every space, and a few compositions with plug-ins."""
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
