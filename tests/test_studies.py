"""The studies: losses are TRL's, rows are measured once, and figures are those of the adapters."""

import random
import re
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
LETTERS = "abcdefghij"
PREFERENCES = re.compile("paper|preferences|axes")  # studies with held-out preferences
pytest.importorskip("trl")
pytestmark = [  # of TRL's own calls
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]


@pytest.fixture
def pda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts of examples/pda import each other by name."""
    monkeypatch.syspath_prepend(ROOT / "examples" / "pda")


PAIRS = [
    ("Which way?", "left then", "right"),
    ("How many?", "seven", "seventy and one"),
    ("Who was it?", "Ada", "Carl"),
    ("Where to?", "up the hill", "down"),
]


def trl_trainer(objective: str, tokenizer: Any, model: Any, tmp_path: Path, *more: str) -> Any:
    """TRL's trainer of examples/pda on PAIRS, its factors B drawn at random."""
    import json

    from train_delta import options, trainer

    data = tmp_path / "pairs.jsonl"
    rows = []
    for question, chosen, rejected in PAIRS:
        prompt = f"Question: {question}\nAnswer:"
        rows.append({"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"})
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = f"--student=tiny:0 --pairs={data} --out={tmp_path / 'out'} --objective={objective}"
    words += " --rank=4 --alpha=8 --dropout=0 --batch=4 --micro-batch=4"
    run = trainer(model, tokenizer, options().parse_args([*words.split(), *more]), tmp_path)
    generator = torch.Generator().manual_seed(1)
    for name, factor in run.model.named_parameters():
        if "lora_B.default" in name:  # TRL's reference is another adapter
            factor.data = 0.3 * torch.randn(factor.shape, generator=generator)
    return run


@pytest.mark.usefixtures("pda")
def test_dpo_is_trls(tmp_path: Path) -> None:
    from models import tiny

    from benchmarks.lab.studies.tune import Preference, dpo, margins

    model, tokenizer = tiny(0)
    # TRL ends an answer with the end token, the lab with a newline: here they are one token
    tokenizer.add_special_tokens({"eos_token": "\n"})
    model.resize_token_embeddings(len(tokenizer))
    run = trl_trainer("dpo", tokenizer, model, tmp_path)
    run.model.eval()
    batch = next(iter(run.get_train_dataloader()))
    expected = run.compute_loss(run.model, batch)
    preferences = [Preference(*pair) for pair in PAIRS]
    policy = margins(run.model, tokenizer, preferences)
    with run.model.disable_adapter():
        reference = margins(run.model, tokenizer, preferences)
    assert dpo(policy, reference, 0.1).item() == pytest.approx(expected.item(), rel=1e-5)
    assert abs(expected.item() - 0.6931) > 1e-3  # that of equal models


@pytest.mark.usefixtures("pda")
def test_the_odds_ratio_is_trls(tmp_path: Path) -> None:
    from models import tiny

    from benchmarks.lab.studies.tune import orpo

    run = trl_trainer("orpo", *reversed(tiny(0)), tmp_path)
    chosen, rejected = torch.tensor([-0.5, -2.0, -1.0]), torch.tensor([-1.5, -0.7, -1.1])
    losses, *_ = run.odds_ratio_loss(chosen, rejected)
    assert orpo(chosen, rejected, run.beta).item() == pytest.approx(-losses.mean().item(), rel=1e-6)


@pytest.mark.usefixtures("pda")
def test_orpo_of_answers_alone_is_that_of_the_example(tmp_path: Path) -> None:
    from models import tiny

    from benchmarks.lab.studies.tune import log_probs, orpo

    model, tokenizer = tiny(0)
    tokenizer.add_special_tokens({"eos_token": "\n"})  # as above
    model.resize_token_embeddings(len(tokenizer))
    run = trl_trainer("orpo", tokenizer, model, tmp_path, "--answer-only")
    run.model.eval()
    batch = next(iter(run.get_train_dataloader()))
    chosen, rejected = (
        log_probs(run.model, tokenizer, [(pair[0], pair[which]) for pair in PAIRS])
        for which in (1, 2)
    )
    likelihood = -chosen.total.sum() / chosen.tokens.sum()
    loss = likelihood + orpo(chosen.mean, rejected.mean, run.beta)
    assert loss.item() == pytest.approx(run.compute_loss(run.model, batch).item(), rel=1e-5)


@pytest.mark.parametrize("objective", ["dpo", "orpo"])
@pytest.mark.usefixtures("pda")
def test_tuning_improves_its_objective_and_gives_the_base_back(objective: Any) -> None:
    from models import tiny

    from benchmarks.lab.studies.tune import Preference, Tuning, log_probs, margins, tuned

    def figure(model: Any) -> torch.Tensor:
        """What the objective is about: the margin, or the likelihood of what is chosen."""
        if objective == "dpo":
            return margins(model, tokenizer, preferences)
        return log_probs(model, tokenizer, [(p.question, p.chosen) for p in preferences]).mean

    model, tokenizer = tiny(0)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    preferences = [Preference(*pair) for pair in PAIRS]
    least = figure(model)
    tuning = Tuning(objective, rank=4, lr=5e-3, steps=8, batch=4)
    student = tuned(model, tokenizer, preferences, tuning, init=0)
    assert (figure(student) > least).all()
    base = student.unload()
    assert all((base.state_dict()[name] == weight).all() for name, weight in before.items())


@pytest.mark.parametrize("objective", ["dpo", "orpo"])
@pytest.mark.usefixtures("pda")
def test_no_preferences_are_an_error(objective: Any) -> None:
    from models import tiny

    from benchmarks.lab.studies.tune import Tuning, tuned

    with pytest.raises(ValueError, match="at least one pair, got none"):
        tuned(*tiny(0), [], Tuning(objective, rank=4), init=0)


def test_every_epoch_has_each_pair_once() -> None:
    from benchmarks.lab.studies.tune import _order

    order = _order(5, 0)
    epochs = [[next(order) for _ in range(5)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_half_of_the_labels_are_those_of_other_questions() -> None:
    from benchmarks.lab.studies.sets import half_wrong

    right = [(f"q{i}", f"a{i}") for i in range(40)]
    mixture = half_wrong(right, random.Random(0))
    assert [question for question, _ in mixture] == [question for question, _ in right]
    assert Counter(answer for _, answer in mixture) == Counter(answer for _, answer in right)
    assert sum(a != b for a, b in zip(mixture, right, strict=True)) == 20


def test_a_study_has_each_row_once_and_methods_exist() -> None:
    import gam_merge as gm
    from benchmarks.lab.studies.design import METHODS, STUDIES, units
    from benchmarks.lab.studies.run import subjects

    for study in STUDIES:
        rows = subjects(study)
        assert len(set(rows)) == len(rows)
    for method, params in METHODS.values():
        gm.get_method(method).validate(params)
    assert len(set(units([], None))) == sum(len(study.seeds) for study in STUDIES)


def test_the_plan_is_near_what_the_rows_took() -> None:
    from benchmarks.lab import rows
    from benchmarks.lab.studies.design import STUDIES, cost

    seconds: dict[str, Counter[int]] = {study.name: Counter() for study in STUDIES}
    for row in rows.read(rows.STUDIED):
        seconds[row["study"]][row["seed"]] += row["seconds"]
    for study in STUDIES:
        if not study.regimen:  # copies answer once for all regimens
            longest = max(seconds[study.name].values(), default=0)
            assert not longest or 0.7 < cost(study) / longest < 1.3


@pytest.fixture
def student(pda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four random layers over bytes in place of SmolLM2, with words that the tasks can draw."""
    import transformers
    from models import tiny

    import examples.smollm

    words = ["Ġ" + "".join(letters) for letters in product(LETTERS, repeat=4)]

    def load(dtype: Any = torch.float32, folder: Path | None = None) -> tuple[Any, Any]:
        small, tokenizer = tiny(0)
        tokenizer.add_tokens(words[:1000])
        config = small.config
        config.num_hidden_layers, config.vocab_size = 4, len(tokenizer)
        config.initializer_range = 0.3  # else layers that are skipped change no answer
        config._name_or_path = examples.smollm.HUB_ID
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).to(dtype).eval(), tokenizer

    monkeypatch.setattr(examples.smollm, "load_base", load)


@pytest.mark.usefixtures("student")
def test_tasks_of_the_example_are_the_families(monkeypatch: pytest.MonkeyPatch) -> None:
    import questions

    import examples.smollm

    monkeypatch.setattr(questions, "load", lambda name: examples.smollm.load_base())
    training, test = questions.tasks(1, 0, 4), questions.tasks(1, 4, 2)
    assert len(training) == 4 * len(examples.smollm.TASKS)
    assert len(test) == 2 * len(examples.smollm.TASKS)
    asked = [row["question"] for row in training + test]
    assert len(set(asked)) == len(asked)
    assert training[0]["answer"] == str(sum(map(int, re.findall(r"\d+", asked[0]))))


def kinds() -> list[Any]:
    """One study of each kind."""
    from benchmarks.lab.studies.design import STUDIES

    one: dict[tuple[bool, ...], Any] = {}
    for study in STUDIES:
        kind = (study.axes, bool(study.tuning), bool(study.noise), bool(study.regimen))
        one.setdefault(kind, study)
    return list(one.values())


@pytest.mark.parametrize("study", kinds(), ids=lambda study: study.name)
@pytest.mark.usefixtures("student")
def test_rows_of_a_study(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.lab import rows
    from benchmarks.lab.studies import axes, sets
    from benchmarks.lab.studies.design import Unit
    from benchmarks.lab.studies.run import KEY, Studies, subjects

    monkeypatch.setattr(sets, "CROWD_STEPS", 2)
    monkeypatch.setattr(axes, "TRAINING_ITEMS", 20)
    monkeypatch.setattr(sets, "PREFERENCE_ITEMS", 2)
    short = replace(study, methods=study.methods[:2], scales=study.scales[:3:2])
    if study.tuning:
        short = replace(short, tuning=replace(study.tuning, steps=2))
    if study.regimen:
        fewer = replace(study.regimen.tuning, steps=2)
        short = replace(short, regimen=replace(study.regimen, tuning=fewer))
    results = tmp_path / "rows.jsonl"
    worker = Studies(tmp_path / "adapters", results)
    weights = {name: weight.clone() for name, weight in worker.models.exact.state_dict().items()}
    worker.run(Unit(short, 0))
    measured = rows.read(results)
    assert [rows.key(row, KEY)[2:] for row in measured] == subjects(short)
    after = worker.models.exact.state_dict()
    assert all((after[name] == weight).all() for name, weight in weights.items())
    base, *others = (row for row in measured if row["method"] != "compare")
    assert all(row["nll"] != base["nll"] for row in others)
    assert all(("margin" in row) == bool(PREFERENCES.match(study.name)) for row in others)
    worker.run(Unit(short, 0))
    assert rows.read(results) == measured


@pytest.mark.usefixtures("student")
def test_the_mean_in_other_factors_has_the_same_figures(tmp_path: Path) -> None:
    """What two rows of one delta differ by is the noise of a row: float32 leaves little."""
    from benchmarks.lab.studies.design import Study, Unit
    from benchmarks.lab.studies.run import Measurement, Models
    from benchmarks.lab.studies.sets import Crowd

    study = Study("crowd", ("mean", "consensus(0)"), ("own",), (2,), noise="labels")
    models = Models()
    adapters = Crowd(study, 0, *models.training, tmp_path)
    measurement = Measurement(Unit(study, 0), models, adapters)
    one, other = (measurement.merge(2, label, "own")["nll"] for label in study.methods)
    assert one == pytest.approx(other, abs=1e-5)
    assert one != pytest.approx(measurement.base()["nll"], abs=1e-3)


@pytest.mark.usefixtures("student")
def test_the_run_on_a_gpu_at_toy_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.lab import gpu, rows
    from benchmarks.lab.studies.design import STUDIES

    study = next(study for study in STUDIES if study.name == "paper's optimiser, DPO")
    short = replace(study, methods=("mean", "gam"), scales=("own",))
    monkeypatch.setattr(gpu, "STUDIES", (short,))
    pairs, results = tmp_path / "pairs.json", tmp_path / "rows.jsonl"
    gpu.pairs(pairs, tmp_path / "answers", seeds=1, items=2)
    gpu.rows(pairs, results, None, tmp_path / "adapters", device="cpu", steps=2)
    measured = rows.read(results)
    names = [row["method"] for row in measured]
    assert names == ["base", *(f"single {i}" for i in range(4)), "compare", "mean", "gam"]
    assert {row["study"] for row in measured} == {"paper's optimiser, DPO, batch 128, 2 steps"}
    adapters = [path.name for path in (tmp_path / "adapters").iterdir()]
    assert all("steps2-batch128" in name for name in adapters if name.startswith("over"))
    assert [study.name for study in gpu.studies()] == ["paper's optimiser, DPO, batch 128"]


def test_the_tables_are_those_of_the_rows() -> None:
    from benchmarks.lab import rows
    from benchmarks.lab.studies import report
    from benchmarks.lab.studies.axes_report import axes
    from benchmarks.lab.studies.design import STUDIES
    from benchmarks.lab.studies.results import Results

    measured = rows.read(rows.STUDIED)
    text = report.PAGE.read_text("utf-8")
    tables = text.partition("<!-- studies -->")[2].partition("<!-- /studies -->")[0].strip()
    assert tables == report.tables(measured)
    (study,) = (study for study in STUDIES if study.axes)
    example = report.EXAMPLE.read_text("utf-8")
    assert axes(Results(measured), study) in example


def made_rows(nll: dict[str, float], single: float) -> list[dict[str, Any]]:
    """Rows of a study in five seeds, with a little noise between them."""
    rows: list[dict[str, Any]] = []
    for seed in range(5):
        shift = 0.2 * seed
        own = {"study": "made", "seed": seed, "scale": "own", "accuracy": {"x": 0.5}}
        rows.append({**own, "size": 1, "method": "base", "nll": {"x": 9 + shift}})
        for i in range(2):
            row = {**own, "size": 1, "method": f"single {i}", "nll": {"x": single + shift + i}}
            rows.append(row)
        for method, value in nll.items():
            noise = 0.001 * (seed % 2) * len(method)
            for scale in ("own", "norm"):
                figure = {"x": value + shift + noise}
                rows.append({**own, "scale": scale, "size": 2, "method": method, "nll": figure})
    return rows


@pytest.mark.parametrize(
    ("gam", "single", "answer"),
    [
        (0.8, 2.0, "yes, gam"),
        (0.8, 0.5, "no"),  # the mean is no better than the best adapter
        (0.95, 2.0, "no"),  # below the mean, not below the best consensus
        (1.1, 2.0, "no"),
    ],
)
def test_gam_helps_by_the_rule_alone(gam: float, single: float, answer: str) -> None:
    from benchmarks.lab.studies.design import Study
    from benchmarks.lab.studies.results import Results
    from benchmarks.lab.studies.verdict import verdict

    methods = ("mean", "gam", "gam polar", "consensus(-0.25)", "consensus(0.25)")
    study = Study("made", methods, ("own", "norm"), (2,))
    nll = dict(zip(methods, (1.0, gam, 1.2, 0.97, 0.9), strict=True))
    answered = verdict(Results(made_rows(nll, single)), study, 2)
    assert answered.startswith(f"GAM helps: {answer};")
    assert "consensus(0.25)" in answered


def test_the_study_of_the_axes_is_that_of_the_example() -> None:
    from string import Template

    import yaml

    from benchmarks.lab.studies import axes
    from benchmarks.lab.studies.design import STUDIES

    text = (ROOT / "examples" / "pda" / "axes.yaml").read_text("utf-8")
    example = yaml.safe_load(Template(text).substitute(seed=3))
    (study,) = (study for study in STUDIES if study.axes)
    tuning, training, asked = study.tuning, example["train"], example["questions"]
    assert tuning is not None
    assert (tuning.objective, tuning.rank) == (training["objective"], training["rank"])
    assert (tuning.lr, tuning.batch) == (training["lr"], training["batch"])
    assert tuning.steps * tuning.batch == asked["count"] == axes.TRAINING_ITEMS
    assert example["test"]["skip"] == axes.TRAINING_ITEMS
    assert example["test"]["count"] == axes.TEST_ITEMS
    assert example["ask"]["system"] == axes.SYSTEM
    assert example["generate"]["max_new_tokens"] == axes.ASK.max_new_tokens
    assert example["generate"]["seed"] == 3  # which words are marked follows the seed in both
    assert example["evaluate"]["max_new_tokens"] == axes.TEST.max_new_tokens
    assert list(example["pairs"]) == list(axes.example.AXES)
