"""Recipes and the Hub on the command line: there and back through real processes, the rest within this one."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from helpers import random_factors, write_adapter
from hub_server import TOKEN, Fault, Hub
from terminal import run
from typer.testing import CliRunner, Result

from gam_cli._app import app

WEIGHTS = "adapter_model.safetensors"


# huggingface_hub uploads in a way that its HTTP client will drop
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters a and b."""
    folder = tmp_path_factory.mktemp("cli-hub")
    for seed, name in enumerate("ab"):
        factors = {
            f"layers.{i}.q": random_factors(torch.Generator().manual_seed(seed), 8, 6, 2)
            for i in range(2)
        }
        write_adapter(folder / name, factors, base_model_name_or_path="org/base")
    return folder


def invoke(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], prog_name="gam-merge")


def online(hub: Hub, cache: Path) -> dict[str, str]:
    """The environment of a user of this Hub."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(cache),
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }


def test_merge_push_and_merge_from_there(folder: Path, hub: Hub, tmp_path: Path):
    environment = online(hub, tmp_path / "cache")
    options = [
        "--push-to-hub",
        "me/merged",
        "--private",
        "--revision",
        "v1",
        "--commit-message",
        "Hello",
        "--json",
    ]
    done = run(["a", "b", "-o", tmp_path / "out", *options], folder, **environment)
    assert done.returncode == 0, done.stderr
    repo = hub.repos["me/merged"]
    assert json.loads(done.stdout)["url"] == f"{hub.url}/me/merged/commit/{repo.refs['v1']}"
    assert (repo.private, repo.messages[-1]) == (True, "Hello")
    done = run(["me/merged@v1", "-o", "again", "-q"], tmp_path, **environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert hub.files("me/merged", "v1")[WEIGHTS] == (tmp_path / "out" / WEIGHTS).read_bytes()


def test_a_failed_push_leaves_the_merge_and_the_command_that_goes_on(
    folder: Path, hub: Hub, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(folder)
    hub.faults.append(Fault("POST /api/models/me/merged/commit", 403))
    done = invoke("a", "b", "-o", tmp_path / "out", "--push-to-hub", "me/merged")
    assert done.exit_code == 1
    assert f"wrote {tmp_path / 'out'}" in done.stdout
    command = f"gam-merge push {tmp_path / 'out'} me/merged"
    assert done.stderr.endswith(f"push it again with: {command}\n")
    assert TOKEN not in done.output
    hub.faults.clear()
    done = invoke(*command.split()[1:], "--create-pr")
    assert done.stdout == f"pushed to {hub.url}/me/merged/discussions/1\n"
    assert hub.files("me/merged", "refs/pr/1")[WEIGHTS] == (tmp_path / "out" / WEIGHTS).read_bytes()
    assert (
        json.loads(invoke("push", tmp_path / "out", "me/merged", "--json", "-q").stdout or "{}")
        == {}
    )


def test_a_bad_name_is_refused_before_the_merge(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(folder)
    done = invoke("a", "b", "-o", tmp_path / "out", "--push-to-hub", "bad id")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "error: bad id: is not a repository name; give user/name\n"
    assert not (tmp_path / "out").exists()


def test_without_a_directory(folder: Path, hub: Hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(folder)
    done = invoke("a", "b", "--push-to-hub", "me/merged")
    assert done.exit_code == 0
    assert done.stdout.endswith(
        f"pushed to {hub.url}/me/merged/commit/{hub.repos['me/merged'].refs['main']}\n"
    )


def test_recipe(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(folder)
    assert invoke("a", "b", "-w", "0.3", "-w", "0.7", "-o", tmp_path / "out", "-q").output == ""
    recipe = tmp_path / "out" / "gam_merge_recipe.yaml"
    monkeypatch.chdir(tmp_path)
    assert invoke("--recipe", recipe, "-o", "again", "-q").exit_code == 0
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / "out" / WEIGHTS).read_bytes()
    changed = invoke(
        "--recipe", recipe, "--set", "weights.a=0", "--set", "anchor=1", "--dry-run", "--json"
    )
    assert json.loads(changed.stdout)["weights"] == [1.0]
    checked = invoke("recipe", recipe, "--set", "method=mean", "--set", "params={}")
    assert checked.stdout.startswith("mean: 2 adapters, 2 modules")
    text = recipe.read_text().replace("weight:", "wieght:", 1)
    (tmp_path / "out" / "wrong.yaml").write_text(text)
    wrong = invoke("recipe", "out/wrong.yaml")
    line = 1 + text.splitlines().index("  wieght: 0.3")
    assert (wrong.exit_code, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith(
        f"error: out/wrong.yaml: line {line}: sources.0.wieght: unknown key 'wieght'"
    )
    assert wrong.stderr.count("\n") == 1


def test_schema():
    assert json.loads(invoke("recipe", "--schema").stdout)["properties"]["sources"]
    assert invoke("recipe").exit_code == 2


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["a", "--recipe", "r.yaml", "-o", "x"], "cannot be combined"),
        (
            ["--recipe", "r.yaml", "-m", "mean", "-o", "x"],
            "'--method' cannot be combined with '--recipe'",
        ),
        (
            ["--recipe", "r.yaml", "-w", "1", "-o", "x"],
            "'--weights' cannot be combined with '--recipe'",
        ),
        (["a", "--set", "x=1", "-o", "x"], "'--set' needs '--recipe'"),
        (["a", "-o", "x", "--create-pr"], "'--create-pr' needs '--push-to-hub'"),
        (["-o", "x"], "Missing argument 'SOURCES'"),
        (["--recipe", "r.yaml"], "Missing option '--out'"),
    ],
)
def test_what_does_not_go_together(args: list[str], expected: str):
    done = invoke(*args)
    assert done.exit_code == 2
    assert expected in " ".join(done.stderr.replace("│", " ").split())


def test_missing(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(folder)
    assert invoke("a", "b", "--missing", "skip", "-o", tmp_path / "out", "-q").exit_code == 0
    assert (
        yaml.safe_load((tmp_path / "out" / "gam_merge_recipe.yaml").read_text())["missing"]
        == "skip"
    )


def test_a_hub_that_cannot_be_reached_is_said_in_one_line(hub: Hub, tmp_path: Path):
    environment = {**online(hub, tmp_path / "cache"), "HF_ENDPOINT": "http://127.0.0.1:1"}
    for command in (["no/such", "b", "-o", "out"], ["compare", "no/such", "b"]):
        done = run(command, tmp_path, **environment)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: no/such: no such directory here; taken as a Hub id, and")


@pytest.mark.parametrize("verbose", [False, True])
def test_retries_are_shown_on_demand(folder: Path, hub: Hub, verbose: bool, tmp_path: Path):
    """huggingface_hub tries again what fails, and says so in lines of its own."""
    hub.add("me/a", {path.name: path.read_bytes() for path in (folder / "a").iterdir()})
    hub.faults.append(Fault("HEAD", 503, times=2))
    command = ["me/a", "-o", "out", *(["-v"] if verbose else [])]
    done = run(command, tmp_path, **online(hub, tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert ("Retrying" in done.stderr) is verbose
