"""Merges during real training runs, by transformers.Trainer and trl.DPOTrainer, of a tiny model."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import relative
from peft import LoraConfig, PeftModel, get_peft_model
from real import forward, save_adapter
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer

import gam_merge as gm
from gam_merge.integrations.transformers import MergeCheckpointsCallback

pytestmark = [
    pytest.mark.filterwarnings("default"),  # trainers warn of much
    pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning"),
]

STEPS = {"max_steps": 6, "save_steps": 2, "learning_rate": 1e-2, "per_device_train_batch_size": 2}
QUIET = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_strategy": "no"}
IDS = [
    {"input_ids": ids, "labels": ids}
    for ids in torch.arange(96).reshape(8, 12).remainder(61).tolist()
]


def make_trainer(model: Any, out: Path, **options: Any) -> Trainer:
    torch.manual_seed(0)
    adapted = get_peft_model(
        copy.deepcopy(model), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    )
    arguments = TrainingArguments(str(out), **{**STEPS, **QUIET, **options})
    return Trainer(adapted, arguments, train_dataset=IDS, eval_dataset=IDS)


def train(model: Any, out: Path, *callbacks: MergeCheckpointsCallback, **options: Any) -> Trainer:
    trainer = make_trainer(model, out, **options)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train()
    return trainer


def test_mean_of_the_last_checkpoints(llama, tmp_path):
    callback = MergeCheckpointsCallback(last=2)
    train(llama, tmp_path / "run", callback)
    assert [(record.step, record.kept) for record in callback.history] == [
        (2, True),
        (4, True),
        (6, True),
    ]
    expected = gm.average_checkpoints(tmp_path / "run", last=2).adapter.modules
    merged = gm.load(tmp_path / "run" / "merged").modules
    assert all(
        relative(merged[name].delta(), module.delta()) < 1e-6 for name, module in expected.items()
    )
    report = json.loads((tmp_path / "run" / "merged" / "merge_report.json").read_text())
    assert [Path(source).name for source in report["sources"]] == ["checkpoint-4", "checkpoint-6"]
    assert forward(llama, tmp_path / "run" / "merged").isfinite().all()


def test_this_run_with_another_adapter(llama, tmp_path):
    """At every save, and at the end where nothing was saved."""
    other = save_adapter(llama, tmp_path / "other", r=2, target_modules=["q_proj", "v_proj"])
    options: dict[str, Any] = {"adapters": [other], "method": "mean", "weights": [3, 1], "rank": 4}
    saving, ending = (
        MergeCheckpointsCallback(**options, out=tmp_path / name) for name in ("saving", "ending")
    )
    trainer = train(llama, tmp_path / "run", saving)
    train(llama, tmp_path / "other-run", ending, save_strategy="no")
    assert [len(callback.history) for callback in (saving, ending)] == [3, 1]
    trainer.save_model(tmp_path / "final")
    expected = gm.merge(
        [tmp_path / "final", other], method="mean", weights=[3, 1], rank=4
    ).adapter.modules
    for out in ("saving", "ending"):
        merged = gm.load(tmp_path / out).modules
        assert all(
            relative(merged[name].delta(), module.delta()) < 1e-6
            for name, module in expected.items()
        )


def test_evaluation_leaves_the_training_as_it_was(llama, tmp_path):
    """Scores are those of the trainer for the merge in the model; the run ends where it would have without."""
    trainer = make_trainer(llama, tmp_path / "run")
    callback = MergeCheckpointsCallback(
        last=2, evaluate=lambda model: trainer.evaluate()["eval_loss"]
    )
    trainer.add_callback(callback)
    trainer.train()
    mine, other = (t.model.state_dict() for t in (trainer, train(llama, tmp_path / "plain")))
    assert mine.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in mine.items())
    assert list(trainer.model.peft_config) == trainer.model.active_adapters == ["default"]
    logged = [entry for entry in trainer.state.log_history if "merge_score" in entry]
    assert [(entry["step"], entry["merge_score"]) for entry in logged] == [
        (r.step, r.score) for r in callback.history
    ]
    last = callback.history[-1]
    assert last.score == pytest.approx(loss(llama, tmp_path / "run" / "merged"), rel=1e-5)
    assert last.run_score == pytest.approx(loss(llama, tmp_path / "run" / "checkpoint-6"), rel=1e-5)


def loss(model: Any, adapter: Path) -> float:
    """Of a written adapter on the evaluation set."""
    adapted = PeftModel.from_pretrained(copy.deepcopy(model), adapter)
    arguments = TrainingArguments(str(adapter / "unused"), **QUIET)
    return Trainer(adapted, arguments, eval_dataset=IDS).evaluate()["eval_loss"]


def test_only_better_merges_are_kept(llama, tmp_path):
    """Better than the run then, and than what was kept before."""
    scores = iter(
        [1.0, 0.9, 1.0, 0.95, 0.5, 0.8, 0.7, 0.4]
    )  # the run, the merge, and so on: lower is better
    callback = MergeCheckpointsCallback(
        last=2, keep_if_better=True, evaluate=lambda model: next(scores)
    )
    train(llama, tmp_path / "run", callback, max_steps=8)
    assert [(record.step, record.kept) for record in callback.history] == [
        (2, True),
        (4, False),
        (6, False),
        (8, True),
    ]
    report = json.loads((tmp_path / "run" / "merged" / "merge_report.json").read_text())
    assert Path(report["sources"][-1]).name == "checkpoint-8"
    upwards = MergeCheckpointsCallback(
        last=2,
        keep_if_better=True,
        greater_is_better=True,
        evaluate=lambda model: float("gam_merge" in model.peft_config),
    )
    train(llama, tmp_path / "other", upwards, max_steps=4)
    assert [record.kept for record in upwards.history] == [True, False]


def test_recipe(llama, tmp_path):
    """Its settings and weights, of an earlier merge say; the sources are those of the run."""
    for name in ("a", "b"):
        save_adapter(llama, tmp_path / name)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "method: mean\nsources:\n- {path: a, weight: 3}\n- {path: b, weight: 1}\noutput: {rank: 4}\n"
    )
    callback = MergeCheckpointsCallback(last=2, recipe=recipe)
    train(llama, tmp_path / "run", callback)
    assert [record.step for record in callback.history] == [
        4,
        6,
    ]  # there was one checkpoint, and two weights
    report = json.loads((tmp_path / "run" / "merged" / "merge_report.json").read_text())
    assert (report["weights"], report["rank"]) == ([0.75, 0.25], 4)


def test_mistakes_show_before_the_first_step(llama, tmp_path):
    for options, message in (
        ({"method": "nope"}, "unknown method 'nope'"),
        ({"adapters": [tmp_path / "nowhere"]}, "nowhere: no such file"),
        ({"weights": [1.0]}, "1 weights for 3 adapters"),
    ):
        with pytest.raises(gm.GamMergeError, match=message):
            train(llama, tmp_path / "run", MergeCheckpointsCallback(**options))
    with pytest.raises(gm.GamMergeError, match="keep_if_better needs evaluate"):
        MergeCheckpointsCallback(keep_if_better=True)
    assert not list(tmp_path.glob("run/checkpoint-*"))


def test_a_merge_that_fails_does_not_end_the_training(llama, tmp_path):
    (tmp_path / "run" / "merged").mkdir(parents=True)
    (tmp_path / "run" / "merged" / "notes.txt").write_text("mine")
    with pytest.warns(UserWarning, match=r"no merge at step \d: .*merged: is neither") as warned:
        trainer = train(llama, tmp_path / "run", MergeCheckpointsCallback())
    assert trainer.state.global_step == 6
    steps = re.findall(r"no merge at step (\d)", "".join(str(w.message) for w in warned))
    assert steps == ["2", "4", "6"]


def test_dpo(llama, tmp_path):
    words = {f"w{i}": i for i in range(57)} | {"<pad>": 57, "<eos>": 58, "<unk>": 59}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    pairs = [
        {"prompt": f"w{i} w{i + 1}", "chosen": f" w{i + 2}", "rejected": f" w{i + 9}"}
        for i in range(8)
    ]
    callback = MergeCheckpointsCallback(
        last=2, evaluate=lambda model: trainer.evaluate()["eval_loss"]
    )
    trainer = DPOTrainer(
        copy.deepcopy(llama),
        args=DPOConfig(
            str(tmp_path / "run"),
            **{**STEPS, "max_steps": 4},
            **QUIET,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(pairs),
        eval_dataset=Dataset.from_list(pairs),
        processing_class=fast,
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
        callbacks=[callback],
    )
    trainer.train()
    assert [record.step for record in callback.history] == [2, 4]
    merged = gm.load(tmp_path / "run" / "merged").modules
    expected = gm.average_checkpoints(tmp_path / "run", last=2).adapter.modules
    assert all(
        relative(merged[name].delta(), module.delta()) < 1e-6 for name, module in expected.items()
    )
    scores = [score for record in callback.history for score in (record.score, record.run_score)]
    assert all(
        score is not None and 0 < score < 0.7 for score in scores
    )  # log 2 where nothing is learnt
