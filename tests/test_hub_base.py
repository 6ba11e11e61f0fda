"""The base model of a DoRA by Hub id, over real HTTP: what is fetched, and that it serves like a directory."""

import copy
import json
from pathlib import Path

import pytest
import torch
from hub_server import Fault, Hub
from huggingface_hub import constants
from variants import base, model, save

import gam_merge as gm
from gam_merge._common.tensors import read
from gam_merge._models.base import resolve_base
from gam_merge._write.adapter import RECIPE_NAME

INDEX, WEIGHTS, CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"


@pytest.fixture(scope="module")
def dora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the last layer alone."""
    config = {
        "target_modules": ["q_proj", "v_proj"],
        "layers_to_transform": [1],
        "init_lora_weights": False,
    }
    return save(tmp_path_factory.mktemp("dora") / "a", "llama", 0, use_dora=True, **config)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the base, its weights in many."""
    folder = tmp_path_factory.mktemp("base")
    copy.deepcopy(model("llama")).float().save_pretrained(folder, max_shard_size="4KB")
    return {path.name: path.read_bytes() for path in folder.iterdir()} | {
        "tokenizer.json": b"{}",
        "README.md": b"",
    }


def merged(dora: Path, base_model: str | Path, out: Path) -> bytes:
    gm.merge([dora], base_model=base_model, out=out)
    return (out / "adapter_model.safetensors").read_bytes()


def test_only_the_files_that_hold_its_modules(
    hub: Hub, dora: Path, sharded: dict[str, bytes], tmp_path: Path
) -> None:
    sha = hub.add("org/base", sharded)
    assert merged(dora, "org/base", tmp_path / "a") == merged(dora, base("llama"), tmp_path / "b")
    places = json.loads(sharded[INDEX])["weight_map"]
    needed = {places[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qv"}
    assert len(set(places.values())) > 4 > len(needed)
    fetched = {line.rpartition("/")[2] for line, _ in hub.requests if "/resolve/" in line}
    assert fetched == {INDEX, CONFIG, *needed}
    files = f"org/base@{sha}: fetched {len(needed)} of {len(set(places.values()))} weight files"
    assert any(note.startswith(files) for note in gm.plan([dora], base_model="org/base").notes)


def test_a_recipe_names_its_commit(
    hub: Hub, dora: Path, sharded: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.add("org/base", sharded)
    first = merged(dora, "org/base", tmp_path / "a")
    assert f"org/base@{sha}" in (tmp_path / "a" / RECIPE_NAME).read_text()
    hub.repos["org/base"].commit("main", dict.fromkeys(sharded, b"other"))
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    gm.merge_recipe(tmp_path / "a" / RECIPE_NAME, out=tmp_path / "b")
    assert (tmp_path / "b" / "adapter_model.safetensors").read_bytes() == first
    assert not hub.requests


def test_a_branch_that_moves_meanwhile(hub: Hub, sharded: dict[str, bytes]) -> None:
    """Every file is of the commit that the index was of."""
    hub.add("org/base", sharded)
    found = resolve_base("org/base")
    hub.repos["org/base"].commit("main", dict.fromkeys(sharded, b"other"))
    for key, value in model("llama").state_dict().items():
        assert torch.equal(read(found.tensors[key]), value.float())


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("org/base", WEIGHTS),
        ("org/base:model.safetensors", WEIGHTS),
        ("org/base:unet", "unet/diffusion_pytorch_model.safetensors"),
        ("org/base:x/other.safetensors", "x/other.safetensors"),
    ],
)
def test_one_file(name: str, there: str, hub: Hub, dora: Path, tmp_path: Path) -> None:
    hub.add("org/base", {there: Path(base("llama")).read_bytes()})
    assert merged(dora, name, tmp_path / "a") == merged(dora, base("llama"), tmp_path / "b")


def test_the_base_of_what_is_no_dora_is_not_fetched(hub: Hub, tmp_path: Path) -> None:
    gm.merge([save(tmp_path / "a", "llama", 0, target_modules=["q_proj"])], base_model="org/base")
    assert not hub.requests


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (None, "no such repository"),
        ({"pytorch_model.bin": b""}, "does not hold a model in safetensors"),
        (
            {INDEX: b'{"weight_map": {"a.weight": "../up.safetensors"}}'},
            "does not say which tensor",
        ),
        (
            {INDEX: b'{"weight_map": {"a.weight": "x.safetensors"}}'},
            r"has no tensor model\.layers\.1",
        ),
        ({WEIGHTS: b"not safetensors"}, r"model\.safetensors: "),
    ],
)
def test_each_failure_is_one_line(
    files: dict[str, bytes] | None, expected: str, hub: Hub, dora: Path
) -> None:
    if files is not None:
        hub.add("org/base", files)
    with pytest.raises(gm.GamMergeError, match=expected) as caught:
        gm.plan([dora], base_model="org/base")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda shard, other: other, r"lacks tensor model\.layers\.1"),
        (lambda shard, other: None, "org/base.*: there is no such file"),
    ],
)
def test_a_file_that_is_not_what_the_index_says(
    change, expected: str, hub: Hub, dora: Path, sharded: dict[str, bytes]
) -> None:
    places = json.loads(sharded[INDEX])["weight_map"]
    name = places["model.layers.1.self_attn.q_proj.weight"]
    other = next(place for place in places.values() if place != name)
    changed = {**sharded, name: change(sharded[name], sharded[other])}
    hub.add("org/base", {key: value for key, value in changed.items() if value is not None})
    with pytest.raises(gm.GamMergeError, match=expected):
        gm.plan([dora], base_model="org/base")


def test_a_connection_that_drops(hub: Hub, dora: Path, sharded: dict[str, bytes]) -> None:
    hub.add("org/base", sharded)
    hub.faults.append(Fault("GET /cdn/"))
    with pytest.raises(gm.GamMergeError, match=r"^org/base.*connection to .* failed"):
        gm.plan([dora], base_model="org/base")
    hub.faults.clear()
    gm.plan([dora], base_model="org/base")
