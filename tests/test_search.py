"""Searches: the best settings are found, and an interruption costs nothing but the trial that it hit."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import random_factors, write_adapter
from scipy.stats import kstest

import gam_merge as gm
from gam_merge._recipes.recipe import Recipe
from gam_merge._trials.optimise import optimise
from gam_merge._trials.space import Number, Shares, make_space


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Adapters a, b and c, and a recipe of their mean."""
    generator = torch.Generator().manual_seed(0)
    for name in "abc":
        write_adapter(
            tmp_path / name, {"layers.0.q": random_factors(generator, 8, 6, 2, torch.float32)}
        )
    (tmp_path / "recipe.yaml").write_text(
        "method: mean\noutput: {rank: 6}\nsources: [{path: a}, {path: b}, {path: c}]"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def delta(path: str | Path) -> torch.Tensor:
    return gm.load(path).modules["layers.0.q"].delta()


def distance(weights: list[float]):
    """A score whose best value, 0, is at these weights."""
    wanted = sum(w * delta(name) for w, name in zip(weights, "abc", strict=True))
    return lambda adapter: -float((delta(adapter) - wanted).norm())


def test_weights_are_found(folder: Path):
    wanted = [0.6, 0.1, 0.3]
    found = gm.search("recipe.yaml", distance(wanted), "search", trials=40)
    assert len(found.trials) == 40
    assert found.best.score > -0.05
    assert found.best.score > found.trials[0].score / 5
    again = gm.merge_recipe(found.recipe)
    assert again.report.weights == pytest.approx(wanted, abs=0.03)
    assert distance(wanted)(again.adapter) == pytest.approx(found.best.score, rel=1e-4)
    assert found.plot.read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob("search/.*"))


def test_the_first_trial_is_the_recipe(folder: Path):
    Path("recipe.yaml").write_text(
        "method: mean\nsources: [{path: a, weight: 3}, {path: b}, {path: c, weight: 0}]"
    )
    found = gm.search("recipe.yaml", distance([0.75, 0.25, 0]), "search", trials=1)
    assert found.trials[0].overrides == ("weights.0=0.75", "weights.1=0.25", "weights.2=0")


def test_down_instead_of_up(folder: Path):
    score = distance([0.6, 0.1, 0.3])
    found = gm.search(
        "recipe.yaml", lambda adapter: -score(adapter), "search", trials=20, goal="min"
    )
    assert found.best.score == min(trial.score for trial in found.trials)
    assert found.best.score < found.trials[0].score


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stop", [0, 1, 4, 9])
def test_an_interrupted_search_goes_on(folder: Path, stop: int):
    score, calls = distance([0.6, 0.1, 0.3]), []

    def failing(adapter: Path) -> float:
        if len(calls) == stop:
            raise Interrupted
        calls.append(adapter)
        return score(adapter)

    whole = gm.search("recipe.yaml", score, "whole", trials=10)
    with pytest.raises(Interrupted):
        gm.search("recipe.yaml", failing, "search", trials=10)
    journal = Path("search/trials.jsonl")
    journal.write_text(journal.read_text() + '{"number": 1')  # killed in the middle of a line
    resumed = gm.search("recipe.yaml", score, "search", trials=10)
    assert resumed.trials == whole.trials
    assert (
        gm.search("recipe.yaml", score, "search", trials=10).trials == whole.trials
    )  # the journal can be read again
    assert len(journal.read_text().splitlines()) == 11
    assert (
        gm.merge_recipe("search/best.yaml").report.weights
        == gm.merge_recipe("whole/best.yaml").report.weights
    )


def test_more_trials_later(folder: Path):
    whole = gm.search("recipe.yaml", distance([0.6, 0.1, 0.3]), "whole", trials=10)
    gm.search("recipe.yaml", distance([0.6, 0.1, 0.3]), "search", trials=7)
    assert (
        gm.search("recipe.yaml", distance([0.6, 0.1, 0.3]), "search", trials=10).trials
        == whole.trials
    )


def test_a_search_of_no_trials_is_an_error(folder: Path):
    with pytest.raises(gm.GamMergeError, match="trials must be at least 1, got 0"):
        gm.search("recipe.yaml", distance([1, 0, 0]), "search", trials=0)


def test_the_best_recipe_is_that_of_the_journal(folder: Path):
    """Also where best.yaml is gone, or a score was edited; a setting that is none is one line."""
    found = gm.search("recipe.yaml", distance([0.6, 0.1, 0.3]), "search", trials=5)
    best = found.recipe.read_text()
    found.recipe.unlink()
    again = gm.search("recipe.yaml", distance([0.6, 0.1, 0.3]), "search", trials=5)
    assert again == found
    assert found.recipe.read_text() == best
    journal = Path("search/trials.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    lines[1 if found.best.number else 2]["score"] = 9.0
    journal.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    edited = gm.search("recipe.yaml", distance([0.6, 0.1, 0.3]), "search", trials=5)
    assert edited.best.score == 9.0
    assert edited.recipe.read_text() != best
    lines[1]["overrides"], lines[1]["score"] = ["nonsense"], 10.0
    journal.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with pytest.raises(gm.GamMergeError, match=r"nonsense"):
        gm.search("recipe.yaml", distance([0.6, 0.1, 0.3]), "search", trials=5)


def test_another_search_in_the_same_place_is_an_error(folder: Path):
    gm.search("recipe.yaml", distance([1, 0, 0]), "search", trials=1)
    with pytest.raises(
        gm.GamMergeError, match=r"a search with another goal, seed; choose another directory"
    ):
        gm.search("recipe.yaml", distance([1, 0, 0]), "search", trials=1, seed=1, goal="min")
    Path("recipe.yaml").write_text("sources: [{path: a}, {path: b}]")
    with pytest.raises(gm.GamMergeError, match="another recipe"):
        gm.search("recipe.yaml", distance([1, 0, 0]), "search", trials=1)
    Path("search/trials.jsonl").write_text("nonsense\n")
    with pytest.raises(gm.GamMergeError, match="is not the journal of a search"):
        gm.search("recipe.yaml", distance([1, 0, 0]), "search", trials=1)


TRIAL = {"number": 0, "overrides": ["weights.0=1.0"], "score": 0.5, "error": None}
BAD_LINES = {
    "a list": "[]",
    "a number": "1",
    "deep": "[" * 100_000 + "]" * 100_000,
    "digits": '{"number": ' + "9" * 5000 + "}",
    "half a line": '{"number": 0, "over',
    "nothing": "",
    "other fields": '{"scores": 1}',
    **{
        f"{name} = {value!r}": json.dumps({**TRIAL, name: value})
        for name, value in (
            ("number", 1), ("number", "0"), ("number", -1), ("number", None),
            ("overrides", "weights"), ("overrides", [1]), ("overrides", None),
            ("score", "0.5"), ("score", None), ("score", [0.5]), ("score", float("nan")),
            ("score", float("inf")), ("error", 1), ("more", 1),
        )
    },
    **{
        f"without {name}": json.dumps({k: v for k, v in TRIAL.items() if k != name})
        for name in TRIAL
    },
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_LINES)
@pytest.mark.parametrize("at", [0, 1])
def test_a_journal_that_was_edited_is_named_with_its_line(folder: Path, name: str, at: int):
    gm.search("recipe.yaml", distance([1, 0, 0]), "search", trials=2)
    journal = Path("search/trials.jsonl")
    lines = journal.read_text().splitlines()
    lines[at] = BAD_LINES[name]
    journal.write_text("\n".join(lines) + "\n")
    if at == 0 and BAD_LINES[name].startswith('{"') and name != "half a line":
        message = "a search with another"
    else:
        message = rf"trials\.jsonl: line {at + 1} is not the journal of a search"
    if name == "digits":
        message = f"line {at + 1} is not"
    with pytest.raises(gm.GamMergeError, match=message) as error:
        gm.search("recipe.yaml", distance([1, 0, 0]), "search", trials=2)
    assert len(str(error.value)) < 4000
    assert journal.read_text().splitlines() == lines


def test_a_journal_that_is_none(folder: Path):
    Path("search").mkdir()
    journal = Path("search/trials.jsonl")
    for make, message in (
        (lambda: journal.mkdir(), "Is a directory"),
        (lambda: os.mkfifo(journal), "is not a regular file"),
        (lambda: journal.write_bytes(b"\xff\n"), "is not UTF-8"),
    ):
        make()
        with pytest.raises(gm.GamMergeError, match=message):
            gm.search("recipe.yaml", distance([1, 0, 0]), "search", trials=2)
        journal.rmdir() if journal.is_dir() else journal.unlink()


def test_failed_trials_are_told_and_avoided(folder: Path):
    score = distance([0.6, 0.1, 0.3])
    gm.merge_recipe("recipe.yaml", out="first")
    first = score(Path("first"))

    def picky(adapter: Path) -> float:
        value = score(adapter)
        if value < 1.5 * first:
            raise gm.GamMergeError("too far off")
        return float("nan") if value < first else value

    found = gm.search("recipe.yaml", picky, "search", trials=20)
    errors = {trial.error for trial in found.trials}
    assert {"too far off", "the score must be finite, got nan"} <= errors
    assert found.best.score > first / 2


def test_if_the_first_trial_fails_so_does_the_search(folder: Path):
    command = f"{sys.executable} -c \"import sys; print('no data', file=sys.stderr); sys.exit(3)\" {{adapter}}"
    with pytest.raises(
        gm.GamMergeError, match=r"the first trial fails, .* exited with code 3: no data"
    ):
        gm.search("recipe.yaml", command, "search")
    assert len(Path("search/trials.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("score.py", "must contain {adapter}"),
        ("'score.py {adapter}", "cannot be split"),
        ("./nowhere {adapter}", "./nowhere: cannot be run: No such file"),
        (f"{sys.executable} -c 'print(\"high\")' {{adapter}}", "printed 'high' last, not a number"),
        (f"{sys.executable} -c '' {{adapter}}", "printed '' last, not a number"),
    ],
)
def test_commands_that_give_no_score(folder: Path, command: str, expected: str):
    with pytest.raises(gm.GamMergeError, match=expected):
        gm.search("recipe.yaml", command, "search", trials=2)


def test_a_command_is_run_without_a_shell(folder: Path):
    code = "import os, sys; print('reading', len(os.listdir(sys.argv[1]))); print('score:', len(sys.argv[2]))"
    found = gm.search(
        "recipe.yaml", f'{sys.executable} -c "{code}" {{adapter}} "a; b"', "search", trials=1
    )
    assert found.best.score == 4.0


def test_anchor_parameters_and_keys(folder: Path):
    vary = [
        "anchor",
        "params.scale=0.5:2",
        "params.iterations=1:4",
        "output.rank=1:3",
        "sources.1.weight=1:2",
    ]
    Path("recipe.yaml").write_text("method: gam\nsources: [{path: a}, {path: b}, {path: c}]")
    found = gm.search("recipe.yaml", lambda adapter: 0.0, "search", trials=20, vary=vary)
    values = {
        key: set()
        for key in (
            "anchor",
            "params.scale",
            "params.iterations",
            "output.rank",
            "sources.1.weight",
        )
    }
    for trial in found.trials:
        for key, _, value in (text.partition("=") for text in trial.overrides):
            values[key].add(json.loads(value))
    assert values["anchor"] == {0, 1, 2}
    assert values["params.iterations"] == {1, 2, 3, 4}
    assert values["output.rank"] == {1, 2, 3}
    assert 0.5 <= min(values["params.scale"]) < 0.9 < 1.5 < max(values["params.scale"]) <= 2
    assert found.trials[0].overrides[:2] == (
        "anchor=0",
        "params.scale=1",
    )  # as the recipe has it, by default


@pytest.mark.parametrize(
    ("vary", "expected"),
    [
        (["nonsense"], "vary must be weights, .*, got 'nonsense'"),
        (["params.scale"], "params.scale has no upper limit; give params.scale=LOW:HIGH"),
        (["params.rescale"], "method mean has no numeric parameter 'rescale' to vary"),
        (["params.scale=1"], "vary must be KEY=LOW:HIGH"),
        (["params.scale=2:1"], "vary must be KEY=LOW:HIGH"),
        (["params.scale=a:b"], "vary must be KEY=LOW:HIGH"),
    ],
)
def test_what_cannot_be_varied(folder: Path, vary: list[str], expected: str):
    with pytest.raises(gm.GamMergeError, match=expected):
        gm.search("recipe.yaml", lambda adapter: 0.0, "search", vary=vary)


def test_one_source_has_no_weights_to_vary(folder: Path):
    Path("recipe.yaml").write_text("sources: [{path: a}]")
    with pytest.raises(gm.GamMergeError, match="nothing to vary"):
        gm.search("recipe.yaml", lambda adapter: 0.0, "search")
    Path("recipe.yaml").write_text("sources: [{path: a, weight: [0, 1]}, {path: b}]")
    with pytest.raises(gm.GamMergeError, match="weight 0 of the recipe is not a number"):
        gm.search("recipe.yaml", lambda adapter: 0.0, "search")


def recipe(*weights: float, **more: object) -> Recipe:
    return Recipe.model_validate({"sources": [{"path": "a", "weight": w} for w in weights], **more})


def weights_of(point: list[float], count: int) -> list[float]:
    return [float(text.partition("=")[2]) for text in Shares(count).overrides(point)]


@pytest.mark.parametrize(
    "weights", [[1, 1], [1, 0, 0], [0, 0, 1], [0, 2, 2], [0.1, 0.2, 0.3, 0.4], [5, 0, 1, 0]]
)
def test_shares_start_at_the_recipe(weights: list[float]):
    point = Shares(len(weights)).start(recipe(*weights))
    assert weights_of(point, len(weights)) == pytest.approx(
        [w / sum(weights) for w in weights], abs=1e-5
    )


def test_shares_of_uniform_points_are_uniform_on_the_simplex():
    """Each weight of four then has the distribution of the least of three uniform numbers."""
    rng = np.random.default_rng(0)
    weights = np.array([weights_of(list(rng.random(3)), 4) for _ in range(2000)])
    assert np.allclose(weights.sum(1), 1, atol=1e-5)
    for column in weights.T:
        assert kstest(column, lambda x: 1 - (1 - x) ** 3).pvalue > 0.01


def test_methods_that_sum_have_weights_of_their_own():
    axes = make_space(recipe(1, 0.5, method="sum"), ["weights"]).axes
    assert axes == (Number("weights.0", 0.0, 1.0), Number("weights.1", 0.0, 1.0))
    assert axes[1].start(recipe(1, 0.5)) == [0.5]


@pytest.mark.parametrize("kind", ["smooth", "noisy", "steps"])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_optimiser_is_better_than_chance(kind: str, size: int):
    """At most two thirds of the regret of as many random trials, over 12 problems; measured are a half and less."""

    class Spent(Exception):
        pass

    def regret(seed: int) -> tuple[float, float]:
        rng = np.random.default_rng(seed)
        centre, mixing = rng.uniform(0.15, 0.85, size), rng.standard_normal((size, size))
        curve = mixing @ mixing.T / size + 0.3 * np.eye(size)

        def value(x: np.ndarray) -> float:
            return float(np.sqrt((x - centre) @ curve @ (x - centre)))

        def loss(x: np.ndarray) -> float:
            if len(tried) == 40:
                raise Spent
            tried.append(x.copy())
            noisy = value(x) + 0.02 * (kind == "noisy") * rng.standard_normal()
            seen.append(np.round(20 * noisy) / 20 if kind == "steps" else noisy)
            return seen[-1]

        tried, seen = [], []
        with pytest.raises(Spent):
            optimise(loss, [0.5] * size, seed)
        random = min(map(value, rng.random((40, size))))
        return value(tried[int(np.argmin(seen))]), random

    found, random = np.array([regret(seed) for seed in range(12)]).mean(0)
    assert found < random * 2 / 3
