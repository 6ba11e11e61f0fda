"""examples/pda: from nothing to a merged, evaluated adapter, by real TRL, PEFT and the command line."""

import json
import os
import subprocess
import sys
from argparse import Namespace
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
    lines = (tmp_path / "a.jsonl.weak").read_text().splitlines(keepends=True)
    assert lines[:10] == kept
    assert len(lines) == 16
    first = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])
    assert first["chosen"] == [{"role": "assistant", "content": "answer of an earlier run"}]


def test_plain_prompts_and_pairs_nearer_to_the_right_answer(tmp_path: Path) -> None:
    rows = [{"question": f"{n}?", "answer": right} for n, right in enumerate(("abcd", "5", "7"))]
    asked, out = tmp_path / "questions.jsonl", tmp_path / "a.jsonl"
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.jsonl.weak").write_text('"abxx"\n"6"\n"7"\n')  # nearer, equally far, equal
    (tmp_path / "a.jsonl.weaker").write_text('"axxx"\n"8"\n"7"\n')
    words = ["--weak=tiny:1", "--weaker=tiny:2", "--questions", asked, "--out", out]
    words += ["--plain", "--template=Question: {question}\nAnswer:"]
    done = call("pairs.py", *words, "--filtered")
    assert done.returncode == 0, done.stderr
    first = {"prompt": "Question: 0?\nAnswer:", "chosen": " abxx\n", "rejected": " axxx\n"}
    second = {"prompt": "Question: 1?\nAnswer:", "chosen": " 6\n", "rejected": " 8\n"}
    assert [json.loads(line) for line in out.read_text().splitlines()] == [first]
    done = call("pairs.py", *words)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in out.read_text().splitlines()] == [first, second]
    asked.write_text('{"question": "0?"}\n' * 3)
    done = call("pairs.py", *words, "--filtered")
    assert done.returncode == 2
    assert "--filtered needs an answer to every question" in done.stderr


@pytest.mark.parametrize("plain", [True, False])
def test_tasks_are_measured_by_the_likelihood_of_right_answers(
    plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(PDA)
    import torch
    from evaluate import on_tasks
    from models import load

    model, tokenizer = load("tiny:0")
    asked = [{"question": "How many?", "answer": "7"}, {"question": "Who?", "answer": "Ada B"}]
    options = {"system": "", "template": "Say: {question}", "batch": 2, "max_new_tokens": 4}
    figures = on_tasks(model, tokenizer, asked, Namespace(plain=plain, **options))
    nll = torch.zeros(0)
    for row in asked:
        prompt, answer = f"Say: {row['question']}", row["answer"]
        # the chat template of the tiny model ends a question with a space
        prompt, end = (prompt, f" {answer}\n") if plain else (f"{prompt} ", f"{answer}<end>")
        tokens = tokenizer(prompt + end, return_tensors="pt").input_ids
        with torch.no_grad():
            scores = model(tokens).logits[0].log_softmax(-1)
        start = len(tokenizer(prompt).input_ids)
        places = torch.arange(start, tokens.shape[1])
        nll = torch.cat([nll, -scores[places - 1, tokens[0, places]]])
    assert figures["NLL"] == pytest.approx(float(nll.mean()), rel=1e-5)
    assert figures["questions"] == 2


def test_a_missing_extra_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "trl.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'trl'\", name='trl')\n"
    )
    pairs = ("--student=tiny:0", "--pairs=p.jsonl", "--out", tmp_path / "out")
    done = call("train_delta.py", *pairs, path=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "train_delta.py needs trl: pip install 'gam-merge[train]'\n"


@pytest.mark.parametrize("name", ["toy", "axes", "smollm", "qwen3-8b"])
def test_every_file_plans(name: str, tmp_path: Path) -> None:
    done = call("run.py", PDA / f"{name}.yaml", "--work", tmp_path / "w", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "train_delta.py" in done.stdout
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("script", sorted(path.name for path in PDA.glob("*.py")))
def test_scripts_are_short(script: str) -> None:
    assert len((PDA / script).read_text().splitlines()) < 150


AXES = """
student: tiny:0
questions: {open: true, seed: $seed, count: 20}
test: {open: true, seed: $seed, skip: 20, count: 4}
pairs:
  bold: {axis: bold}
  opening: {axis: opening}
generate: {max_new_tokens: 40}
train: {rank: 4, alpha: 8, dropout: 0, lr: 0.001, batch: 2, micro_batch: 2, max_length: 96}
trained_together: [joint, sequential]
merges:
  mean: {method: mean}
  ties@knots: {method: ties@knots}
evaluate: {max_new_tokens: 8}
"""


def test_axes_one_by_one_together_and_merged(tmp_path: Path) -> None:
    file, work = tmp_path / "axes.yaml", tmp_path / "work"
    file.write_text(AXES)
    done = call("run.py", file, "--work", work, "--seed", 3)
    assert done.returncode == 0, done.stderr
    figures = json.loads((work / "figures.json").read_text())
    names = ["student", "bold", "opening", "joint", "sequential", "mean", "ties@knots"]
    assert list(figures) == names
    nll = {name: row["prose NLL"] for name, row in figures.items()}
    assert len(set(nll.values())) == len(names)
    asked = [
        json.loads(line)["question"] for line in (work / "questions.jsonl").read_text().splitlines()
    ]
    tested = [
        json.loads(line)["question"] for line in (work / "test.jsonl").read_text().splitlines()
    ]
    assert len(set(asked + tested)) == 24
    marks = {"bold": lambda text: text.replace("**", ""), "opening": lambda text: text}
    for axis, plain in marks.items():
        for line in (work / f"{axis}.jsonl").read_text().splitlines():
            pair = json.loads(line)
            chosen, rejected = (pair[which][0]["content"] for which in ("chosen", "rejected"))
            assert rejected in plain(chosen)
    # joint training has the steps of both, sequential training starts from the first
    sources = gm.load(work / "bold"), gm.load(work / "sequential")
    one, both = (adapter.modules["model.layers.0.self_attn.q_proj"].delta() for adapter in sources)
    assert 0 < float((one - both).norm()) < float(both.norm())


def test_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PDA)
    import random

    from axes import AXES, counts, first_sentence

    words = first_sentence("No. A kite is a light thing that flies. It is old.")
    assert " ".join(words) == "A kite is a light thing that flies."
    none = {"bold": 0, "bullets": 0, "opening": 0}
    assert counts(" ".join(words)) == none
    for axis, mark in AXES.items():
        assert counts(mark(words, random.Random(0))) == {**none, axis: 1}
    assert counts("**** ** -\n- \n?? - a") == none  # signs without a word
    assert counts("**a** b **c d**\n- e\n* f\ng? h?") == {"bold": 2, "bullets": 2, "opening": 2}


def test_a_model_of_few_bits_has_few_values_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PDA)
    from models import tiny, weaken

    model, _ = tiny(0)
    embeddings = model.get_input_embeddings().weight.clone()
    weaken(model, bits=2)
    for weight in model.model.layers.parameters():
        if weight.ndim == 2:
            assert max(len(row.unique()) for row in weight) == 3  # -1, 0, 1 times a step
    assert (model.get_input_embeddings().weight == embeddings).all()
