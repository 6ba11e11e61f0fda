"""The scripts in examples/, run as a user would, at toy size."""

import json
import re
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import relative
from peft import PeftModel
from real import save_adapter
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import gam_merge as gm

pytestmark = [
    pytest.mark.filterwarnings("default"),  # PEFT, transformers and TRL warn of much
    pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),
]
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="session")
def base(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its tokenizer on disk, as examples expect them."""
    path = tmp_path_factory.mktemp("examples") / "base"
    llama.save_pretrained(path)
    words = {f"w{i}": i for i in range(57)} | {"<pad>": 57, "<eos>": 58, "<unk>": 59}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(path)
    return path


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run an example in an empty folder: what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def save_pair(llama: Any, folder: Path) -> list[Path]:
    return [
        save_adapter(llama, folder / name, seed=seed, r=4) for seed, name in enumerate(("a", "b"))
    ]


def test_examples_are_short() -> None:
    """Each of them can be read at a glance."""
    scripts = {path.name: path.read_text().splitlines() for path in EXAMPLES.glob("*.py")}
    del scripts["smollm.py"]  # a library of the others
    assert len(scripts) == 8
    for name, lines in scripts.items():
        assert len(lines) <= 72, name  # of 100 columns


def test_peft_model(llama: Any, base: Path, tmp_path: Path, run: Any) -> None:
    adapters = save_pair(llama, tmp_path)
    printed = run("peft_model.py", base, *adapters, "--prompt", "w1 w2")
    assert re.findall(r"^(\w+): '", printed, re.MULTILINE) == ["first", "second", "merged"]
    expected = gm.merge(adapters, method="mean").adapter.modules
    merged = gm.load(tmp_path / "merged" / "merged").modules
    assert all(
        relative(merged[name].delta(), module.delta()) < 1e-6 for name, module in expected.items()
    )


def test_few_shot(llama: Any, base: Path, tmp_path: Path, run: Any) -> None:
    """The least NLL of those printed is chosen, and is what transformers says of the merge."""
    adapters = save_pair(llama, tmp_path)
    rows = [{"prompt": "w1 w2", "completion": " w3 w4"}, {"prompt": "w5", "completion": " w6"}]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--questions", "few.jsonl", "--trials", "6")
    *points, last = run("few_shot.py", base, *adapters, *options).splitlines()
    found = {params: float(loss) for loss, params in (line.split("  ") for line in points)}
    assert len(found) == 6
    assert all(re.fullmatch(r"params.p=[-.\d]+, params.q=[.\d]+", params) for params in found)
    best = last.removeprefix("wrote merged: ")
    assert found[best] == min(found.values())
    report = json.loads((tmp_path / "merged" / "merge_report.json").read_text())
    assert (report["method"], report["params"]["rescale"]) == ("consensus", "norm")
    assert best.startswith(f"params.p={report['params']['p']:g}, ")
    model = AutoModelForCausalLM.from_pretrained(base)
    model = PeftModel.from_pretrained(model, tmp_path / "merged")
    with torch.no_grad():
        losses = [
            model(torch.tensor([tokens]), labels=torch.tensor([labels])).loss.item()
            for tokens, labels in (([1, 2, 3, 4], [-100, -100, 3, 4]), ([5, 6], [-100, 6]))
        ]
    assert found[best] == pytest.approx(sum(losses) / 2, abs=6e-4)  # three digits are printed


def test_trl_callback(base: Path, tmp_path: Path, run: Any) -> None:
    pairs = [
        {"prompt": f"w{i} w{i + 1}", "chosen": f" w{i + 2}", "rejected": f" w{i + 9}"}
        for i in range(20)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    printed = run("trl_callback.py", base, "pairs.jsonl", "--steps", "3")
    steps = re.findall(r"^step (\d+): run ([\d.]+), merge ([\d.]+)( \*)?$", printed, re.MULTILINE)
    assert [int(step) for step, *_ in steps] == [1, 2, 3]
    assert (tmp_path / "run" / "merged").exists() == any(kept for *_, kept in steps)


def test_trainer_outputs(llama: Any, tmp_path: Path, run: Any) -> None:
    """One run that has ended, with the files that axolotl and LLaMA-Factory leave beside, and one that has not."""
    done, going = tmp_path / "outputs" / "math", tmp_path / "saves" / "code"
    for seed, folder in enumerate(
        (done, done / "checkpoint-10", going / "checkpoint-10", going / "checkpoint-20")
    ):
        save_adapter(llama, folder, seed=seed, r=4)
    for name in (
        "trainer_state.json",
        "all_results.json",
        "training_args.bin",
        "tokenizer.json",
        "README.md",
    ):
        (done / name).write_bytes(b"{}")
    printed = run("trainer_outputs.py", done, going)
    assert f"{going}: has not ended" in printed
    assert printed.splitlines()[-1] == "wrote merged"
    assert gm.load(tmp_path / "merged").rank >= 4


def test_vllm_serve(llama: Any, base: Path, tmp_path: Path, run: Any) -> None:
    """As far as it goes without vLLM."""
    if find_spec("vllm"):
        pytest.skip("vllm is here, and would want a GPU")
    adapters = save_pair(llama, tmp_path)
    printed = run("vllm_serve.py", base, *adapters)
    assert (
        f"vllm serve {base} --enable-lora --max-lora-rank 8 --lora-modules merged=merged" in printed
    )
    assert "vllm is not installed" in printed
    assert gm.load(tmp_path / "merged").rank == 4


def test_federated(base: Path, tmp_path: Path, run: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    for client in range(3):
        words = torch.randint(
            client * 10, client * 10 + 20, (64 * (client + 4),), generator=generator
        )
        (tmp_path / f"{client}.txt").write_text(" ".join(f"w{i}" for i in words.tolist()))
    printed = run(
        "federated.py", base, *(tmp_path / f"{client}.txt" for client in range(3)), "--rounds", "3"
    )
    losses = [
        [float(x) for x in row.split(", ")] for row in re.findall(r"losses ([\d., ]+);", printed)
    ]
    assert len(losses) == 3
    assert sum(losses[-1]) < sum(losses[0])
    assert gm.load(tmp_path / "federated").rank == 8
