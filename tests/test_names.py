"""Modules that differ in name between adapters of one model: brought together, or refused, never halved in silence."""

import json
import re
from pathlib import Path

import pytest
import torch
from helpers import adapter, random_factors, relative, write_adapter
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import gam_merge as gm
from gam_cli._app import app

Pair = tuple[Tensor, Tensor]
TAILS = [f"layers.{i}.self_attn.{name}_proj" for i in range(2) for name in "qv"]


def factors(names: list[str], seed: int) -> dict[str, Pair]:
    generator = torch.Generator().manual_seed(seed)
    return {name: random_factors(generator, 8, 6, 2) for name in names}


def pair(first: list[str], second: list[str]) -> list[gm.Adapter]:
    return [
        adapter(factors(first, 0), source="first"),
        adapter(factors(second, 1), source="second"),
    ]


def spelled(head: str, *more: str) -> list[str]:
    return [*(head + tail for tail in TAILS), *more]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (spelled("language_model.model."), spelled("model.language_model.")),
        (spelled("model."), spelled("model.language_model.")),
        (spelled("model.language_model."), spelled("model.")),
        (spelled("model.", "lm_head"), spelled("model.language_model.", "lm_head")),
        (
            spelled("language_model.model.", "language_model.lm_head"),
            spelled("model.language_model.", "lm_head"),
        ),
        (
            spelled("model.", "visual.blocks.0.attn.qkv"),
            spelled("model.language_model.", "model.visual.blocks.0.attn.qkv"),
        ),
        (["transformer.h.0.attn.c_attn"], ["h.0.attn.c_attn"]),
        (
            ["h.0.attn.c_attn", "h.1.attn.c_attn"],
            ["gpt.h.0.attn.c_attn", "gpt.h.1.attn.c_attn"],
        ),
    ],
)
def test_prefixes_are_brought_together(first: list[str], second: list[str]) -> None:
    """The merge is that of the same adapters under one spelling, which is that of the first."""
    sources = pair(first, second)
    result = gm.merge(sources, method="mean", rank=4)
    assert set(result.adapter.modules) == set(first)
    for name, other in zip(first, second, strict=True):
        expected = (sources[0].modules[name].delta() + sources[1].modules[other].delta()) / 2
        assert relative(result.adapter.modules[name].delta(), expected) < 1e-9
    note = next(note for note in result.report.notes if note.startswith("second: "))
    assert "different names in first" in note
    assert result.report.shared == len(first)


def test_one_side_may_have_more_modules() -> None:
    """Those follow their neighbours: they are named as the first model names them."""
    first, second = spelled("model.")[:2], spelled("model.language_model.")
    result = gm.merge(pair(first, second), method="mean")
    assert set(result.adapter.modules) == set(spelled("model."))


def test_three_spellings() -> None:
    names = [spelled("model."), spelled("model.language_model."), spelled("language_model.model.")]
    sources = [adapter(factors(each, i), source=str(i)) for i, each in enumerate(names)]
    assert gm.plan(sources).modules == sorted(names[0])


def test_tensors_besides_the_factors_follow(tmp_path: Path) -> None:
    paths = []
    for name, head in (("a", "language_model.model."), ("b", "model.language_model.")):
        path = write_adapter(
            tmp_path / name, factors(spelled(head), 0), modules_to_save=["embed_tokens"], bias="all"
        )
        file = path / "adapter_model.safetensors"
        more = {
            f"base_model.model.{head}embed_tokens.weight": torch.full((4, 6), float(ord(name))),
            f"base_model.model.{head}{TAILS[0]}.bias": torch.full((8,), float(ord(name))),
        }
        save_file({**load_file(file), **more}, file)
        paths.append(path)
    gm.merge(paths, method="mean", out=tmp_path / "out")
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    stem = "base_model.model.language_model.model."
    others = {key: value for key, value in written.items() if "lora_" not in key}
    assert set(others) == {f"{stem}embed_tokens.weight", f"{stem}{TAILS[0]}.base_layer.bias"}
    assert all(bool((value == 97.5).all()) for value in others.values())


def test_experts_keep_their_wrapper(tmp_path: Path) -> None:
    """PEFT wraps the second parameter of a module: the owner is renamed along with it."""
    sources = []
    for name, head in (("a", "model."), ("b", "model.language_model.")):
        stem = f"{head}layers.0.mlp.experts"
        tensors: dict[str, Tensor] = {}
        for module in (stem, f"{stem}.base_layer"):
            tensors[f"{module}.lora_A.weight"] = torch.ones(6, 5)
            tensors[f"{module}.lora_B.weight"] = torch.ones(4, 6)
        config = {
            "r": 2,
            "lora_alpha": 2,
            "target_parameters": ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"],
        }
        sources.append(gm.from_state_dict(tensors, config, name=name))
    merged = gm.merge(sources, method="mean").adapter.modules
    assert {module.owner for module in merged.values()} == {"model.layers.0.mlp.experts"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (spelled("text_model.encoder."), spelled("vision_model.encoder.")),
        (spelled("model."), spelled("visual.")),
        (spelled("encoder."), spelled("decoder.")),
        (["layers.0.q"], ["layers.1.q"]),
        (["q"], ["x.q"]),
        # only some match: q and k against q and v
        (
            ["model.layers.0.q", "model.layers.0.k"],
            ["model.language_model.layers.0.q", "model.language_model.layers.0.v"],
        ),
    ],
)
def test_other_towers_are_not(first: list[str], second: list[str]) -> None:
    with pytest.raises(gm.GamMergeError, match="share no module") as caught:
        gm.merge(pair(first, second))
    assert sorted(first)[0] in str(caught.value)
    assert sorted(second)[0] in str(caught.value)
    assert "--missing zero" in str(caught.value)


def test_nor_are_modules_of_other_shapes() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (
        adapter({f"{head}layers.0.q": random_factors(generator, 8, n, 2)}, source=head)
        for head, n in (("model.", 6), ("model.language_model.", 5))
    )
    with pytest.raises(gm.GamMergeError, match="share no module"):
        gm.merge([first, second])


@pytest.mark.parametrize(("missing", "share"), [("zero", 0.5), ("skip", 1.0)])
def test_the_user_may_insist(missing: str, share: float) -> None:
    sources = pair(["a.0.x"], ["b.0.x"])
    result = gm.merge(sources, method="mean", missing=missing)
    for source in sources:
        ((name, module),) = source.modules.items()
        merged = result.adapter.modules[name].delta()
        assert relative(merged, share * module.delta()) < 1e-9
    assert any("only 0 of 2 modules are in all adapters" in note for note in result.report.notes)


def test_two_groups_that_share_nothing_are_refused() -> None:
    """Each adapter shares its modules with another, but no path leads from one group to the other."""
    groups = [["a.0.x"], ["a.0.x", "a.0.y"], ["b.0.x"], ["b.0.x", "b.0.y"]]
    sources = [adapter(factors(names, i), source=str(i)) for i, names in enumerate(groups)]
    with pytest.raises(gm.GamMergeError, match="0 and 2 share no module"):
        gm.plan(sources)
    bridge = adapter(factors(["a.0.x", "b.0.x"], 9), source="bridge")
    assert len(gm.plan([*sources, bridge]).modules) == 4


@pytest.mark.parametrize(("shared", "warned"), [(1, True), (2, False)])
def test_less_than_half_in_common_is_a_warning(shared: int, warned: bool) -> None:
    names = [f"a.{i}.x" for i in range(4)]
    sources = pair(names, names[:shared])
    expected = "only 1 of 4 modules are in all adapters"
    assert any(expected in note for note in gm.plan(sources).notes) is warned
    assert any(expected in note for note in gm.merge(sources).report.notes) is warned
    assert any(expected in note for note in gm.compare(sources).merge_notes) is warned
    assert gm.plan(sources).shared == gm.compare(sources).shared == shared


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two adapters on disk that share no module, a third that shares one with each, and a recipe of the two."""
    monkeypatch.chdir(tmp_path)
    for name, modules in {
        "a": ["a.0.x", "a.1.x", "a.2.x"],
        "b": ["b.0.x"],
        "c": ["a.0.x"],
    }.items():
        write_adapter(tmp_path / name, factors(modules, 0))
    (tmp_path / "merge.yaml").write_text("sources: [{path: a}, {path: b}]")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ["a", "b", "-o", "out"],
        ["a", "b", "--dry-run"],
        ["compare", "a", "b"],
        ["--recipe", "merge.yaml", "-o", "out"],
        ["--recipe", "merge.yaml", "--dry-run"],
    ],
)
def test_every_verb_says_the_same(command: list[str], apart: Path) -> None:
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "share no module: one has a.0.x, the other b.0.x" in done.stderr
    assert not (apart / "out").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["a", "b", "--missing", "zero", "-o", "out"],
        ["--recipe", "merge.yaml", "--set", "missing=zero", "-o", "out"],
    ],
)
def test_insisting_by_command(command: list[str], apart: Path) -> None:
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    assert "only 0 of 4 modules are in all adapters" in done.stdout


@pytest.mark.parametrize("command", [["-o", "out"], ["--dry-run"], ["compare"]])
def test_the_count_is_in_every_table(command: list[str], apart: Path) -> None:
    at = command.index("compare") + 1 if "compare" in command else 0
    text = CliRunner().invoke(app, [*command[:at], "a", "c", *command[at:]]).stdout
    assert re.search(r"in common +1\b", text)
    assert "only 1 of 3 modules are in all adapters" in text


def test_json_has_the_count(apart: Path) -> None:
    done = CliRunner().invoke(app, ["compare", "a", "c", "--json"])
    data = json.loads(done.stdout)
    assert data["shared"] == 1
    assert "only 1 of 3" in data["merge_notes"][0]


def test_a_count_that_is_no_news_is_not_shown(apart: Path) -> None:
    assert "in common" not in CliRunner().invoke(app, ["a", "a", "-o", "out"]).stdout


def test_the_report_in_html_says_it(apart: Path) -> None:
    gm.compare(["a", "c"]).save_html("report.html")
    text = Path("report.html").read_text()
    assert "Only 1 of 3 modules are in all adapters" in text
    assert "in common</td><td></td><td></td><td>1</td>" in text
