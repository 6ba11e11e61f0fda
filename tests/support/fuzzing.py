"""Tries cases of hostile files: each ends in a result or in a GamMergeError, in bounded time and memory.

The cases of a kind run one after another in a process of their own that may not take more than a gigabyte and that
dies where one takes longer than it may; the next process goes on after it.
"""

import os
import random
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # a name in a recipe may be one on the Hub

import torch
from children import limit, pipe, start
from fuzz_cases import KINDS, Kind, good
from fuzz_draw import Draw
from safetensors.torch import load_file

import gam_merge as gm

MEMORY = 1 << 30  # bytes above what a process holds before its first case
LONGEST = 4000  # characters of a message


def attempt(kind: Kind, data: bytes, folder: Path) -> str:
    """Run a case in a folder that holds ``good``: "merged" or "refused". Raises anything else that happens."""
    action = kind(Draw(data), folder)
    before = paths(folder)
    try:
        action()
    except gm.GamMergeError as error:
        message = str(error)
        assert message.isprintable(), message
        assert len(message) <= LONGEST, len(message)
        assert paths(folder) == before, "something was written"
        return "refused"
    out = folder / "out"
    assert {path for path in paths(folder) - before if path.parent != out} <= {out}, (
        "something else was written"
    )
    if out.exists():
        check(out)
    return "merged"


def check(out: Path) -> None:
    """The output is whole and its numbers finite; an adapter is read again."""
    files = [load_file(file) for file in out.glob("*.safetensors")]
    assert files
    assert all(tensor.isfinite().all() for tensors in files for tensor in tensors.values())
    if (out / "adapter_config.json").exists():
        gm.load(out)
    for path in out.iterdir():
        path.unlink()
    out.rmdir()


def paths(folder: Path) -> set[Path]:
    return {
        Path(place, name)
        for place, folders, files in os.walk(folder)
        for name in (*folders, *files)
    }


def case(kind: Kind, number: int) -> bytes:
    """The bytes of a case of a kind."""
    draw = random.Random(f"{kind.__name__} {number}")
    return draw.randbytes(draw.choice([8, 16, 32, 64, 128]))


def run(
    kind: Kind, cases: range, folder: Path, *, seconds: float = 5.0, wall: float = 120.0
) -> tuple[Counter[str], list[str]]:
    """How often each outcome was; and of the cases that had another, what happened.

    seconds: of the processor, for one case. wall: for one that waits, which takes none; others have the machine too.
    """
    found, lost = Counter[str](), list[str]()
    good(folder)
    while cases:
        ours, theirs = pipe()
        process = start(_run, kind, cases, folder, seconds, wall, theirs)
        theirs.close()
        number = cases.start
        for number, outcome in _received(ours):
            if outcome in ("merged", "refused"):
                found[outcome] += 1
            elif outcome != "begun":
                lost.append(f"{kind.__name__} {number}: {outcome}")
        process.join()
        if process.exitcode:
            lost.append(
                f"{kind.__name__} {number}: died of {signal.Signals(-process.exitcode).name}"
            )
        cases = range(number + 1, cases.stop)
    return found, lost


def _received(ours: Connection) -> Iterator[tuple[int, str]]:
    while True:
        try:
            yield ours.recv()
        except EOFError:
            return


def _run(
    kind: Kind, cases: range, folder: Path, seconds: float, wall: float, report: Connection
) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)  # where "touch owned" would leave its mark
    for number in cases:
        report.send((number, "begun"))
        limit(memory=MEMORY, seconds=seconds, wall=wall)
        try:
            outcome = attempt(kind, case(kind, number), folder)
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            outcome = f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {str(error)[:200]!r}"
        report.send((number, outcome))


if (
    __name__ == "__main__"
):  # python tests/support/fuzzing.py KIND NUMBER FOLDER: one case, with its traceback
    name, chosen, place = sys.argv[1:]
    good(Path(place))
    sys.exit(attempt(KINDS[name], case(KINDS[name], int(chosen)), Path(place)))
