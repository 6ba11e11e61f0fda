"""System calls that fail: strace, attached to a merge, answers one of them with an error of the disk."""

import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from children import start
from helpers import Contents, contents, layers, restore

import gam_merge as gm
from benchmarks.nightly.trial import Outcome, Unmeasured, counted, wait_for

_LOOKING, _READING = ("newfstatat", "fstat", "openat"), ("lseek", "read")
_WRITING = (
    "mkdir",
    "openat",
    "write",
    "fsync",
    "flock",
    "rename",
    "renameat2",
    "unlink",
    "unlinkat",
    "rmdir",
)


def reads(folder: Path, cases: int) -> Outcome:
    """Nothing is written, and one line names the file."""
    sources = layers(folder / "sources", modules=20, width=64)
    files = [
        source / name
        for source in sources
        for name in ("adapter_model.safetensors", "adapter_config.json")
    ]
    only = [word for file in files for word in ("-P", str(file))]
    return _fail(folder, cases, sources, [*_LOOKING, *_READING], only, before=None)


def writes(folder: Path, cases: int) -> Outcome:
    """The old output stays or the new one is whole, and what could not be cleared away the next merge clears."""
    sources = layers(folder / "sources", modules=20, width=64)
    before = contents(gm.merge(sources[:1], out=folder / "old").path)
    return _fail(folder, cases, sources, _WRITING, [], before=before)


def _fail(
    folder: Path,
    cases: int,
    sources: Sequence[Path],
    calls: Sequence[str],
    only: Sequence[str],
    *,
    before: Contents,
) -> Outcome:
    """Of every kind of call the first, the second and so on, in an order that is drawn."""
    if shutil.which("strace") is None:
        raise Unmeasured("needs strace")
    new = contents(gm.merge(sources, out=folder / "new").path)
    made = _made(folder / "counted", sources, calls, only, before)
    every = [(call, number + 1) for call in calls for number in range(made[call])]
    chosen = (
        random.Random(0).choices(every, k=cases)
        if len(every) < cases
        else random.Random(0).sample(every, cases)
    )
    lost, found = list[str](), Counter[str]()
    for case, (call, number) in enumerate(chosen):
        home = folder / str(case)
        error = "ENOSPC" if call in ("write", "mkdir") and case % 2 else "EIO"
        code, said = _traced(
            home,
            sources,
            [*only, "-e", f"inject={call}:error={error}:when={number}"],
            calls,
            before,
        )
        state = contents(home / "out")
        left = sorted(path.name for path in home.iterdir() if path.name != "out")
        gm.merge(sources, out=home / "out", force=True)
        if (
            state not in (before, new)
            or (code != 0 and not said.startswith("GamMergeError "))
            or "\n" in said
        ):
            lost.append(f"{error} at {call} {number}: {said or code}")
        elif only and left:
            lost.append(f"{error} at {call} {number}: left {left}")
        elif contents(home / "out") != new or [path.name for path in home.iterdir()] != ["out"]:
            lost.append(f"{error} at {call} {number}: the next merge did not clear up")
        found["went on" if code == 0 else "refused"] += 1
    return Outcome(lost, f"{counted(found)}; {len(every)} calls")


def _made(
    home: Path, sources: Sequence[Path], calls: Sequence[str], only: Sequence[str], before: Contents
) -> Counter[str]:
    """How many calls of each kind a merge makes."""
    _traced(home, sources, only, calls, before)
    lines = (home.with_name(f"{home.name}.trace")).read_text().splitlines()
    return Counter(
        line.split("(")[0].split()[-1]
        for line in lines
        if "(" in line and not line.startswith("+++")
    )


def _traced(
    home: Path,
    sources: Sequence[Path],
    options: Sequence[str],
    calls: Sequence[str],
    before: Contents,
) -> tuple[int, str]:
    """A merge into ``home/out`` in a process of its own under strace: its exit code, and what it raised."""
    home.mkdir()
    if before is not None:
        restore(home / "out", before)
    ready, go, told, trace = (
        home.with_name(f"{home.name}.{name}") for name in ("ready", "go", "told", "trace")
    )
    process = start(_merge, sources, home / "out", ready, go, told)
    wait_for(ready)
    command = [
        "strace",
        "-f",
        "-p",
        str(process.pid),
        "-o",
        str(trace),
        "-e",
        f"trace={','.join(calls)}",
        *options,
    ]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    if "attached" not in line:
        process.kill()
        raise Unmeasured(line.strip())
    go.touch()
    process.join()
    tracer.communicate()
    return process.exitcode or 0, told.read_text() if told.exists() else ""


def _merge(sources: Sequence[Path], out: Path, ready: Path, go: Path, told: Path) -> None:
    gm.merge(
        sources, out=ready.with_name(f"{ready.name}.first")
    )  # what Python imports is no fault of a merge
    ready.touch()
    wait_for(go)
    said = ""
    try:
        gm.merge(sources, out=out, force=True)
    except Exception as error:
        said = f"{type(error).__name__} {error}"
    while said and not told.exists():
        try:
            told.write_text(said)  # this call may be the one that fails
        except OSError:
            told.unlink(missing_ok=True)
    sys.exit(bool(said))
