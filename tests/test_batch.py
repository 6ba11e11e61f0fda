"""Many recipes: those that work are done, those that do not are told."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers import random_factors, write_adapter
from typer.testing import CliRunner

import gam_merge as gm
from gam_cli._app import app

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two adapters and three recipes, the second of which names an adapter that is not there."""
    for seed, name in enumerate("ab"):
        factors = {"layers.0.q": random_factors(torch.Generator().manual_seed(seed), 8, 6, 2)}
        write_adapter(tmp_path / name, factors)
    (tmp_path / "recipes").mkdir()
    for name, sources in (("one", "ab"), ("two", "ac"), ("three", "b")):
        text = f"sources: [{', '.join(f'{{path: ../{source}}}' for source in sources)}]"
        (tmp_path / "recipes" / f"{name}.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


RECIPES = [f"recipes/{name}.yaml" for name in ("one", "two", "three")]


@pytest.mark.parametrize("threads", [None, 3])
def test_one_failure_does_not_stop_the_rest(folder: Path, threads: int | None):
    done = []
    with ThreadPoolExecutor(threads or 1) as pool:
        executor = pool if threads else None
        items = gm.batch(
            RECIPES, "out", executor=executor, progress=lambda *count: done.append(count)
        )
    assert [str(item.recipe) for item in items] == RECIPES
    assert [item.error is None for item in items] == [True, False, True]
    assert "two.yaml: line 1: sources.1.path: " in items[1].error
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert sorted(path.name for path in Path("out").iterdir()) == ["one", "three"]
    alone = gm.merge(["a", "b"], out="alone")
    assert (items[0].out / WEIGHTS).read_bytes() == (alone.path / WEIGHTS).read_bytes()
    assert items[0].report.modules == alone.report.modules


def test_unforeseen_failures_are_told_too(folder: Path, monkeypatch: pytest.MonkeyPatch):
    real = gm.merge_recipe

    def out_of_memory(recipe: Path, **settings: object) -> object:
        if recipe.stem == "one":
            raise MemoryError("no room\nfor more")
        return real(recipe, **settings)

    monkeypatch.setattr("gam_merge._batch.merge_recipe", out_of_memory)
    items = gm.batch([RECIPES[0], RECIPES[2]], "out")
    assert [item.error for item in items] == ["MemoryError: no room", None]


def test_names_of_outputs(folder: Path):
    gm.merge(["a"], out="first")
    gm.merge(["b"], out="second")
    items = gm.batch([f"{name}/gam_merge_recipe.yaml" for name in ("first", "second")], "again")
    assert [item.out for item in items] == [Path("again/first"), Path("again/second")]
    with pytest.raises(
        gm.GamMergeError,
        match=r"recipes/one.yaml and other/one.yaml would both be written to out/one",
    ):
        gm.batch([RECIPES[0], "other/one.yaml"], "out")
    with pytest.raises(gm.GamMergeError, match="no recipes"):
        gm.batch([], "out")


def test_on_the_command_line(folder: Path):
    done = CliRunner().invoke(
        app, ["batch", *RECIPES, "-o", "out", "--set", "output.rank=1"], prog_name="gam-merge"
    )
    assert done.exit_code == 1
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("recipes/")]
    assert [row[1] for row in rows] == ["consensus", "failed", "gam"]
    assert gm.load("out/three").rank == 1
    assert done.stdout.splitlines()[-1].startswith("2 of 3 merges written to out")
    assert "two.yaml: line 1: sources.1.path" in done.stdout
    json = CliRunner().invoke(app, ["batch", RECIPES[0], "-o", "out2", "--json", "-j", "2"])
    assert json.exit_code == 0
    assert '"error": null' in json.stdout


def test_search_on_the_command_line(folder: Path):
    command = ["search", "--recipe", RECIPES[0], "-o", "found", "--trials", "3"]
    Path("score.py").write_text(
        "import sys, pathlib; print(len(sys.argv), pathlib.Path(sys.argv[1]).is_dir() / 2)"
    )
    done = CliRunner().invoke(app, [*command, "--evaluate", "python3 score.py {adapter}"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["settings", "trial", "score"]
    assert lines[2].split() == ["weights.0=0.5", "weights.1=0.5", "0", "0.5000"]
    assert lines[-1] == "wrote found/best.yaml and found/trials.png"
    assert gm.merge_recipe("found/best.yaml").report.weights == (0.5, 0.5)
    assert CliRunner().invoke(app, [*command, "--evaluate", "python3 score.py"]).exit_code == 1
