"""``python -m benchmarks.nightly.guided KIND CASES``: hostile files, bred by the code they reach.

Needs atheris, which has wheels for Linux: pip install -e '.[fuzz]'. It stops at the first case that
ends in anything but a result or an error in words, and leaves its bytes in the current directory.
The trial ``bred`` runs all kinds.
"""

import os
import sys
import tempfile
from pathlib import Path

import atheris

import benchmarks.nightly

with atheris.instrument_imports(include=["gam_merge", "yaml", "json"]):
    import fuzzing
    from fuzz_cases import KINDS

assert benchmarks.nightly  # for the path of the tests


def main(kind: str, cases: str) -> None:
    """Breed the cases of a kind, in a directory of their own."""
    home, folder = Path.cwd(), Path(tempfile.mkdtemp(prefix="gam-merge-guided-"))
    os.chdir(folder)
    fuzzing.good(folder)
    limits = ["-rss_limit_mb=4096", "-timeout=60", "-max_len=128", "-len_control=0"]
    atheris.Setup(
        [sys.argv[0], f"-runs={cases}", f"-artifact_prefix={home}/", *limits],
        lambda data: fuzzing.attempt(KINDS[kind], data, folder),
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
