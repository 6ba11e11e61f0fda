"""examples/pda: from nothing to a merged, evaluated adapter, by real TRL, PEFT and the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gam_merge as gm

PDA = Path(__file__).parents[1] / "examples" / "pda"


def call(script: str, *words: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PDA / script), *map(str, words)]
    env = dict(os.environ)
    if path:
        env["PYTHONPATH"] = os.pathsep.join([str(path), env.get("PYTHONPATH", "")])
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole of toy.yaml."""
    work = tmp_path_factory.mktemp("toy")
    done = call("run.py", PDA / "toy.yaml", "--work", work)
    assert done.returncode == 0, done.stderr
    assert "-m gam_merge" in done.stdout
    return work


def test_toy_gives_a_merged_and_measured_adapter(toy: Path) -> None:
    figures = json.loads((toy / "figures.json").read_text())
    assert list(figures) == ["student", "a", "b", "merged"]
    assert all(0 <= row["exact match"] <= 1 for row in figures.values())
    sources = [toy / "a", toy / "b"]
    report = json.loads((toy / "merged" / "merge_report.json").read_text())
    assert report["method"] == "gam"
    assert report["norms"] == pytest.approx(gm.merge(sources).report.norms)
    assert min(report["norms"]) > 0
    assert gm.compare(sources).total.overlap_v > 0.9  # they started from the same factors


def test_a_second_run_repeats_nothing(toy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in toy.rglob("*")}
    done = call("run.py", PDA / "toy.yaml", "--work", toy)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("exists") == 7
    assert {path: path.stat().st_mtime_ns for path in toy.rglob("*")} == before


def test_answers_of_a_stopped_run_are_kept(toy: Path, tmp_path: Path) -> None:
    lines = (toy / "a.jsonl.weak").read_text().splitlines(keepends=True)
    kept = ['"answer of an earlier run"\n', *lines[1:10]]
    (tmp_path / "a.jsonl.weak").write_text("".join(kept) + '"cut sho')
    (tmp_path / "a.jsonl.weaker").write_bytes((toy / "a.jsonl.weaker").read_bytes())
    models = ("--weak=tiny:1", "--weaker=tiny:2", "--max-new-tokens=12")
    done = call(
        "pairs.py", *models, "--questions", toy / "questions.jsonl", "--out", tmp_path / "a.jsonl"
    )
    assert done.returncode == 0, done.stderr
    found = (tmp_path / "a.jsonl.weak").read_text().splitlines(keepends=True)
    assert found[:10] == kept
    assert len(found) == 16
    first = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])
    assert first["chosen"] == [{"role": "assistant", "content": "answer of an earlier run"}]


def test_a_missing_extra_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "trl.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'trl'\", name='trl')\n"
    )
    pairs = ("--student=tiny:0", "--pairs=p.jsonl", "--out", tmp_path / "out")
    done = call("train_delta.py", *pairs, path=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "train_delta.py needs trl: pip install 'gam-merge[train]'\n"


@pytest.mark.parametrize("name", ["toy", "smollm", "qwen3-8b"])
def test_every_file_plans(name: str, tmp_path: Path) -> None:
    done = call("run.py", PDA / f"{name}.yaml", "--work", tmp_path / "w", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "train_delta.py" in done.stdout
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("script", sorted(path.name for path in PDA.glob("*.py")))
def test_scripts_are_short(script: str) -> None:
    assert len((PDA / script).read_text().splitlines()) < 150


def test_a_model_of_few_bits_has_few_values_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PDA)
    from models import tiny, weaken

    model, _ = tiny(0)
    embeddings = model.get_input_embeddings().weight.clone()
    weaken(model, bits=2)
    for weight in model.model.layers.parameters():
        if weight.ndim == 2:
            assert max(len(row.unique()) for row in weight) == 3  # -1, 0, 1 times a step
    assert (model.get_input_embeddings().weight == embeddings).all()
