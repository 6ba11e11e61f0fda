"""A file as output, with the texts about it next to it: whole or not there, whatever happens."""

import os
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from children import in_child
from helpers import random_factors
from safetensors.torch import save_file

import gam_merge as gm

State = tuple[bytes | None, dict[str, bytes] | None]  # the file, the texts by name


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two small files of kohya's grammar."""
    folder = tmp_path_factory.mktemp("sources")
    generator = torch.Generator().manual_seed(0)
    paths: list[Path] = []
    for name in ("a", "b"):
        tensors: dict[str, torch.Tensor] = {}
        for stem in ("lora_unet_x", "lora_unet_y"):
            up, down = random_factors(generator, 12, 12, 3, torch.float32)
            tensors |= {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}
        save_file(tensors, folder / f"{name}.safetensors")
        paths.append(folder / f"{name}.safetensors")
    return paths


def state(out: Path) -> State:
    home = out.with_name("out.gam-merge")
    texts = None
    if home.exists():
        texts = {path.name: path.read_bytes() for path in home.iterdir()}
    return (out.read_bytes() if out.exists() else None), texts


def restore(out: Path, before: State) -> None:
    weights, texts = before
    if weights is not None and texts is not None:
        out.write_bytes(weights)
        out.with_name("out.gam-merge").mkdir()
        for name, content in texts.items():
            out.with_name("out.gam-merge").joinpath(name).write_bytes(content)


def made(sources: list[Path], folder: Path, method: str) -> State:
    """The state after a merge. The folder is as deep as those of the tests: recipes have paths."""
    out = folder / "0" / "out.safetensors"
    gm.merge(sources, method=method, out=out)
    return state(out)


def test_the_folder_of_texts_stands_for_the_file(sources: list[Path], tmp_path: Path) -> None:
    """Where a user completes the wrong one of two names."""
    out = tmp_path / "out.safetensors"
    gm.merge(sources, method="mean", out=out)
    assert gm.verify(tmp_path / "out.gam-merge").checks == gm.verify(out).checks
    assert gm.verify(tmp_path / "out.gam-merge").holds
    out.unlink()
    (first, *_) = gm.verify(tmp_path / "out.gam-merge").failed
    assert (first.name, first.state) == ("out.safetensors", "missing")


_CHANGES = {
    *("os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir"),
    *("shutil.rmtree", "fcntl.flock"),
}


def _merge_and_die(sources: list[Path], out: Path, force: bool, links: bool, call: int) -> None:
    if not links:
        os.link = _no_links
    number = count()

    def watch(event: str, args: tuple[Any, ...]) -> None:
        opened = event == "open" and str(args[0]).startswith(str(out.parent))
        if (opened or event in _CHANGES) and next(number) == call:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    gm.merge(sources, method="gam", out=out, force=force)


def _no_links(*args: Any, **kwargs: Any) -> None:
    raise PermissionError("no links here")


@pytest.mark.parametrize("force", [False, True])
def test_killed_at_any_call_leaves_the_old_state_or_the_new(
    force: bool, sources: list[Path], tmp_path: Path
) -> None:
    """Between the names of the file and of the texts, the next run completes what was begun."""
    old: State = made(sources, tmp_path / "old", "mean") if force else (None, None)
    new = made(sources, tmp_path / "new", "gam")
    states: list[State] = []
    for call in count():
        out = tmp_path / "runs" / str(call) / "out.safetensors"
        out.parent.mkdir(parents=True)
        restore(out, old)
        code = in_child(_merge_and_die, sources, out, force, True, call)
        weights, texts = state(out)
        assert weights in (old[0], new[0])  # never half a file
        states.append((weights, texts))
        if weights is not None:
            with pytest.raises(gm.GamMergeError, match="already exists"):
                gm.merge(sources, method="gam", out=out)
            assert state(out) == (old if weights == old[0] else new)
        gm.merge(sources, method="gam", out=out, force=True)
        assert state(out) == new
        assert sorted(os.listdir(out.parent)) == ["out.gam-merge", "out.safetensors"]
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert old in states
    assert states[-1] == new
    assert any(unfinished not in (old, new) for unfinished in states)  # between the two names
    assert len(states) > 10


@pytest.mark.parametrize("force", [False, True])
def test_where_the_system_has_no_links(
    force: bool, sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = made(sources, tmp_path / "new", "gam")
    monkeypatch.setattr(os, "link", _no_links)
    out = tmp_path / "folder" / "out.safetensors"
    if force:
        gm.merge(sources, method="mean", out=out)
    gm.merge(sources, method="gam", out=out, force=force)
    assert state(out)[0] == new[0]
    assert sorted(os.listdir(out.parent)) == ["out.gam-merge", "out.safetensors"]


def test_without_force_nothing_is_replaced(sources: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"mine")
    with pytest.raises(gm.GamMergeError, match=r"already exists; choose .* pass --force"):
        gm.merge(sources, out=out)
    with pytest.raises(gm.GamMergeError, match="--force does not replace it"):
        gm.merge(sources, out=out, force=True)
    assert os.listdir(tmp_path) == ["out.safetensors"]


@pytest.mark.parametrize("what", ["file", "directory", "link"])
def test_force_replaces_no_strangers_texts(what: str, sources: list[Path], tmp_path: Path) -> None:
    out, home = tmp_path / "out.safetensors", tmp_path / "out.gam-merge"
    gm.merge(sources, out=out)
    if what == "file":
        (home / "notes.txt").write_text("mine")
    elif what == "directory":
        (home / "notes").mkdir()
    else:
        home.rename(tmp_path / "elsewhere")
        home.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(gm.GamMergeError, match="--force does not replace it"):
        gm.merge(sources, out=out, force=True)


def test_texts_without_their_file(sources: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    gm.merge(sources, out=out)
    out.unlink()
    for force in (False, True):
        with pytest.raises(gm.GamMergeError, match=r"no such file, but there is .*out\.gam-merge"):
            gm.merge(sources, out=out, force=force)


def test_a_source_is_not_replaced(sources: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    gm.merge(sources, out=out)
    with pytest.raises(gm.GamMergeError, match="is a source"):
        gm.merge([out, sources[0]], out=out, force=True)


def test_changed_files_are_noticed(sources: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    gm.merge(sources, out=out)
    assert gm.verify(out, rerun=True).holds
    content = bytearray(out.read_bytes())
    content[-1] ^= 1
    out.write_bytes(content)
    assert [check.name for check in gm.verify(out).failed] == ["out.safetensors"]
