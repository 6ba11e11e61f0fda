"""A plan: what a merge would do, by the checks of the merge itself."""

from math import prod
from pathlib import Path

import pytest
import torch
from helpers import adapter, random_factors, write_adapter

import gam_merge as gm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters ``a`` and ``b``, the second of another rank and without one module, and ``other`` of another base."""
    folder = tmp_path_factory.mktemp("plan")
    generator = torch.Generator().manual_seed(0)
    for name, rank, modules in (("a", 2, "qkv"), ("b", 3, "qk"), ("other", 2, "qkv")):
        factors = {
            module: random_factors(generator, 6 + i, 9, rank, torch.bfloat16)
            for i, module in enumerate(modules)
        }
        write_adapter(
            folder / name, factors, base_model_name_or_path="other" if name == "other" else "base"
        )
    return folder


@pytest.mark.parametrize("settings", [{"method": "gam"}, {"rank": 5, "dtype": "fp32"}])
def test_a_plan_knows_what_the_merge_makes(folder, settings):
    sources = [folder / "a", folder / "b"]
    planned = gm.plan(sources, **settings).to_dict()
    result = gm.merge(sources, **settings)
    factors = [t for module in result.adapter.modules.values() for t in (module.a, module.b)]
    assert planned["nbytes"] == sum(prod(t.shape) * t.dtype.itemsize for t in factors)
    report = result.report.to_dict()
    assert all(planned[name] == report[name] for name in ("anchor", "rank", "dtype"))
    assert planned["method"] == settings.get("method", "auto")
    assert tuple(planned["weights"]) == report["weights"]
    assert sorted(name for bucket in planned["buckets"] for name in bucket["modules"]) == sorted(
        result.adapter.modules
    )


@pytest.mark.parametrize(
    ("sources", "settings", "message"),
    [
        (["a", "b"], {"method": "gum"}, "unknown method 'gum'"),
        (["a", "b"], {"params": {"lam": 1.0}}, "method auto has no parameter 'lam'"),
        (["a", "b"], {"weights": [1.0]}, "1 weights for 2 adapters"),
        (["a", "b"], {"weights": [1.0, float("nan")]}, "must be a finite number"),
        (["a", "b"], {"anchor": "c"}, r"anchor must be .* got 'c'"),
        (["a", "b"], {"anchor": "mean"}, "-m gam -p anchor=mean aligns gam to their mean"),
        (["a", "b"], {"rank": 0}, "rank must be a positive integer, got 0"),
        (["a", "b"], {"dtype": "int8"}, "dtype must be one of .*, got 'int8'"),
        (["a", "b"], {"device": "nowhere"}, "device 'nowhere' cannot be used here"),
        (["a", "b"], {"out": "a", "force": True}, "a: is"),
        (["a", "b"], {"out": "b"}, "b: is a source"),
        (["a", "other"], {}, "a was trained on base and other on other"),
        (["a", "c"], {}, "c: no such file or directory"),
    ],
)
def test_plan_and_merge_refuse_alike(folder, sources, settings, message, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    for function in (gm.plan, gm.merge):
        with pytest.raises(gm.GamMergeError, match=message):
            function(sources, **settings)
    assert sorted(folder.rglob("*")) == before


def test_an_anchor_without_effect_is_noted(folder):
    """By methods that have none, and by those that are told to do without; not where it counts."""
    sources = [folder / "a", folder / "b"]
    text = f"anchor {folder / 'b'} has no effect on"

    def noted(**options):
        notes = gm.plan(sources, **options).notes
        assert gm.merge(sources, **options).report.notes[: len(notes)] == notes
        return any(note.startswith(text) for note in notes)

    assert noted(anchor=1)  # auto
    assert noted(anchor=1, method="mean")
    assert noted(anchor=1, method="gam", params={"anchor": "none"})
    assert noted(anchor=1, method="mean", weights=[0.3, 0.7])
    assert not noted(anchor=0, method="mean")
    assert not noted(method="mean", weights=[0.3, 0.7])
    assert not noted(anchor=1, method="gam")
    assert not noted(anchor=1, method="np_lora")


@pytest.mark.parametrize("method", [method.name for method in gm.methods()])
def test_an_anchor_has_an_effect_where_the_card_says_so(method):
    """Three unlike adapters, merged with each of two as the anchor."""
    generator = torch.Generator().manual_seed(0)
    count = gm.get_method(method).adapters or 3
    if count < 2 or gm.get_method(method).chooses:
        return
    made = []
    for i in range(count):
        factors = {"layers.0.q": random_factors(generator, 12, 13, 4)}
        made.append(adapter(factors, source=str(i)))
    deltas = []
    for anchor in (0, 1):
        merged = gm.merge(made, method=method, anchor=anchor, rank=12).adapter
        deltas.append(merged.modules["layers.0.q"].delta())
    differs = not torch.allclose(*deltas, atol=1e-5)
    assert differs == gm.get_method(method).takes_anchor({})


def test_a_misspelt_option_names_the_verb() -> None:
    with pytest.raises(TypeError, match=r"merge\(\) got an unexpected keyword argument 'wieghts'"):
        gm.merge(["a"], wieghts=[1.0])
    with pytest.raises(TypeError, match=r"resize\(\) got an unexpected keyword argument 'rnk'"):
        gm.resize("a", rnk=4)
