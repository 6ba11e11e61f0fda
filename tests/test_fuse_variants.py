"""Each kind of adapter in its base model, against the model that PEFT loads with it."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import relative
from safetensors.torch import load_file, save_file
from variants import VARIANTS, forward, load, model, quiet, save

import gam_merge as gm

PLAIN = ("conv", "mixtral")  # kinds whose files hold what the model holds, tensor by tensor
REFUSED = {
    "conv_grouped": "grouped convolution, whose delta is larger",
    "multihead_attention": "MultiheadAttention, where PEFT .* adds the delta twice",
    "t5": "embeddings that .* ties to others",  # and scales its logits where they are
}


def save_model(kind: str, path: Path) -> Path:
    built = copy.deepcopy(model(kind)).float()
    if kind in PLAIN:
        path.mkdir()
        save_file(built.state_dict(), path / "model.safetensors")
    else:
        built.save_pretrained(path)
    return path


def load_model(kind: str, path: Path) -> Any:
    built = copy.deepcopy(model(kind))
    if kind in PLAIN:
        built.load_state_dict(load_file(path / "model.safetensors"))
        return built
    return type(built).from_pretrained(path).double().eval()


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_as_peft_applies_it(name: str, tmp_path: Path) -> None:
    kind, config = VARIANTS[name]
    base = save_model(kind, tmp_path / "base")
    adapter = save(tmp_path / "adapter", kind, 0, **{"init_lora_weights": False, **config})
    if name in REFUSED:
        with pytest.raises(gm.GamMergeError, match=REFUSED[name]):
            gm.fuse(base, adapter, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    gm.fuse(base, adapter, tmp_path / "out")
    plain, expected = forward(model(kind)), forward(load(kind, adapter))
    fused = load_model(kind, tmp_path / "out")
    assert relative(plain, expected) > 1e-3
    assert relative(forward(fused) - plain, expected - plain) < 1e-5


@pytest.mark.parametrize("name", ["tied_embedding", "tied_lm_head"])
def test_tied_weights_part_only_where_they_must(name: str, tmp_path: Path) -> None:
    kind, config = VARIANTS[name]
    base = save_model(kind, tmp_path / "base")
    adapter = save(tmp_path / "adapter", kind, 0, init_lora_weights=False, **config)
    report = gm.fuse(base, adapter, tmp_path / "out")
    assert (
        report.notes[-1]
        == "lm_head.weight and model.embed_tokens.weight were one tensor and are now two"
    )
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    )
    other = save(tmp_path / "other", kind, 0, init_lora_weights=False, target_modules=["q_proj"])
    assert gm.fuse(base, other, tmp_path / "tied").notes == ()
    assert (tmp_path / "tied" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")


def test_a_parted_head_is_in_the_index(tmp_path: Path) -> None:
    kind, config = VARIANTS["tied_lm_head"]
    copy.deepcopy(model(kind)).float().save_pretrained(tmp_path / "base", max_shard_size="4KB")
    adapter = save(tmp_path / "adapter", kind, 0, init_lora_weights=False, **config)
    gm.fuse(tmp_path / "base", adapter, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    before = json.loads((tmp_path / "base" / "model.safetensors.index.json").read_text())
    embedding = model(kind).get_input_embeddings().weight.float()
    assert index["metadata"]["total_size"] == before["metadata"]["total_size"] + embedding.nbytes
    expected = forward(load(kind, adapter))
    assert relative(forward(load_model(kind, tmp_path / "out")), expected) < 1e-6


@pytest.mark.parametrize("metadata", [None, [1], {}, {"total_size": "all"}])
def test_a_parted_head_is_in_an_index_that_says_little(metadata: Any, tmp_path: Path) -> None:
    """Nor does it say where the embedding is, which is found in the file."""
    kind, config = VARIANTS["tied_lm_head"]
    copy.deepcopy(model(kind)).float().save_pretrained(tmp_path / "base", max_shard_size="4KB")
    file = tmp_path / "base" / "model.safetensors.index.json"
    places = json.loads(file.read_text())["weight_map"]
    shard = places.pop("model.embed_tokens.weight")
    places["model.norm.weight"] = shard  # the file is one of the model's still
    tensors = load_file(tmp_path / "base" / shard)
    save_file({**tensors, "model.norm.weight": torch.ones(1)}, tmp_path / "base" / shard)
    file.write_text(json.dumps({"metadata": metadata, "weight_map": places}))
    adapter = save(tmp_path / "adapter", kind, 0, init_lora_weights=False, **config)
    gm.fuse(tmp_path / "base", adapter, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index == {"metadata": metadata, "weight_map": {**places, "lm_head.weight": shard}}


def test_experts_that_are_stored_one_by_one_are_refused(tmp_path: Path) -> None:
    """As transformers stores them: its names in the file are not those in the model."""
    kind, config = VARIANTS["experts_alone"]
    with quiet():
        copy.deepcopy(model(kind)).float().save_pretrained(tmp_path / "base")
    adapter = save(tmp_path / "adapter", kind, 0, init_lora_weights=False, **config)
    with pytest.raises(
        gm.GamMergeError, match=r"has no tensor model\.layers\.0\.mlp\.experts\.gate_up_proj"
    ):
        gm.fuse(tmp_path / "base", adapter, tmp_path / "out")


@pytest.mark.parametrize("transposed", [False, True])
def test_square_experts(transposed: bool, tmp_path: Path) -> None:
    """(experts, out, in), unless the model is known to keep them the other way."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3 * 2, 8, generator=generator), torch.randn(8, 2 * 3, generator=generator)
    config = {
        "base_model_name_or_path": "base",
        "r": 2,
        "lora_alpha": 2,
        "target_parameters": ["experts.down_proj"],
    }
    prefix = "base_model.model.layers.0.experts.lora_"
    adapter = gm.from_state_dict({f"{prefix}A.weight": a, f"{prefix}B.weight": b}, config)
    (tmp_path / "base").mkdir()
    save_file(
        {"layers.0.experts.down_proj": torch.zeros(3, 8, 8)},
        tmp_path / "base" / "model.safetensors",
    )
    (tmp_path / "base" / "config.json").write_text(
        json.dumps({"model_type": "gpt_oss" if transposed else "other"})
    )
    gm.fuse(tmp_path / "base", adapter, tmp_path / "out")
    (value,) = load_file(tmp_path / "out" / "model.safetensors").values()
    delta = torch.einsum("ore,eri->eoi", b.reshape(8, 2, 3), a.reshape(3, 2, 8))
    assert relative(value, delta.mT if transposed else delta) < 1e-6
