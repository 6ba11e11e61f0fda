"""What every verb owes its user: silence with -q, and JSON that the library makes."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_factors, write_adapter
from huggingface_hub.utils import logging, tqdm
from huggingface_hub.utils.tqdm import enable_progress_bars
from typer.testing import CliRunner, Result

import gam_cli
import gam_merge as gm
from gam_cli._app import VERBS, app

# For each verb, the function of the library that may download, and a command line that leads to it.
CALLS = {
    "merge": ("merge", "a -o out"),
    "inspect": ("inspect", "a"),
    "compare": ("compare", "a b"),
    "fuse": ("fuse", "base a -o out"),
    "extract": ("extract", "base tuned -o out --rank 2"),
    "resize": ("resize", "a -o out --rank 2"),
    "convert": ("convert", "a -o out --format mlx"),
    "checkpoints": ("average_checkpoints", "run -o out"),
    "recipe": ("plan_recipe", "recipe.yaml"),
    "search": ("search", "--recipe recipe.yaml --evaluate score -o out"),
    "batch": ("batch", "recipe.yaml -o out"),
    "verify": ("verify", "out"),
    "push": ("push", "out me/merged"),
}
LOCAL = {"help", "methods", "schema", "ui"}  # verbs that cannot download
MERGES = (  # the other ways through the verb merge
    ("plan", "a --dry-run"),
    ("merge_recipe", "--recipe recipe.yaml -o out"),
    ("plan_recipe", "--recipe recipe.yaml --dry-run"),
)


def invoke(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="gam-merge")


@pytest.fixture
def downloads() -> Iterator[None]:
    """huggingface_hub as a new process has it."""
    verbosity = logging.get_verbosity()
    enable_progress_bars()
    logging.set_verbosity_warning()
    yield
    enable_progress_bars()
    logging.set_verbosity(verbosity)


def download() -> str:
    """What a download of huggingface_hub would print now."""
    printed = io.StringIO()
    with tqdm(total=1, file=printed) as bar:
        bar.update()
    if logging.get_logger("huggingface_hub").isEnabledFor(logging.WARNING):
        printed.write("a hint")
    return printed.getvalue()


def test_verbs_use_public_names_of_the_library() -> None:
    for file in Path(gam_cli.__file__).parent.glob("*.py"):
        assert not re.search(r"gam_merge\._|from gam_merge import _", file.read_text()), file


def test_every_verb_is_tried() -> None:
    assert {verb.__name__ for verb in VERBS} == {*CALLS, *LOCAL}


@pytest.mark.usefixtures("downloads")
@pytest.mark.parametrize(
    ("verb", "function", "args"),
    [
        *((verb, *call) for verb, call in CALLS.items()),
        *(("merge", *call) for call in MERGES),
    ],
)
def test_quiet_silences_downloads(
    verb: str, function: str, args: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without -q they are heard: the test would notice a verb that silences them always."""
    printed: list[str] = []

    def download_and_fail(*args: Any, **more: Any) -> None:
        printed.append(download())
        raise gm.GamMergeError("that is all")

    monkeypatch.setattr(gm, function, download_and_fail)
    for quiet in ([], ["-q"]):
        done = invoke(verb, *args.split(), *quiet)
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr == "error: that is all\n"
    loud, silent = printed
    assert "1/1" in loud
    assert "a hint" in loud
    assert silent == ""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with two checkpoints, the second of which lacks a module, and a recipe of the two."""
    generator = torch.Generator().manual_seed(0)
    for step, names in ((1, "qv"), (2, "q")):
        factors = {f"layers.0.{name}": random_factors(generator, 8, 6, 2) for name in names}
        write_adapter(tmp_path / "run" / f"checkpoint-{step}", factors)
    sources = "[{path: run/checkpoint-1}, {path: run/checkpoint-2}]"
    (tmp_path / "recipe.yaml").write_text(f"sources: {sources}\nmethod: mean\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_recipe_as_json_or_in_silence() -> None:
    expected = gm.plan_recipe("recipe.yaml", overrides=["output.rank=1"]).to_dict()
    done = invoke("recipe", "recipe.yaml", "--set", "output.rank=1", "--json")
    assert json.loads(done.stdout) == json.loads(json.dumps(expected))
    done = invoke("recipe", "recipe.yaml", "-q")
    assert (done.exit_code, done.output) == (0, "")
    done = invoke("recipe", "recipe.yaml", "--set", "output.rank=0", "-q")
    assert (done.exit_code, done.stdout) == (1, "")
    assert invoke("recipe", "recipe.yaml", "--schema").exit_code == 2


def test_checkpoints_treat_missing_modules_as_asked(folder: Path) -> None:
    norms = [
        gm.average_checkpoints("run", missing=missing).report.merged_norm
        for missing in ("zero", "skip")
    ]
    done = invoke("checkpoints", "run", "-o", "out", "--missing", "skip", "--json")
    assert json.loads(done.stdout)["merged_norm"] == norms[1] != norms[0]


@pytest.mark.parametrize(
    ("command", "function", "expected"),
    [
        ("checkpoints run -o out", "average_checkpoints", {"base_model": None, "target": None}),
        ("checkpoints run -o out --base org/x", "average_checkpoints", {"base_model": "org/x"}),
        ("checkpoints run -o out --for vllm", "average_checkpoints", {"target": "vllm"}),
        ("extract base tuned -o out", "extract", {"seed": 0}),
        ("extract base tuned -o out --seed 7", "extract", {"seed": 7}),
    ],
)
def test_options_reach_the_library(
    command: str, function: str, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def keep_and_fail(*args: Any, **options: Any) -> None:
        given.update(options)
        raise gm.GamMergeError("that is all")

    monkeypatch.setattr(gm, function, keep_and_fail)
    invoke(*command.split())
    assert {name: given[name] for name in expected} == expected


@pytest.mark.usefixtures("folder")
def test_json_of_many_is_the_library_s() -> None:
    done = invoke("methods", "--json")
    cards = {"methods": gm.methods(), "spaces": gm.spaces(), "plugins": gm.plugins()}
    listed = {kind: [card.to_dict() for card in group] for kind, group in cards.items()}
    assert json.loads(done.stdout) == json.loads(json.dumps(listed))
    done = invoke("batch", "recipe.yaml", "-o", "many", "--json")
    item = gm.batch(["recipe.yaml"], "again")[0].to_dict()
    (printed,) = json.loads(done.stdout)
    assert printed["report"] == json.loads(json.dumps(item["report"]))
    assert (printed["recipe"], printed["out"], printed["error"]) == (
        "recipe.yaml",
        "many/recipe",
        None,
    )
