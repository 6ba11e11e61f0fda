"""System calls that fail: strace answers one call of a merge with an error of the disk."""

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
    """Check that nothing is written, and that one line names the file."""
    sources = layers(folder / "sources", modules=20, width=64)
    only: list[str] = []
    for source in sources:
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            only += ["-P", str(source / name)]
    return _fail(folder, cases, sources, [*_LOOKING, *_READING], only, before=None)


def writes(folder: Path, cases: int) -> Outcome:
    """Check that the old output stays or the new one is whole.

    The next merge must clear up what this one could not.
    """
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
    """Let calls fail: the first, second, ... of each kind, in random order."""
    if shutil.which("strace") is None:
        raise Unmeasured("needs strace")
    new = contents(gm.merge(sources, out=folder / "new").path)
    made = _made(folder / "counted", sources, calls, only, before)
    every: list[tuple[str, int]] = []
    for call in calls:
        every += [(call, number + 1) for number in range(made[call])]
    draw = random.Random(0)
    chosen = draw.choices(every, k=cases) if len(every) < cases else draw.sample(every, cases)
    lost, counts = list[str](), Counter[str]()
    for case, (call, number) in enumerate(chosen):
        home = folder / str(case)
        error = "ENOSPC" if call in ("write", "mkdir") and case % 2 else "EIO"
        fault = ["-e", f"inject={call}:error={error}:when={number}"]
        code, said = _traced(home, sources, [*only, *fault], calls, before)
        state = contents(home / "out")
        left = sorted(path.name for path in home.iterdir() if path.name != "out")
        gm.merge(sources, out=home / "out", force=True)
        explained = (code == 0 or said.startswith("GamMergeError ")) and "\n" not in said
        if state not in (before, new) or not explained:
            lost.append(f"{error} at {call} {number}: {said or code}")
        elif only and left:
            lost.append(f"{error} at {call} {number}: left {left}")
        elif contents(home / "out") != new or [path.name for path in home.iterdir()] != ["out"]:
            lost.append(f"{error} at {call} {number}: the next merge did not clear up")
        counts["went on" if code == 0 else "refused"] += 1
    return Outcome(lost, f"{counted(counts)}; {len(every)} calls")


def _made(
    home: Path, sources: Sequence[Path], calls: Sequence[str], only: Sequence[str], before: Contents
) -> Counter[str]:
    """Return how many calls of each kind a merge makes."""
    _traced(home, sources, only, calls, before)
    lines = (home.with_name(f"{home.name}.trace")).read_text().splitlines()
    lines = [line for line in lines if "(" in line and not line.startswith("+++")]
    return Counter(line.split("(")[0].split()[-1] for line in lines)


def _traced(
    home: Path,
    sources: Sequence[Path],
    options: Sequence[str],
    calls: Sequence[str],
    before: Contents,
) -> tuple[int, str]:
    """Merge into ``home/out`` in a process under strace.

    Returns the exit code and the text of the exception.
    """
    home.mkdir()
    if before is not None:
        restore(home / "out", before)
    names = ("ready", "go", "error", "trace")
    ready, go, raised, trace = (home.with_name(f"{home.name}.{name}") for name in names)
    process = start(_merge, sources, home / "out", ready, go, raised)
    wait_for(ready)
    command = ["strace", "-f", "-p", str(process.pid), "-o", str(trace)]
    command += ["-e", f"trace={','.join(calls)}", *options]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    if "attached" not in line:
        process.kill()
        raise Unmeasured(line.strip())
    go.touch()
    process.join()
    tracer.communicate()
    return process.exitcode or 0, raised.read_text() if raised.exists() else ""


def _merge(sources: Sequence[Path], out: Path, ready: Path, go: Path, raised: Path) -> None:
    # once before, so that the imports of Python are over
    gm.merge(sources, out=ready.with_name(f"{ready.name}.first"))
    ready.touch()
    wait_for(go)
    said = ""
    try:
        gm.merge(sources, out=out, force=True)
    except Exception as error:
        said = f"{type(error).__name__} {error}"
    while said and not raised.exists():
        try:
            raised.write_text(said)  # this call may be the one that fails
        except OSError:
            raised.unlink(missing_ok=True)
    sys.exit(bool(said))
