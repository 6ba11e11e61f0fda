"""A disk that fills: a small file system in memory, with less and less room on it."""

import os
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers import contents, layers, restore

import gam_merge as gm
from benchmarks.nightly.trial import Outcome, Unmeasured, counted

_SIZE = 4 << 20


def disks(folder: Path, cases: int) -> Outcome:
    """Merge with random room on the disk, up to more than the output takes.

    Every second case has an old output to replace.
    """
    sources = layers(folder / "sources", modules=20, width=128, r=8)  # its merge takes 200 kB
    old = contents(gm.merge(sources[:1], out=folder / "old").path)
    new = contents(gm.merge(sources, out=folder / "new").path)
    assert old is not None
    assert new is not None
    most = int(1.2 * sum(map(len, new.values())))
    draw, lost, counts = random.Random(0), list[str](), Counter[str]()
    with _disk(folder / "disk") as disk:
        for case in range(cases):
            room, before = draw.randrange(0, most), old if case % 2 else None
            if before:
                restore(disk / "out", before)
            _fill(disk / "ballast", room)
            try:
                said = ""
                gm.merge(sources, out=disk / "out", force=True)
            except gm.GamMergeError as error:
                said = str(error)
            state, names = contents(disk / "out"), sorted(os.listdir(disk))
            if said and (state != before or "No space left on device" not in said or "\n" in said):
                lost.append(f"room for {room} bytes: {said}")
            if not said and state != new:
                lost.append(f"room for {room} bytes: no error, and not the new output")
            if names != ["ballast"] + ["out"] * (state is not None):
                lost.append(f"room for {room} bytes: left {names}")
            counts["refused" if said else "written"] += 1
            subprocess.run(["rm", "-rf", disk / "out", disk / "ballast"], check=True)
    return Outcome(lost, counted(counts))


@contextmanager
def _disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "none", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unmeasured("needs the right to mount a tmpfs") from error
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _fill(ballast: Path, room: int) -> None:
    """Leave about ``room`` bytes on the disk."""
    state = os.statvfs(ballast.parent)
    with open(ballast, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, state.f_bavail * state.f_frsize - room))
