"""The output is whole or not there: kills, full disks, two merges at once, and what --force may replace."""

import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from children import in_child, start
from helpers import Contents, contents, layers, random_factors, restore, tree, write_adapter
from safetensors.torch import save_file

import gam_merge as gm
from gam_merge._write import staging


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return layers(tmp_path_factory.mktemp("sources"), modules=2, width=12)


@pytest.fixture(scope="session")
def old(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Contents:
    """What a merge by mean writes."""
    return contents(
        gm.merge(sources, method="mean", out=tmp_path_factory.mktemp("old") / "out").path
    )


@pytest.fixture(scope="session")
def new(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Contents:
    """What a merge by GAM writes."""
    return contents(gm.merge(sources, out=tmp_path_factory.mktemp("new") / "out").path)


# --- killed at every system call that changes the folder ---------------------------------------------------------

_CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "fcntl.flock"}


def _merge_and_die(sources: list[Path], out: Path, force: bool, exchange: bool, call: int) -> None:
    if not exchange:
        staging._exchange = lambda x, y: False
    number = count()

    def watch(event: str, args: tuple[Any, ...]) -> None:
        changes = event in _CHANGES or (
            event == "open" and str(args[0]).startswith(str(out.parent))
        )
        if changes and next(number) == call:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    gm.merge(sources, out=out, force=force)


@pytest.mark.parametrize(
    ("force", "exchange"),
    [(False, True), (True, True), (True, False)],
    ids=["new", "exchange", "two_renames"],
)
def test_killed_at_any_call_leaves_the_old_state_or_the_new(
    force: bool,
    exchange: bool,
    sources: list[Path],
    old: dict[str, bytes],
    new: dict[str, bytes],
    tmp_path: Path,
) -> None:
    before = old if force else None
    whole = [files["adapter_model.safetensors"] for files in (old, new)]
    found = []
    for call in count():
        out = tmp_path / str(call) / "out"
        out.parent.mkdir()
        if before:
            restore(out, before)
        code = in_child(_merge_and_die, sources, out, force, exchange, call)
        state = contents(out)
        for weights in out.parent.rglob("*.safetensors"):
            if _loads(weights.parent):  # nothing looks complete that is not
                assert weights.read_bytes() in whole
        if out.exists() or not force:
            assert state in (before, new)
        else:  # between two renames
            assert not exchange
        found.append(state)
        if before:
            with pytest.raises(gm.GamMergeError, match="already exists"):
                gm.merge(sources, out=out)  # the next run puts back what is missing
            assert contents(out) == (state or before)
        gm.merge(sources, out=out, force=True)  # and clears up
        assert contents(out) == new
        assert os.listdir(out.parent) == ["out"]
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert before in found  # else nobody died before the end
    assert found[-1] == new
    assert len(found) > 10
    assert (None in found) == (not exchange or not force)


def _loads(directory: Path) -> bool:
    try:
        gm.load(directory)
    except gm.GamMergeError:
        return False
    return True


# --- killed at any time ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters of 50 MB: writing their merge takes longer than the latest kill."""
    return layers(tmp_path_factory.mktemp("large"), modules=100, width=1024, r=64)


def _merge(sources: list[Path], out: Path, force: bool) -> None:
    torch.set_num_threads(1)
    gm.merge(sources, out=out, force=force)


@pytest.fixture(scope="session")
def large_new(large: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Contents:
    return contents(gm.merge(large, out=tmp_path_factory.mktemp("large_new") / "out").path)


@pytest.mark.parametrize("force", [False, True])
def test_killed_at_any_time_leaves_the_old_state_or_the_new(
    force: bool, large: list[Path], large_new: Contents, old: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    before = old if force else None
    if before:
        restore(out, before)
    unfinished = 0
    for delay in (0.0, 0.02, 0.1, 0.3):
        left_by_the_dead = _siblings(out)
        process = start(_merge, large, out, force)
        while not _siblings(out) - left_by_the_dead and process.is_alive():
            time.sleep(0.002)
        time.sleep(delay)
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        state = contents(out)
        assert state in (before, large_new)
        assert len(_siblings(out)) <= 1  # that of the one before is gone
        unfinished += state == before
        if state == large_new:
            break
    assert unfinished >= 2
    gm.merge(large, out=out, force=True)
    assert contents(out) == large_new
    assert os.listdir(tmp_path) == ["out"]


def _siblings(out: Path) -> set[str]:
    return {name for name in os.listdir(out.parent) if name.startswith(".out.gam-merge-")}


# --- two at once -------------------------------------------------------------------------------------------------


def test_of_two_merges_into_one_output_the_first_to_finish_wins(
    sources: list[Path], old: Contents, tmp_path: Path
) -> None:
    """The slow one is alive all the time: the fast one must not take its files for litter."""
    out = tmp_path / "out"
    started, may_finish = threading.Event(), threading.Event()
    errors: list[str] = []

    def wait(done: int, total: int) -> None:
        started.set()
        assert may_finish.wait(60)

    def slow() -> None:
        try:
            gm.merge(sources, out=out, progress=wait)
        except gm.GamMergeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=slow)
    thread.start()
    assert started.wait(60)
    (alive,) = _siblings(out)
    gm.merge(sources, method="mean", out=out)
    assert _siblings(out) == {alive}
    may_finish.set()
    thread.join()
    assert errors == [
        f"{out}: already exists; choose another output or pass --force (force=True in Python)"
    ]
    assert contents(out) == old
    assert os.listdir(tmp_path) == ["out"]


def _merge_and_lose(sources: list[Path], winner: Path, out: Path) -> None:
    """Another merge gets there between the last look and the rename."""

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event == "os.rename" and Path(args[1]) == out:
            shutil.copytree(winner, out)

    sys.addaudithook(watch)
    try:
        gm.merge(sources, out=out)
    except gm.GamMergeError as error:
        sys.exit(0 if str(error).startswith(f"{out}: already exists; choose") else str(error))
    sys.exit("no error")


def test_the_last_moment_is_too_late(sources: list[Path], old: Contents, tmp_path: Path) -> None:
    winner = gm.merge(sources, method="mean", out=tmp_path / "winner").path
    assert in_child(_merge_and_lose, sources, winner, tmp_path / "folder" / "out") == 0
    assert contents(tmp_path / "folder" / "out") == old
    assert os.listdir(tmp_path / "folder") == ["out"]


def test_what_could_not_be_removed_the_next_merge_removes(
    sources: list[Path], new: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            "shutil.rmtree", lambda *args, **kwargs: None
        )  # as where the disk answers with an error
        with pytest.raises(KeyboardInterrupt):
            gm.merge(sources, out=tmp_path / "out", progress=_interrupt)
    assert len(_siblings(tmp_path / "out")) == 1
    gm.merge(sources, out=tmp_path / "out")
    assert contents(tmp_path / "out") == new
    assert os.listdir(tmp_path) == ["out"]


def _interrupt(done: int, total: int) -> None:
    raise KeyboardInterrupt


def test_other_outputs_are_left_alone(sources: list[Path], tmp_path: Path) -> None:
    """Names that begin alike, and a stranger's hidden folder."""
    for name in (
        ".out.gam-merge-x.gam-merge-0123456789abcdef",
        ".out.gam-merge-notes",
        ".out.gam-merge-",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
    gm.merge(sources, out=tmp_path / "out")
    assert len(os.listdir(tmp_path)) == 4


# --- a disk that takes no more -----------------------------------------------------------------------------------


def _merge_with_little_room(sources: list[Path], out: Path, after: int, room: int) -> None:
    """From ``after`` modules on no file may grow beyond ``room`` bytes."""

    def limit(done: int) -> None:
        if done >= after:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))

    limit(0)
    try:
        gm.merge(sources, out=out, progress=lambda done, total: limit(done))
    except gm.GamMergeError as error:
        sys.exit(
            0 if str(error).startswith(f"{out}: cannot be written: File too large") else str(error)
        )
    sys.exit("no error")


@pytest.mark.parametrize(
    ("after", "room"), [(0, 4), (0, 900), (2, 900)], ids=["header", "tensors", "report"]
)
def test_full_disk_is_an_error_and_leaves_nothing(
    after: int, room: int, sources: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "folder" / "out"
    assert in_child(_merge_with_little_room, sources, out, after, room) == 0
    assert os.listdir(tmp_path) == []


# --- what may be replaced ----------------------------------------------------------------------------------------


def test_force_replaces_a_merge_and_an_empty_directory(
    sources: list[Path], old: dict[str, bytes], new: Contents, tmp_path: Path
) -> None:
    restore(tmp_path / "merge", old)
    (tmp_path / "empty").mkdir()
    for name in ("merge", "empty", "nothing"):
        gm.merge(sources, out=tmp_path / name, force=True)
        assert contents(tmp_path / name) == new
    assert sorted(os.listdir(tmp_path)) == ["empty", "merge", "nothing"]


def _with_notes(out: Path, old: dict[str, bytes]) -> None:
    restore(out, {**old, "notes.txt": b"mine"})


def _peft_adapter(out: Path, old: dict[str, bytes]) -> None:
    write_adapter(
        out, {"w": random_factors(torch.Generator().manual_seed(0), 4, 4, 2, torch.float32)}
    )


def _weights_of_others(out: Path, old: dict[str, bytes]) -> None:
    restore(out, old)
    save_file({"x": torch.zeros(1)}, out / "adapter_model.safetensors")


def _broken_weights(out: Path, old: dict[str, bytes]) -> None:
    restore(out, {**old, "adapter_model.safetensors": b"torn"})


def _folder_for_a_file(out: Path, old: dict[str, bytes]) -> None:
    restore(out, {name: data for name, data in old.items() if name != "merge_report.json"})
    restore(out / "merge_report.json", {"mine": b""})


def _link_to_a_merge(out: Path, old: dict[str, bytes]) -> None:
    restore(out.with_name("elsewhere"), old)
    out.symlink_to("elsewhere")


def _broken_link(out: Path, old: dict[str, bytes]) -> None:
    out.symlink_to("nowhere")


def _file(out: Path, old: dict[str, bytes]) -> None:
    out.write_bytes(b"mine")


@pytest.mark.parametrize(
    "make",
    [
        _with_notes,
        _peft_adapter,
        _weights_of_others,
        _broken_weights,
        _folder_for_a_file,
        _link_to_a_merge,
        _broken_link,
        _file,
    ],
)
def test_force_replaces_nothing_else(
    make: Callable[..., None], sources: list[Path], old: dict[str, bytes], tmp_path: Path
) -> None:
    make(tmp_path / "out", old)
    before = tree(tmp_path)
    with pytest.raises(gm.GamMergeError, match="--force does not replace it") as error:
        gm.merge(sources, out=tmp_path / "out", force=True)
    assert str(error.value).startswith(f"{tmp_path / 'out'}: ")
    assert tree(tmp_path) == before


def test_output_that_appears_during_the_merge_is_not_replaced(
    sources: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def interfere(done: int, total: int) -> None:
        out.mkdir(exist_ok=True)
        (out / "notes.txt").write_text("mine")

    for force in (False, True):
        with pytest.raises(gm.GamMergeError, match=r"already exists|does not replace it"):
            gm.merge(sources, out=out, force=force, progress=interfere)
        assert tree(tmp_path) == {"out": None, "out/notes.txt": b"mine"}
        (out / "notes.txt").unlink()
        out.rmdir()


def test_source_cannot_be_the_output(
    sources: list[Path], old: dict[str, bytes], tmp_path: Path
) -> None:
    """Not under another name either, nor as a file in the output; a link to it is no output at all."""
    restore(tmp_path / "merge", old)
    before = tree(tmp_path)
    file = tmp_path / "merge" / "adapter_model.safetensors"
    dotted = tmp_path / "merge" / ".." / "merge"
    for source, out in [
        (tmp_path / "merge", dotted),
        (file, tmp_path / "merge"),
        (dotted, tmp_path / "merge"),
    ]:
        with pytest.raises(gm.GamMergeError, match="source"):
            gm.merge([source, sources[0]], out=out, force=True)
        assert tree(tmp_path) == before


def test_result_may_be_saved_over_itself(sources: list[Path], tmp_path: Path) -> None:
    """Its tensors are read from the very directory that is replaced."""
    result = gm.merge(sources, out=tmp_path / "out")
    before = contents(tmp_path / "out")
    result.save(tmp_path / "out", force=True)
    assert contents(tmp_path / "out") == before


def test_mode_is_that_of_any_new_directory(sources: list[Path], tmp_path: Path) -> None:
    (tmp_path / "ordinary").mkdir()
    gm.merge(sources, out=tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_relative_outputs(
    sources: list[Path], new: Contents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in ("out", "./deep/er/out", "../out", "deep/../out2"):
        gm.merge(sources, out=out)
        assert contents(Path(out)) == new
    gm.merge(sources, out=tmp_path / "empty" / "x")
    with pytest.raises(gm.GamMergeError, match="already exists"):
        gm.merge(sources, out=".")
