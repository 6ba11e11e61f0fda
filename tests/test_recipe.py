"""A merge written down and done again: the same bytes, and a line number for everything that is wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers import digest, random_factors, write_adapter
from jsonschema import Draft202012Validator

import gam_merge as gm

LAYERS = [f"model.layers.{i}.{part}" for i in range(3) for part in ("attn.q", "mlp.up")]
RECIPE, WEIGHTS = "gam_merge_recipe.yaml", "adapter_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three adapters a, b and c, in the working directory."""
    generator = torch.Generator().manual_seed(0)
    for name in "abc":
        factors = {layer: random_factors(generator, 10, 8, 2, torch.float32) for layer in LAYERS}
        write_adapter(tmp_path / name, factors)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str) -> Path:
    path = Path("recipe.yaml")
    path.write_text(text)
    return path


OVER_DEPTH = [0.1, 0.7, 0.3]
FILTERS = [{"filter": "*.mlp.*", "value": 1 / 3}, {"filter": "*", "value": [1e-5, 2]}]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weights": [0.1, 0.2, 0.7], "anchor": 2},
        {"weights": [OVER_DEPTH, FILTERS, 1], "rank": 3, "dtype": "bf16"},
        {"weights": (0, 1, torch.tensor(0.3).item()), "method": "mean", "missing": "skip"},
        {"method": "dare_ties@knots", "params": {"seed": 7, "density": [0.3, 0.9]}},
        {"method": "mean", "energy": 0.8, "max_rank": 4},
        {"method": "mean", "energy": 0.8, "per_module_rank": True},
    ],
)
def test_the_written_recipe_gives_the_same_bytes(folder, settings):
    gm.merge(["a", folder / "b", "c/adapter_model.safetensors"], out="deep/er/out", **settings)
    gm.merge_recipe(f"deep/er/out/{RECIPE}", out="again")
    for file in (WEIGHTS, "adapter_config.json"):
        assert digest("again", file) == digest("deep/er/out", file)
    gm.merge_recipe(f"again/{RECIPE}", out="thrice")
    assert Path("thrice", RECIPE).read_bytes() == Path("again", RECIPE).read_bytes()


def _digests(directory: str) -> dict[str, str]:
    """What a recipe says of a source that is a directory."""
    config = digest(directory, "adapter_config.json")
    return {"sha256": digest(directory), "config_sha256": config}


def test_what_is_written(folder):
    gm.merge(["a", "b"], weights=[0.25, 1], out="out")
    text = Path("out", RECIPE).read_text()
    assert text.startswith("# gam-merge ")
    written = yaml.safe_load(text)
    assert written["params"]["orthonormalize"] == "none"  # defaults of today, should they change
    assert written == {
        "method": "gam",
        "params": written["params"],
        "sources": [
            {"path": "../a", "weight": 0.25, **_digests("a")},
            {"path": "../b", "weight": 1, **_digests("b")},
        ],
        "anchor": 0,
        "missing": "zero",
        "output": {
            "rank": 2,
            "format": "peft",
            "dtype": "float32",
            "sha256": {name: digest("out", name) for name in (WEIGHTS, "adapter_config.json")},
        },
    }
    assert list(written) == ["method", "params", "sources", "anchor", "missing", "output"]


def test_saved_from_memory_it_is_the_same(folder):
    gm.merge(["a", "b"], out="streamed")
    gm.merge(["a", "b"]).save("saved")
    assert {p.name: p.read_bytes() for p in Path("saved").iterdir()} == {
        p.name: p.read_bytes() for p in Path("streamed").iterdir()
    }


def test_bare_files(folder):
    for name in "ab":
        shutil.copy(f"{name}/{WEIGHTS}", f"{name}.safetensors")
    gm.merge(["a.safetensors", "b.safetensors"], base_model="base", alpha=[2, 6], out="out")
    gm.merge_recipe(f"out/{RECIPE}", out="again")
    assert digest("again") == digest("out")


def test_other_base_models(folder):
    config = json.loads(Path("b/adapter_config.json").read_text())
    Path("b/adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "mirror"})
    )
    gm.merge(["a", "b"], allow_base_mismatch=True, out="out")
    assert gm.merge_recipe(f"out/{RECIPE}", out="again").path == Path("again")


def test_parameters_of_a_method(folder):
    params = {"orthonormalize": "polar", "scale": [0.5, 1]}
    gm.merge(["a", "b"], method="gam", params=params, out="out")
    gm.merge_recipe(f"out/{RECIPE}", out="again")
    assert digest("again") == digest("out")


TWO = """\
name: first
sources: [{path: a}, {path: b, weight: 3}]
---
name: other  # used twice, and before it comes
sources: [{path: first}, {path: c}]
method: mean
---
sources: [{path: other}, {path: first, weight: 0.5}, {path: a}]
anchor: first
"""


def test_merges_of_merges(folder):
    first = gm.merge(["a", "b"], weights=[1, 3])
    other = gm.merge([first.adapter, "c"], method="mean")
    gm.merge([other.adapter, first.adapter, "a"], weights=[1, 0.5, 1], anchor=1, out="by-hand")
    gm.merge_recipe(write(TWO), out="out")
    assert digest("out") == digest("by-hand")
    assert [d.get("name") for d in yaml.safe_load_all(Path("out", RECIPE).read_text())] == [
        "first",
        "other",
        "merged",
    ]
    for written in ("out", "by-hand"):
        gm.merge_recipe(f"{written}/{RECIPE}", out=f"{written}-again")
        assert digest(f"{written}-again") == digest("out")


def test_the_order_of_documents_is_free_but_for_the_last(folder):
    first, other, last = TWO.split("---\n")
    gm.merge_recipe(write(TWO), out="out")
    gm.merge_recipe(write("---\n".join([other, first, last])), out="turned")
    assert digest("turned") == digest("out")


def test_a_plan_of_merges_of_merges_reads_no_tensor(folder):
    planned = gm.plan_recipe(write(TWO))
    done = gm.merge_recipe(write(TWO))
    assert planned.modules == [module.name for module in done.report.modules]
    assert [a.source for a in planned.adapters] == list(done.report.sources)
    assert (planned.rank, planned.job.dtype) == (done.report.rank, done.adapter.dtype)
    Path("out").mkdir()
    Path("out", "mine").touch()
    for function in (gm.plan_recipe, gm.merge_recipe):
        with pytest.raises(gm.GamMergeError, match="already exists"):
            function(write(TWO), out="out")


def test_in_memory_sources_are_named_and_not_kept_alive(folder):
    source = gm.Adapter("live", gm.load("a").modules, "base")
    result = gm.merge([source, "b"])
    assert (
        result.adapter.made_by is None
    )  # such a merge cannot be repeated, and chains of them must not grow
    result.save("out")
    assert [
        s.get("sha256") for s in yaml.safe_load(Path("out", RECIPE).read_text())["sources"]
    ] == [None, digest("b")]


def test_changed_sources_are_an_error(folder):
    gm.merge(["a", "b"], out="out")
    shutil.copy("c/adapter_model.safetensors", "b/adapter_model.safetensors")
    with pytest.raises(
        gm.GamMergeError,
        match=r"out/gam_merge_recipe.yaml: line \d+: sources.1.sha256: /.*/b/adapter_mod",
    ) as caught:
        gm.merge_recipe(f"out/{RECIPE}", out="again")
    assert ".." not in str(caught.value)
    assert not Path("again").exists()


def test_changed_configs_are_an_error(folder):
    """With the same weights and another alpha it is another adapter."""
    gm.merge(["a", "b"], out="out")
    config = Path("b", "adapter_config.json")
    config.write_text(config.read_text().replace('"lora_alpha": 2', '"lora_alpha": 2000'))
    with pytest.raises(
        gm.GamMergeError,
        match=r"line \d+: sources.1.config_sha256: /.*/b/adapter_config.json has changed",
    ):
        gm.merge_recipe(f"out/{RECIPE}", out="again")
    assert not Path("again").exists()


def test_moved_together_it_still_works(folder):
    gm.merge(["a", "b"], out="out")
    Path("elsewhere").mkdir()
    for name in ("a", "b", "out"):
        shutil.move(name, "elsewhere")
    gm.merge_recipe(f"elsewhere/out/{RECIPE}", out="again")
    assert digest("again") == digest("elsewhere/out")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["weights.a=3"], {"weights": [3, 1]}),
        (["weights.1=3", "anchor=1"], {"weights": [1, 3], "anchor": 1}),
        (["sources.1.weight=[0, 1]"], {"weights": [1, [0, 1]]}),
        (["weights.b=[{filter: '*', value: 2}]"], {"weights": [1, 2]}),
        (
            ["method=mean", "output.rank=1", "output.dtype=fp64"],
            {"method": "mean", "rank": 1, "dtype": "fp64"},
        ),
        (["sources.1.path=c"], {"sources": ["a", "c"]}),
    ],
)
def test_told_on_the_command_line(folder, overrides, expected):
    recipe = write("sources: [{path: a}, {path: ./b}]")
    gm.merge_recipe(recipe, overrides=overrides, out="out")
    gm.merge(**{"sources": ["a", "b"], **expected}, out="expected")
    assert digest("out") == digest("expected")


def test_told_of_a_named_merge(folder):
    gm.merge_recipe(write(TWO), overrides=["first.weights.b=1", "output.rank=1"], out="out")
    gm.merge_recipe(
        write(TWO.replace("weight: 3", "weight: 1") + "output: {rank: 1}"), out="expected"
    )
    assert digest("out") == digest("expected")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "recipe.yaml: holds no merge"),
        ("- a\n- b", "line 1: a merge must be a mapping of name"),
        ("method: gam", "line 1: sources: is missing"),
        ("sources: []", "line 1: sources: must have at least 1 item"),
        (
            "sources: [{path: a}]\nwieghts: [1]",
            "line 2: wieghts: unknown key 'wieghts'; expected one of name, method",
        ),
        (
            "sources:\n- path: a\n- path: b\n  wieght: 1",
            "line 4: sources.1.wieght: unknown key .* path, weight, base_model",
        ),
        (
            "sources:\n- path: a\n- path: b\n  weight: much",
            "line 4: sources.1.weight: weight must be a finite number, got 'much'",
        ),
        (
            "sources:\n- path: a\n  weight: [1, x]",
            "line 3: sources.0.weight: weight must be a list of numbers",
        ),
        (
            "sources:\n- path: a\n  weight: .inf",
            "line 3: sources.0.weight: weight must be a finite number, got inf",
        ),
        (
            "sources:\n- path: a\n- path: 3",
            "line 3: sources.1.path: must be a valid string, got 3",
        ),
        (
            "sources:\n- path: a\n  sha256: abc",
            "line 3: sources.0.sha256: must match .* got 'abc'",
        ),
        (
            "sources:\n- path: a\n- path: ../nowhere",
            "line 3: sources.1.path: .*nowhere does not exist, and no merge here",
        ),
        (
            "sources:\n- path: a\n- path: ~nobody-at-all/a",
            "line 3: sources.1.path: .*~nobody-at-all/a does not exist",
        ),
        (
            "sources: [{path: a}]\noutput:\n  rank: 0",
            "line 3: output.rank: must be greater than or equal to 1, got 0",
        ),
        (
            "sources: [{path: a}]\noutput:\n  rank: '8'",
            "line 3: output.rank: must be a valid integer, got '8'",
        ),
        (
            "sources: [{path: a}]\noutput:\n  dtype: int8",
            "line 3: output.dtype: dtype must be one of",
        ),
        (
            "sources: [{path: a}]\noutput:\n  size: 8",
            "line 3: output.size: unknown key .* rank, energy, .*dtype",
        ),
        ("sources: [{path: a}]\nmethod: magic", "line 2: method: unknown method 'magic'"),
        (
            "sources: [{path: a}]\nparams:\n  magic: 1",
            "line 3: params.magic: method auto has no parameter 'magic'",
        ),
        (
            "sources: [{path: a}]\nparams:\n  x: []",
            "line 2: params: x must be a list of numbers",
        ),
        ("sources: [{path: a}]\nanchor: b", "line 2: anchor: must be a position .* got 'b'"),
        ("sources: [{path: a}]\nanchor: 1", "line 2: anchor: must be a position .* got 1"),
        (
            "sources: [{path: a}]\nmissing: one",
            "line 2: missing: must be 'zero' or 'skip', got 'one'",
        ),
        ("sources: [{path: a}]\nname: a b", "line 2: name: must match .* got 'a b'"),
        ("sources: [{path: a}\nmethod: gam", "line 2: expected ',' or ']'"),
        ("sources: [{path: a}]\nmethod: gam\nmethod: mean", "line 3: duplicate key 'method'"),
        ("sources: &x [{path: a}]\nparams: *x", "line 2: aliases"),
        ("sources: !!python/name:os.system", "line 1: tags"),
        (
            "name: x\nsources: [{path: y}]\n---\nname: y\nsources: [{path: x}]",
            "line 2: sources: the merges use each other",
        ),
        ("name: x\nsources: [{path: x}]", "line 2: sources: the merges use each other: x -> x"),
        (
            "name: x\nsources: [{path: a}]\n---\nsources: [{path: a}]",
            "line 1: no other merge of the file uses this one",
        ),
        (
            "name: x\nsources: [{path: a}]\n---\nname: x\nsources: [{path: a}]",
            "line 4: name: two merges are called 'x'",
        ),
        (
            "name: x\nsources: [{path: a}]\n---\nsources:\n - path: x\n - path: q",
            "line 6: sources.1.path: .*q does not",
        ),
        ("sources: [{path: a}]\n1: 2", "1: .*"),
    ],
)
def test_what_is_wrong_has_a_line_and_a_key(folder, text, expected):
    with pytest.raises(gm.GamMergeError, match=expected) as caught:
        gm.merge_recipe(write(text), out="out")
    assert str(caught.value).startswith("recipe.yaml: ")
    assert "\n" not in str(caught.value)
    assert not Path("out").exists()


def test_an_adapter_that_cannot_be_read_has_a_line_too(folder):
    Path("b", WEIGHTS).write_bytes(b"no")
    with pytest.raises(
        gm.GamMergeError,
        match=r"recipe.yaml: line 2: sources.1.path: .*not a complete safetensors file",
    ):
        gm.merge_recipe(write("sources: [{path: a},\n {path: b}]"))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rank", "--set must be KEY=VALUE"),
        ("=1", "--set must be KEY=VALUE"),
        ("weights.q=1", "0 sources are called 'q'; expected one of a, b"),
        ("sources.7.path=a", "there is no 7 to set there"),
        ("method.x=1", "--set method.x=1: method: must be a valid string"),
        ("output.rank=[", "--set .*: line 1: "),
        (
            "output.rank=many",
            "--set output.rank=many: output.rank: must be a valid integer, got 'many'",
        ),
        ("output.size=1", "--set output.size=1: output.size: unknown key"),
        (
            "weights.a=x",
            "--set weights.a=x: sources.0.weight: weight must be a finite number, got 'x'",
        ),
    ],
)
def test_what_is_told_wrong(folder, override, expected):
    with pytest.raises(gm.GamMergeError, match=expected):
        gm.merge_recipe(write("sources: [{path: a}, {path: b}]"), overrides=[override])


def test_a_name_that_is_no_text(folder):
    with pytest.raises(
        gm.GamMergeError, match=r"recipe.yaml: line 1: name: must be a valid string"
    ):
        gm.merge_recipe(write("{name: [a], sources: [{path: a}]}"), overrides=["output.rank=1"])


def test_missing_files(folder):
    with pytest.raises(gm.GamMergeError, match=r"none.yaml: cannot be read: No such file"):
        gm.merge_recipe("none.yaml")
    Path("latin.yaml").write_bytes(b"method: \xff")
    with pytest.raises(gm.GamMergeError, match=r"latin.yaml: is not UTF-8 text"):
        gm.merge_recipe("latin.yaml")


def test_numbers_without_a_point(folder):
    recipe = gm.merge_recipe(write("sources: [{path: a, weight: 1e-3}, {path: b, weight: 3e-3}]"))
    assert recipe.report.weights == pytest.approx((0.25, 0.75))


def test_missing_modules_are_skipped_if_told(folder):
    generator = torch.Generator().manual_seed(1)
    write_adapter(folder / "d", {LAYERS[0]: random_factors(generator, 10, 8, 2, torch.float32)})
    zero = gm.merge(["a", "d"], method="mean")
    skip = gm.merge_recipe(write("sources: [{path: a}, {path: d}]\nmissing: skip\nmethod: mean"))
    alone = gm.load("a").modules[LAYERS[1]].delta()
    assert torch.allclose(zero.adapter.modules[LAYERS[1]].delta(), alone / 2, atol=1e-6)
    assert torch.allclose(skip.adapter.modules[LAYERS[1]].delta(), alone, atol=1e-6)
    with pytest.raises(gm.GamMergeError, match="missing must be 'zero' or 'skip', got 'half'"):
        gm.merge(["a", "d"], missing="half")


def test_the_schema_and_the_reader_agree(folder):
    schema = gm.recipe_schema()
    Draft202012Validator.check_schema(schema)
    valid = Draft202012Validator(schema).is_valid
    gm.merge(["a", "b"], weights=[FILTERS, OVER_DEPTH], out="out")
    assert valid(yaml.safe_load(Path("out", RECIPE).read_text()))
    for text, fits in [
        (
            "sources: [{path: a, weight: [0, 1]}]\nmethod: gam\n"
            "params: {orthonormalize: polar, scale: [1, 2]}",
            True,
        ),
        ("sources: [{path: a}]\nparams: {scale: [1, 2]}", True),
        ("sources: [{path: a}]\nparams: {orthonormalize: polar}", False),
        ("sources: [{path: a}]\nmethod: svc+ties@knots", True),
        ("sources: [{path: a}]\nparams: {scale: -1}", False),
        ("sources: [{path: a}]\nmethod: gam\nparams: {orthonormalize: other}", False),
        ("sources: [{path: a}]\nmethod: mean\nparams: {orthonormalize: polar}", False),
        ("sources: [{path: a, wieght: 1}]", False),
        ("sources: [{path: a, weight: [{filter: x}]}]", False),
        ("sources: []", False),
    ]:
        assert valid(yaml.safe_load(text)) is fits, text
