"""``gam-merge methods``, and a method that comes from another package."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import delta, random_factors, relative, write_adapter
from terminal import run

import gam_merge as gm

PLUGIN = """
from typing import Annotated

import torch
import gam_merge.rules as gmr


@gmr.rule(
    "core",
    "loudest",
    summary="the delta with the largest norm",
    reference="a test",
    use="never",
    avoid="always",
    rank="largest",
    breaks={},
)
def loudest(core, weights, *, gain: Annotated[float, gmr.Range(0, 10), "multiplies it"] = 1.0):
    first = core.norms.argmax(-1)
    return gmr.InCore(gain * core.m[torch.arange(len(core.m)), first])
"""


def install(folder: Path) -> None:
    """A package as pip leaves it: a module, and its entry points beside it."""
    (folder / "loud_merge.py").write_text(PLUGIN)
    about = folder / "loud_merge-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: loud-merge\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[gam_merge.methods]\nloudest = loud_merge:loudest\n")
    (about / "RECORD").write_text("")


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site-packages")
    install(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    generator = torch.Generator().manual_seed(0)
    pairs = [random_factors(generator, 12, 9, 3) for _ in range(3)]
    pairs[1] = (5 * pairs[1][0], pairs[1][1])
    return [write_adapter(folder / str(i), {"layers.0.q": pair}) for i, pair in enumerate(pairs)]


def gam_merge(plugins: Path, *args: object) -> subprocess.CompletedProcess[str]:
    """The command line in an environment that has the package."""
    path = ":".join([str(plugins), *filter(None, sys.path)])
    return run([str(arg) for arg in args], plugins, PYTHONPATH=path)


def test_a_package_adds_a_method(plugins: Path, adapters: list[Path], tmp_path: Path) -> None:
    """Listed, described, its parameters checked, and merged with, alone and inside a composition."""
    card = json.loads(gam_merge(plugins, "methods", "loudest", "--json").stdout)
    assert card["params"][0] == {
        "name": "gain",
        "type": "float",
        "default": 1.0,
        "low": 0,
        "high": 10,
        "choices": [],
        "doc": "multiplies it",
    }
    done = gam_merge(plugins, *adapters, "-m", "loudest", "-p", "gain=2", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (
        relative(
            delta(gm.load(tmp_path / "out"), "layers.0.q"),
            2 * delta(gm.load(adapters[1]), "layers.0.q"),
        )
        < 1e-6
    )
    wrong = gam_merge(plugins, *adapters, "-m", "loudest", "-p", "gain=11", "-o", tmp_path / "no")
    assert wrong.returncode == 1
    assert "gain of method loudest must be a number in [0, 10], got 11" in wrong.stderr


def test_it_is_listed_and_composed(
    plugins: Path, adapters: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(plugins)
    assert "loudest" in [method.name for method in gm.methods()]
    found = gm.merge(adapters, method="norm_equalise+loudest+svc").adapter
    assert delta(found, "layers.0.q").any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("loudest = loud_merge:nothing", "cannot be loaded"),
        ("loudest = loud_merge:torch", "is not a rule, space or plug-in of that name"),
        ("louder = loud_merge:loudest", "is not a rule, space or plug-in of that name"),
        ("gam = loud_merge:loudest", "has the name of a built-in one"),
    ],
)
def test_broken_packages_are_named_and_harm_no_other_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, words: str
) -> None:
    install(tmp_path)
    entry = tmp_path / "loud_merge-1.0.dist-info" / "entry_points.txt"
    entry.write_text(f"[gam_merge.methods]\n{change}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "loud_merge", raising=False)
    with pytest.raises(
        gm.GamMergeError, match=rf"installed package loud-merge .*{words}"
    ) as caught:
        gm.methods()
    assert "\n" not in str(caught.value)
    assert gm.get_method("gam").name == "gam"


def test_lists_methods_spaces_and_plug_ins(tmp_path: Path) -> None:
    done = run(["methods"], tmp_path)
    assert done.returncode == 0
    for word in ("gam", "consensus", "ties", "knots", "pico", "svc", "gam-merge methods NAME"):
        assert word in done.stdout


def test_tells_all_about_one(tmp_path: Path) -> None:
    done = run(["methods", "pico+ties@ctm"], tmp_path)
    assert done.returncode == 0
    for word in (
        "arXiv 2306.01708",
        "density",
        "pico.factors",
        "breaks identity",
        "normalised to sum to 1",
        "largest source rank",
    ):
        assert word in done.stdout


def test_json_is_the_library_s(tmp_path: Path) -> None:
    assert (
        json.loads(run(["methods", "wudi", "--json"], tmp_path).stdout)
        == gm.get_method("wudi").to_dict()
    )


def test_unknown_method_is_one_line(tmp_path: Path) -> None:
    done = run(["methods", "gem"], tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "did you mean 'gam'?" in done.stderr
