"""The published JSON Schemas against real results: every key is in the schema, every required key is there."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from helpers import random_factors, write_adapter
from terminal import run

import gam_merge as gm

KINDS = ("report", "comparison", "inspection", "plan")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters a and b of the same modules, c of others, and one that is zero."""
    folder = tmp_path_factory.mktemp("results")
    generator = torch.Generator().manual_seed(0)
    for name, layers in (("a", (0, 1)), ("b", (0, 1)), ("c", (2, 3))):
        factors = {f"layers.{i}.q_proj": random_factors(generator, 12, 10, 4) for i in layers}
        write_adapter(folder / name, factors)
    b, a = random_factors(generator, 12, 10, 4)
    write_adapter(folder / "zero", {"layers.0.q_proj": (0 * b, a)})
    return folder


def printed(folder: Path, *args: str) -> Any:
    done = run([*args, "--json"], folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def results(kind: str, folder: Path) -> Iterator[Any]:
    """Results of a kind as programs get them, odd ones included."""
    if kind == "report":
        yield printed(folder, "a", "b", "-o", "out", "--force")
        yield json.loads((folder / "out" / "merge_report.json").read_text())
        yield printed(folder, "a", "c", "--missing", "skip", "-m", "ties", "-o", "far", "--force")
    elif kind == "plan":
        yield printed(folder, "a", "b", "--dry-run", "--energy", "0.9", "--per-module-rank")
        yield json.loads(json.dumps(gm.plan([folder / "a", folder / "b"], method="gam").to_dict()))
    elif kind == "inspection":
        yield printed(folder, "inspect", "a")
        yield printed(folder, "inspect", "zero")
    else:
        yield printed(folder, "compare", "a", "b")
        yield printed(folder, "compare", "a", "zero")


@pytest.mark.parametrize("kind", KINDS)
def test_results_have_the_schema(kind: str, folder: Path) -> None:
    schema = gm.result_schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    first, *others = results(kind, folder)
    for result in (first, *others):
        assert [error.message for error in validator.iter_errors(result)] == []
    for key in schema["required"]:
        partial = {name: value for name, value in first.items() if name != key}
        assert not validator.is_valid(partial), key
    assert not validator.is_valid({**first, "surplus": 1})


def test_the_command_prints_it(tmp_path: Path) -> None:
    done = run(["schema", "plan"], tmp_path)
    assert json.loads(done.stdout) == gm.result_schema("plan")


def test_an_unknown_kind_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(gm.GamMergeError, match=r"kind must be one of report, .*, got 'merge'"):
        gm.result_schema("merge")
    assert run(["schema", "merge"], tmp_path).returncode == 2
