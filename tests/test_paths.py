"""Paths of any length and any script; folders and files that are closed to us. What cannot be is one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import contents, layers, tree
from terminal import environment

import gam_merge as gm


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    return layers(tmp_path / "sources", modules=2, width=12)


LONG, DEEP = "x" * 256, "/".join(["y" * 200] * 25)  # beyond what a name and a path may have
IMPOSSIBLE = {
    "long_name": (LONG, "File name too long"),
    "no_room_for_the_sibling": ("x" * 250, "File name too long"),
    "long_path": (DEEP, "File name too long"),
    "many_folders": (
        "z/" * 2030,
        "File name too long",
    ),  # a path of 4096 characters takes all of them
    "below_a_file": ("sources/a/adapter_config.json/out", "Not a directory"),
    "loop_of_links": ("loop/out", "Too many levels of symbolic links"),
    "back_from_nowhere": ("nowhere/../out", "No such file or directory"),
    "nul": ("a\0b", "the path contains a NUL byte"),
    "no_unicode": ("a\ud800", "the path is not valid Unicode"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_output_that_cannot_be(
    name: str, sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    before = tree(tmp_path)
    path, reason = IMPOSSIBLE[name]
    for write in (lambda: gm.merge(sources, out=path), lambda: gm.merge(sources).save(path)):
        with pytest.raises(
            gm.GamMergeError, match=f"cannot be written: .*{reason}.*; choose another output"
        ) as error:
            write()
        assert str(error.value).isprintable()
        assert tree(tmp_path) == before


@pytest.mark.parametrize("path", [LONG, DEEP, "loop/a", "a\0b"])
def test_a_source_that_cannot_be(
    path: str, sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    before = tree(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"sources": [{"path": path}]}))
    for use in (
        lambda: gm.merge([path, sources[0]]),
        lambda: gm.inspect(path),
        lambda: gm.merge_recipe(recipe),
        lambda: gm.fuse(path, sources[0], out="out"),
        lambda: gm.average_checkpoints(path),
    ):
        with pytest.raises(gm.GamMergeError, match="cannot be read: ") as error:
            use()
        assert str(error.value).isprintable()
    recipe.unlink()
    assert tree(tmp_path) == before


@pytest.mark.parametrize("base", [LONG, DEEP, "a\0b", "loop/a", "/proc/1/root/x", "\x1b[2J"])
def test_a_base_model_of_any_name(
    base: str, sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a name in a stranger's config: nothing is looked for there."""
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    config = sources[0] / "adapter_config.json"
    config.write_text(
        json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": base})
    )
    result = gm.merge(sources[:1], out="out")
    assert gm.load(result.path).base_model == base


@pytest.mark.parametrize(
    "name", ["ünïcödé/日本語/👍🏽", "a\nb", " ", "~", "-o", "x" * 220, "*?[a]", "e\u0301 é", "%2e"]
)
def test_any_name_that_can_be(
    name: str, sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = gm.merge(sources, out=tmp_path / "plain")
    again = gm.merge(
        [str(path) for path in _moved(sources, Path("in") / name)], out=Path("out") / name
    )
    assert {p.name for p in again.path.iterdir()} == {p.name for p in first.path.iterdir()}
    weights = [contents(result.path)["adapter_config.json"] for result in (first, again)]
    assert weights[0] == weights[1]
    recipe = gm.merge_recipe(again.path / "gam_merge_recipe.yaml", out="recipe")
    assert (
        contents(recipe.path)["adapter_model.safetensors"]
        == contents(again.path)["adapter_model.safetensors"]
    )
    assert gm.verify(again.path).holds


def _moved(sources: list[Path], folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    return [source.rename(folder / source.name) for source in sources]


# --- closed doors ------------------------------------------------------------------------------------------------

CLOSED = {  # place -> its mode, what is said
    "shut": (0o555, "shut/out: cannot be written: Permission denied; choose another output"),
    "shut/old": (0o555, "shut/old: cannot be written: Permission denied; choose another output"),
    "sources/a/adapter_model.safetensors": (0o000, "{place}: cannot be read: Permission denied"),
    "sources/a/adapter_config.json": (
        0o000,
        "{place}: cannot be read: Permission denied; it is expected next to",
    ),
    "sources/a": (0o000, "sources/a/adapter_model.safetensors: cannot be read: Permission denied"),
    "sources": (0o000, "sources/a: cannot be read: Permission denied"),
}
_CHILD = """
import json, os, sys
import gam_merge as gm
said = {}
for place, (mode, _) in json.load(sys.stdin).items():
    usual = os.stat(place).st_mode
    os.chmod(place, mode)
    try:
        gm.merge(["sources/a", "sources/b"], out="shut/old" if place == "shut/old" else "shut/out", force=True)
    except gm.GamMergeError as error:
        said[place] = str(error)
    os.chmod(place, usual)
print(json.dumps(said))
"""
# Root passes any door, but without these rights.
_AS_OTHERS = (
    ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
)


def test_closed_doors(sources: list[Path], tmp_path: Path) -> None:
    gm.merge(sources[:1], out=tmp_path / "shut" / "old")
    before = tree(tmp_path)
    done = subprocess.run(
        [*_AS_OTHERS, sys.executable, "-c", _CHILD],
        cwd=tmp_path,
        env=environment(),
        input=json.dumps(CLOSED),
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    said = json.loads(done.stdout)
    assert said.keys() == CLOSED.keys()
    for place, (_, reason) in CLOSED.items():
        assert said[place].startswith(reason.format(place=place))
    assert tree(tmp_path) == before
