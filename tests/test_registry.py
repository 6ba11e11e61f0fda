"""Methods by name: which exist, what may be set, and what is wrong with a request, in one line."""

import json
import pickle
from typing import Annotated, Literal

import pytest
import torch
from helpers import adapter, random_factors

import gam_merge as gm
from gam_merge import GamMergeError, get_method, rules
from gam_merge._methods._schema import Range, schema, validate


def example(
    bucket: object,
    *,
    share: Annotated[float, Range(0, 1), "a share"] = 0.5,
    steps: Annotated[int, Range(1)] = 10,
    exact: bool = False,
    side: Annotated[Literal["left", "right"], "a side"] = "left",
    free: float = 0.0,
) -> None: ...


PARAMS = schema(example)


def test_signature_is_the_schema() -> None:
    assert [(p.name, p.type, p.default) for p in PARAMS] == [
        ("share", "float", 0.5),
        ("steps", "int", 10),
        ("exact", "bool", False),
        ("side", "choice", "left"),
        ("free", "float", 0.0),
    ]
    assert PARAMS[0].doc == "a share"
    assert PARAMS[3].choices == ("left", "right")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("share", "0.25", 0.25),
        ("share", 1, 1.0),
        ("steps", "3", 3),
        ("steps", 3.0, 3),
        ("exact", "true", True),
        ("exact", False, False),
        ("side", "right", "right"),
        ("free", "-1e3", -1000.0),
    ],
)
def test_values_are_read_as_their_type(name: str, value: object, expected: object) -> None:
    found = validate("example", PARAMS, {name: value})
    assert (found[name], type(found[name])) == (expected, type(expected))
    assert set(found) == {param.name for param in PARAMS}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("share", 1.5, r"share of method example must be a number in \[0, 1\], got 1.5"),
        ("share", "nan", r"must be a number in \[0, 1\], got 'nan'"),
        ("share", True, r"must be a number in \[0, 1\], got True"),
        ("share", None, r"must be a number in \[0, 1\], got None"),
        ("share", [0.5], r"must be a number in \[0, 1\], got \[0.5\]"),
        ("steps", 0, "must be an integer >= 1, got 0"),
        ("steps", 1.5, "must be an integer >= 1, got 1.5"),
        ("steps", "1e999", "must be an integer >= 1, got '1e999'"),
        ("exact", "maybe", "must be true or false, got 'maybe'"),
        ("side", "up", "must be one of left, right, got 'up'"),
        ("free", "inf", "must be a number, got 'inf'"),
        ("shares", 1, "has no parameter 'shares'; it has share, steps, exact, side, free"),
    ],
)
def test_wrong_values_are_refused_in_one_line(name: str, value: object, words: str) -> None:
    with pytest.raises(GamMergeError, match=words) as caught:
        validate("example", PARAMS, {name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gem", r"unknown method 'gem'; did you mean 'gam'\?"),
        ("", "unknown method ''"),
        ("gam@core", "gam does not take a space"),
        ("gam+mean", "has 2 rules"),
        ("gam+", "unknown method ''"),
    ],
)
def test_wrong_names_are_refused_in_one_line(name: str, words: str) -> None:
    with pytest.raises(GamMergeError, match=words) as caught:
        get_method(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", gm.methods(), ids=lambda method: method.name)
def test_every_method_says_what_it_is(method: gm.Method) -> None:
    card = method.to_dict()
    assert json.loads(json.dumps(card)) == card
    assert all(card[field] for field in ("name", "summary", "reference", "use", "avoid", "params"))
    assert all(param["doc"] for param in card["params"])
    assert pickle.loads(pickle.dumps(method)) == method
    assert method.validate({}) == {param.name: param.default for param in method.params}


def test_params_reach_the_report() -> None:
    from catalogue import PROBLEMS

    params = {"orthonormalize": "polar"}
    report = gm.merge(PROBLEMS["two"].adapters, method="gam", params=params).report
    assert report.params["orthonormalize"] == "polar"
    assert json.loads(json.dumps(report.to_dict()))["params"] == report.params


def test_large_ranks_are_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from catalogue import related

    import gam_merge._lineup.serving as serving

    adapters = related(count=3, shape=(520, 530), ranks=(180,)).adapters
    (note,) = gm.plan(adapters, method="cat").to_dict()["notes"]
    assert note.startswith("rank 520 is more than the 512")
    assert not gm.plan(adapters, method="cat", rank=512).notes
    monkeypatch.setattr(serving, "SERVED_RANKS", (1, 8))
    assert gm.merge(related(count=3).adapters, method="cat").report.notes


@pytest.mark.parametrize(
    "name", ["Bucket", "Coefficients", "Core", "Entries", "InCore", "Merged", "Range", "rule"]
)
def test_names_of_authors_have_moved(name: str) -> None:
    """For one release they are found in the old place, with a warning that names the new one."""
    with pytest.warns(DeprecationWarning, match=rf"moved to gam_merge\.rules\.{name}"):
        moved = getattr(gm, name)
    assert moved is getattr(rules, name)


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'gam_merge' has no attribute 'space'"):
        gm.space  # noqa: B018


def test_a_rule_with_a_survey_takes_weights_by_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """One weight per adapter is asked for where a method works globally, not where it surveys."""
    from gam_merge._methods import _registry

    @rules.rule("bucket", "counted", survey=lambda bucket, weights: len(bucket.names))
    def counted(bucket: rules.Bucket, weights: torch.Tensor, summary: int) -> rules.Merged:
        assert summary == 2
        mean = gm.get_method("mean")
        return mean.merge(bucket, weights, **mean.validate({}))

    monkeypatch.setitem(_registry._BUILT_IN, "counted", counted)
    generator = torch.Generator().manual_seed(0)
    adapters = []
    for source in ("a", "b"):
        factors = {name: random_factors(generator, 6, 5, 2) for name in ("x", "y")}
        adapters.append(adapter(factors, source=source))
    weights = [[{"filter": "x", "value": 0.25}, {"filter": "y", "value": 0.5}], 0.75]
    surveyed = gm.merge(adapters, method="counted", weights=weights, rank=4)
    unchanged = {"norm_equalise.beta": 1}
    on_cores = gm.merge(
        adapters, method="norm_equalise+counted", params=unchanged, weights=weights, rank=4
    )
    expected = gm.merge(adapters, method="mean", weights=weights, rank=4)
    gm.get_method.cache_clear()
    for name, module in expected.adapter.modules.items():
        assert torch.allclose(surveyed.adapter.modules[name].delta(), module.delta())
        assert torch.allclose(on_cores.adapter.modules[name].delta(), module.delta())
