"""The model card: read back by huggingface_hub and by a Markdown parser, with names from hostile files in it."""

import ast
import json
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
import yaml
from helpers import random_factors, write_adapter
from hub_server import Hub
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import gam_merge as gm
from gam_merge._write.card import code

WEIGHTS = "adapter_model.safetensors"


def adapter(
    path: Path, *, license: str | None = None, module: str = "layers.0.q", **config: object
) -> Path:
    factors = {module: random_factors(torch.Generator().manual_seed(len(path.name)), 8, 6, 2)}
    write_adapter(
        path, factors, **{"base_model_name_or_path": "org/base", "task_type": "CAUSAL_LM", **config}
    )
    if license:
        (path / "README.md").write_text(
            f"---\nlicense: {license}\n---\n\n# One\n", encoding="utf-8"
        )
    return path


def card(*sources: Path, **settings: object) -> ModelCard:
    out = sources[0].parent / "out"
    gm.merge(sources, out=out, force=True, **settings)
    return ModelCard.load(out / "README.md")


def tokens(card: ModelCard, kind: str) -> list:
    """Tokens of one kind of the Markdown, as the Hub's renderer would see them: with tables, HTML and bare links."""
    parser = MarkdownIt("commonmark", {"html": True, "linkify": False}).enable("table")
    flat = [t for top in parser.parse(card.text) for t in (top, *(top.children or []))]
    return [token for token in flat if token.type == kind]


def test_front_matter(tmp_path: Path, hub: Hub):
    result = card(
        adapter(tmp_path / "code", license="mit"), adapter(tmp_path / "maths", license="mit")
    )
    assert result.data.to_dict() == {
        "base_model": ["org/base"],
        "library_name": "peft",
        "license": "mit",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "peft", "merge", "gam-merge"],
        "base_model_relation": "adapter",
        "merge_method": "consensus",
        "merge_sources": ["code", "maths"],
    }
    result.validate()  # by the server on loopback, which refuses a base_model that is no repository


@pytest.mark.parametrize(
    "base",
    [
        "/data/llama",
        "./llama",
        "llama",
        "local/llama",
        "a/b/c",
        "x'\n---\nlicense: mit",
        "org/base@v1",
    ],
)
def test_base_model_is_never_a_path(tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "local" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    result = card(adapter(tmp_path / "a", base_model_name_or_path=base))
    assert result.data.base_model is None
    assert "base_model_relation" not in result.data.to_dict()
    assert result.data.license is None


@pytest.mark.parametrize(
    ("licenses", "expected"),
    [
        (["mit", "mit"], "mit"),
        (["mit", "apache-2.0"], None),
        (["mit", None], None),
        (["other", "other"], None),
        (["[mit]", "[mit]"], None),
        (["'a b'", "'a b'"], None),
        (["{", "{"], None),
    ],
)
def test_license_if_all_agree(tmp_path: Path, licenses: list[str | None], expected: str | None):
    sources = [adapter(tmp_path / f"{i}", license=text) for i, text in enumerate(licenses)]
    assert card(*sources).data.license == expected


def test_license_of_merges_in_memory(tmp_path: Path):
    a, b = (adapter(tmp_path / name, license="mit") for name in "ab")
    gm.merge([gm.merge([a, b]).adapter, a], out=tmp_path / "out")
    assert ModelCard.load(tmp_path / "out" / "README.md").data.license == "mit"


@pytest.mark.parametrize("task", ["SEQ_2_SEQ_LM", None, "<b>", 3])
def test_tasks_without_a_tag(tmp_path: Path, task: object):
    assert card(adapter(tmp_path / "a", task_type=task)).data.pipeline_tag is None


def test_body(tmp_path: Path):
    result = card(
        adapter(tmp_path / "code", lora_alpha=4), adapter(tmp_path / "maths"), weights=[1, [0.5, 1]]
    )
    rows = [line for line in result.text.splitlines() if line.startswith("| `")]
    assert [[cell.strip() for cell in row.split("|")[1:6]] for row in rows] == [
        ["`code`", "", "1", "2", "4"],
        ["`maths`", "", "by module", "2", "2"],
    ]
    python = [token.content for token in tokens(result, "fence") if token.info == "python"]
    assert len(python) == 2
    for snippet in python:
        ast.parse(snippet)
        assert '"org/base"' in snippet
    (recipe,) = (
        yaml.safe_load(token.content) for token in tokens(result, "fence") if token.info == "yaml"
    )
    written = yaml.safe_load((tmp_path / "out" / "gam_merge_recipe.yaml").read_text())
    assert [source.pop("path") for source in recipe["sources"]] == ["code", "maths"]
    assert [source.pop("path") for source in written["sources"]] == ["../code", "../maths"]
    assert recipe == written


def test_parameters_away_from_their_defaults_are_named(tmp_path: Path):
    sources = adapter(tmp_path / "code"), adapter(tmp_path / "maths")
    assert "`gam`: align" in card(*sources, method="gam").text
    chosen = card(*sources, method="gam", params={"anchor": "none"}).text
    assert "`gam` with `anchor=none`: align" in chosen
    assert "anchor=none: this project" in chosen


def test_sources_on_the_hub_are_linked(tmp_path: Path, hub: Hub):
    local = adapter(tmp_path / "a")
    files = {
        f"sub/{name}": (local / name).read_bytes() for name in (WEIGHTS, "adapter_config.json")
    }
    sha = hub.add("org/one", files)
    gm.merge(["org/one:sub"], out=tmp_path / "out")
    result = ModelCard.load(tmp_path / "out" / "README.md")
    assert (
        f"| [`org/one:sub`](https://huggingface.co/org/one/tree/{sha}/sub) | `{sha[:12]}` |"
        in result.text
    )
    assert result.data.merge_sources == [f"org/one@{sha}:sub"]


HOSTILE = [
    "<script>alert(1)</script>",
    "x](https://evil.example)",
    "![x](https://evil.example/x.png)",
    "`` ` ```",
    "a|b|c",
    "\\`<b>",
    "<!--",
    "--> &lt;",
    "$x$ **b** _i_ # h",
    " ",
    "`",
]


@pytest.mark.parametrize("name", [*HOSTILE, "line\nbreak\n\n# Title\n```\n", "esc\x1b[31m"])
def test_hostile_names_stay_names(tmp_path: Path, name: str):
    source = adapter(
        tmp_path / name, module=f"layers.{name.splitlines()[0]}.q", base_model_name_or_path=name
    )
    gm.merge(
        [source, gm.Adapter(name, gm.load(source).modules)], out=tmp_path / "out", method="gam"
    )
    result = ModelCard.load(tmp_path / "out" / "README.md")
    html = tokens(result, "html_inline") + tokens(result, "html_block")
    assert [token.content.strip() for token in html] == ["<!-- figure -->"]
    assert not tokens(result, "image")
    links = {urlsplit(token.attrGet("href")).hostname for token in tokens(result, "link_open")}
    assert links <= {"huggingface.co", "arxiv.org"}
    assert [t.content for t in tokens(result, "inline") if t.content.startswith("Merged")] == [
        "Merged LoRA adapter"
    ]
    assert len(tokens(result, "heading_open")) == 6
    assert len(tokens(result, "tr_open")) == 3
    cells = [t.content for t in tokens(result, "inline") if t.content.endswith(" %")]
    assert len(cells) == 2  # the last cell of each row is still what it was: no name split a cell
    assert result.data.base_model is None


@given(st.text())
def test_code_is_one_code_span(text: str):
    inline = MarkdownIt("commonmark").parseInline(f"before {code(text)} after")[0].children
    assert [token.type for token in inline] == ["text", "code_inline", "text"]
    assert (inline[0].content, inline[2].content) == ("before ", " after")


def test_one_card_for_the_same_merge(tmp_path: Path):
    a = adapter(tmp_path / "a")
    gm.merge([a], out=tmp_path / "one")
    shutil.copytree(a, tmp_path / "other" / "a")
    gm.merge([tmp_path / "other" / "a"], out=tmp_path / "other" / "two")
    assert (tmp_path / "one" / "README.md").read_bytes() == (
        tmp_path / "other" / "two" / "README.md"
    ).read_bytes()


def test_warnings_and_notes_are_told(tmp_path: Path):
    a, b = (adapter(tmp_path / name) for name in ("a", "bb"))
    report = gm.merge([a, b], out=tmp_path / "out").report
    text = ModelCard.load(tmp_path / "out" / "README.md").text
    for warning in report.warnings:
        assert warning in text
    assert (
        json.loads((tmp_path / "out" / "merge_report.json").read_text())["energy_kept"]
        == report.energy_kept
    )
