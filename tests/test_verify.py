"""``verify``: whatever is changed after a merge is named, and nothing else is."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import random_factors, write_adapter
from hub_server import TOKEN, Hub
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from terminal import run

import gam_merge as gm

WEIGHTS, CONFIG, RECIPE, CARD = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "gam_merge_recipe.yaml",
    "README.md",
)
METADATA = "metadata of the weights"
SOURCES = {"../a", "config of ../a", "../b", "config of ../b"}
ALL = {WEIGHTS, CONFIG, METADATA, CARD, *SOURCES}

pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"
)  # of huggingface_hub's uploads


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Adapters a, b, c and the merge of the first two, in the working directory."""
    generator = torch.Generator().manual_seed(0)
    for name in "abc":
        factors = {
            f"layers.{i}.q": random_factors(generator, 10, 8, 2, torch.float32) for i in range(3)
        }
        write_adapter(tmp_path / name, factors, base_model_name_or_path="/models/llama")
    monkeypatch.chdir(tmp_path)
    gm.merge(["a", "b"], method="mean", out="out")
    return tmp_path


def failed(found: gm.Verification) -> dict[str, str]:
    return {check.name: check.state for check in found.failed}


def edit(file: str, old: str, new: str) -> None:
    text = Path(file).read_text()
    assert re.search(old, text)
    Path(file).write_text(re.sub(old, new, text))


def flip(file: str) -> None:
    data = bytearray(Path(file).read_bytes())
    data[-1] ^= 1
    Path(file).write_bytes(data)


def other_metadata(**changes: str) -> None:
    with safe_open(f"out/{WEIGHTS}", "pt") as file:
        metadata = file.metadata()
    save_file(load_file(f"out/{WEIGHTS}"), f"out/{WEIGHTS}", {**metadata, **changes})


def test_a_merge_holds(folder):
    found = gm.verify("out")
    assert found.holds
    assert {check.name: check.state for check in found.checks} == dict.fromkeys(ALL, "holds")


DAMAGES: dict[str, tuple[Callable[[], object], dict[str, str]]] = {
    "tensor": (lambda: flip(f"out/{WEIGHTS}"), {WEIGHTS: "differs"}),
    "torn": (
        lambda: Path("out", WEIGHTS).write_bytes(b"torn"),
        {WEIGHTS: "differs", METADATA: "missing"},
    ),
    "no_weights": (
        lambda: Path("out", WEIGHTS).unlink(),
        {WEIGHTS: "missing", METADATA: "missing"},
    ),
    "config": (
        lambda: edit(f"out/{CONFIG}", '"lora_alpha": 2', '"lora_alpha": 4'),
        {CONFIG: "differs"},
    ),
    "no_config": (lambda: Path("out", CONFIG).unlink(), {CONFIG: "missing"}),
    "source": (lambda: shutil.copy(f"c/{WEIGHTS}", f"b/{WEIGHTS}"), {"../b": "differs"}),
    "config_of_source": (
        lambda: edit(f"b/{CONFIG}", '"lora_alpha": 2', '"lora_alpha": 2000'),
        {"config of ../b": "differs"},
    ),
    "no_config_of_source": (
        lambda: Path("b", CONFIG).unlink(),
        {"config of ../b": "missing"},
    ),
    "no_source": (
        lambda: shutil.rmtree("a"),
        {"../a": "missing", "config of ../a": "missing"},
    ),
    "method": (
        lambda: edit(f"out/{RECIPE}", "method: mean", "method: sum"),
        {METADATA: "differs", CARD: "differs"},
    ),
    "weight": (
        lambda: edit(f"out/{RECIPE}", r"weight: 1(\.0)?\n", "weight: 2\n"),
        {CARD: "differs"},
    ),
    "sha256_of_source": (
        lambda: edit(
            f"out/{RECIPE}", r"(path: ../b(\n.*)*?\n  sha256: )\w{64}", r"\g<1>" + 64 * "a"
        ),
        {METADATA: "differs", CARD: "differs", "../b": "differs"},
    ),
    "sha256_of_output": (
        lambda: edit(f"out/{RECIPE}", r"(safetensors: )\w{64}", r"\g<1>" + 64 * "a"),
        {WEIGHTS: "differs", CARD: "differs"},
    ),
    "card": (lambda: edit(f"out/{CARD}", "method: mean", "method: sum"), {CARD: "differs"}),
    "card_without_a_recipe": (lambda: Path("out", CARD).write_text("# Mine"), {}),
    "card_with_other_words": (lambda: edit(f"out/{CARD}", "# Merged LoRA adapter", "# Mine"), {}),
    "no_card": (lambda: Path("out", CARD).unlink(), {CARD: "missing"}),
    "metadata": (
        lambda: other_metadata(**{"gam_merge.method": "sum"}),
        {WEIGHTS: "differs", METADATA: "differs"},
    ),
    "metadata_not_json": (
        lambda: other_metadata(**{"gam_merge.sources": "[" * 100_000}),
        {WEIGHTS: "differs", METADATA: "differs"},
    ),
    "written_by_others": (
        lambda: save_file(load_file(f"out/{WEIGHTS}"), f"out/{WEIGHTS}", {}),
        {WEIGHTS: "differs"},
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_was_changed_is_named_and_nothing_else(folder, name):
    change, expected = DAMAGES[name]
    change()
    assert failed(gm.verify("out")) == expected
    assert failed(gm.verify("out", sources=False)) == {
        k: v for k, v in expected.items() if k not in SOURCES
    }


def test_what_differs_is_told(folder):
    edit(f"out/{RECIPE}", "method: mean", "method: sum")
    notes = {check.name: check.note for check in gm.verify("out").failed}
    assert notes[METADATA] == "method is 'mean' there and 'sum' in the recipe"


def test_the_same_merge_again(folder):
    assert gm.verify("out", rerun=True).holds
    edit(f"out/{RECIPE}", r"(safetensors: )\w{64}", r"\g<1>" + 64 * "a")
    assert failed(gm.verify("out", rerun=True))[f"{WEIGHTS} once more"] == "differs"
    flip(f"a/{WEIGHTS}")
    again = gm.verify("out", rerun=True).failed[-1]
    assert "has changed since its sha256" in again.note


def test_merges_of_merges_and_of_what_was_in_memory(folder):
    first = gm.merge(["a", "b"], weights=[1, 3])
    gm.merge([first.adapter, "c"], out="nested")
    assert gm.verify("nested", rerun=True).holds
    flip(f"a/{WEIGHTS}")
    assert failed(gm.verify("nested")) == {"../a": "differs"}
    gm.merge(
        [gm.Adapter("live", gm.load("c").modules, "base"), "c"],
        allow_base_mismatch=True,
        out="live",
    )
    found = gm.verify("live")
    assert found.holds
    states = [check.state for check in found.checks if check.kind == "source"]
    assert states == ["unknown", "holds", "holds"]


def test_on_the_hub_and_back(hub: Hub, folder, monkeypatch):
    """A source at its commit; and a pushed merge, whose config no longer has the path of its base model."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    files = [{p.name: p.read_bytes() for p in Path(name).iterdir()} for name in "ac"]
    hub.add("org/c", files[1])
    commits = [hub.add("org/a", files[0]), hub.repos["org/a"].commit("main", files[1])]
    gm.merge([f"org/a@{commits[0]}", "b"], out="from-hub")
    assert gm.verify("from-hub").holds
    edit(f"from-hub/{RECIPE}", commits[0], commits[1])
    assert failed(gm.verify("from-hub")) == {METADATA: "differs", f"org/a@{commits[1]}": "differs"}
    gm.push("out", "me/merged")
    back = gm.load("me/merged").file.parent
    for name in (RECIPE, CARD):
        (back / name).write_bytes(hub.files("me/merged")[name])
    assert json.loads((back / CONFIG).read_text())["base_model_name_or_path"] == "llama"
    assert gm.verify(back, sources=False).holds
    assert failed(gm.verify(back)) == dict.fromkeys(
        ("a", "config of a", "b", "config of b"), "missing"
    )


def test_what_cannot_be_verified(folder):
    with pytest.raises(gm.GamMergeError, match=f"a/{RECIPE}: cannot be read: No such file"):
        gm.verify("a")
    Path("out", RECIPE).write_text("")
    with pytest.raises(gm.GamMergeError, match="holds no merge"):
        gm.verify("out")


def test_a_device_is_no_source(folder):
    """A stranger's recipe may name anything; what never ends is not read."""
    edit(f"out/{RECIPE}", "path: ../b", "path: /dev/zero")
    assert failed(gm.verify("out"))["/dev/zero"] == "missing"


@pytest.mark.parametrize(
    "text", ["```yaml\n", "````yaml\n```\n", "```yaml\nmethod: mean\n", "`" * 7 + "\n"]
)
def test_a_card_of_open_fences_takes_linear_time(folder, text):
    """A card may have 32 MB; with one search per opened fence, 100 kB took 5 s."""
    Path("out", CARD).write_text(text * (4_000_000 // len(text)))
    start = time.perf_counter()
    checks = {check.name: check.state for check in gm.verify("out", sources=False).checks}
    assert time.perf_counter() - start < 10
    assert checks[CARD] == "unknown"


def test_the_recipe_of_a_card_ends_with_its_own_fence(folder):
    card = Path("out", CARD)
    card.write_text(
        card.read_text().replace("```yaml\n", "````yaml\n").replace("\n```\n", "\n````\n")
    )
    assert gm.verify("out").holds
    card.write_text("```yaml\nmethod: sum\nsources: [{path: a}]\n```\n" + card.read_text())
    assert failed(gm.verify("out")) == {CARD: "differs"}


def test_the_command(folder):
    done = run(["verify", "out"], folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "verify: out holds"
    flip(f"out/{WEIGHTS}")
    shutil.rmtree("a")
    done = run(["verify", "out"], folder)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[0] == "verify: out does not hold: 3 of 8 checks failed"
    assert re.search(rf"^{WEIGHTS} +differs", done.stdout, re.MULTILINE)
    done = run(["verify", "out", "--json", "--no-sources", "--rerun"], folder)
    assert done.returncode == 1
    data = json.loads(done.stdout)
    assert not data["holds"]
    assert {check["name"]: check["state"] for check in data["checks"]}[WEIGHTS] == "differs"
    assert run(["verify", "nowhere"], folder).stderr.startswith(
        f"error: nowhere/{RECIPE}: cannot be read"
    )
