"""Tensors that are no factors: averaged over the adapters that have them, refused by name, never lost."""

from pathlib import Path

import pytest
import torch
from helpers import write_adapter
from safetensors.torch import load_file, save_file
from torch import Tensor

import gam_merge as gm
from gam_cli._tables import of_merge, of_plan
from gam_merge._common.tensors import read as read_tensor
from gam_merge._state_dict import from_state_dict

FACTORS = {"layers.0.q": (torch.ones(4, 2), torch.ones(2, 6))}
PREFIX = "base_model.model."
TOKENS = "embed.token_adapter.trainable_tokens_delta"


def write(
    path: Path,
    extras: dict[str, Tensor],
    *,
    factors: dict[str, tuple[Tensor, Tensor]] = FACTORS,
    **config: object,
) -> Path:
    write_adapter(path, factors, **config)
    file = path / "adapter_model.safetensors"
    save_file({**load_file(file), **{PREFIX + name: value for name, value in extras.items()}}, file)
    return path


def read(path: Path) -> dict[str, Tensor]:
    tensors = load_file(path / "adapter_model.safetensors")
    return {
        name.removeprefix(PREFIX): value for name, value in tensors.items() if ".lora_A" not in name
    }


def test_whole_modules_are_averaged_over_those_that_have_them(tmp_path: Path) -> None:
    saved = {"modules_to_save": ["score"]}
    a = write(tmp_path / "a", {"score.weight": torch.full((3, 2), 1.0)}, **saved)
    b = write(tmp_path / "b", {"score.weight": torch.full((3, 2), 4.0)}, **saved)
    c = write(tmp_path / "c", {})
    result = gm.merge([a, b, c], weights=[1, 2, 5], method="mean", out=tmp_path / "out")
    assert torch.allclose(read(tmp_path / "out")["score.weight"], torch.full((3, 2), 3.0))
    assert result.adapter.config["modules_to_save"] == ["score"]
    assert result.report.extras == {"modules_to_save": 1}
    assert any("score.weight (in 2 of 3)" in note for note in result.report.notes)


def test_the_command_counts_each_kind(tmp_path: Path) -> None:
    extras = {
        "score.weight": torch.ones(3, 2),
        "score.bias": torch.ones(3),
        "norm.bias": torch.ones(6),
    }
    a = write(tmp_path / "a", extras, modules_to_save=["score"], bias="all")
    line = "other tensors: 1 bias, 2 modules_to_save"
    assert line in list(of_plan(gm.plan([a]), verbose=False))
    assert line in list(of_merge(gm.merge([a]), 0.1, verbose=False, explain=False))


@pytest.mark.parametrize(
    ("method", "missing", "expected"),
    [("mean", "zero", 0.4), ("mean", "skip", 1.0), ("sum", "zero", 2.0), ("sum", "skip", 2.0)],
)
def test_a_missing_lora_bias(method: str, missing: str, expected: float, tmp_path: Path) -> None:
    """lora_bias is added to the base, so zero stands for an adapter without one. Its scale is that of the delta."""
    a = write(
        tmp_path / "a",
        {"layers.0.q.lora_B.bias": torch.full((4,), 0.25)},
        lora_bias=True,
        lora_alpha=8,
    )
    b = write(tmp_path / "b", {})
    result = gm.merge([a, b], weights=[2, 3], method=method, missing=missing, out=tmp_path / "out")
    assert torch.allclose(
        read(tmp_path / "out")["layers.0.q.lora_B.bias"], torch.full((4,), expected)
    )
    assert result.adapter.config["lora_bias"] is True
    assert not result.report.notes


@pytest.mark.parametrize(
    ("name", "share", "config"),
    [
        ("layers.0.q.base_layer.bias", 0.5, {"bias": "all"}),
        ("layers.1.q.base_layer.bias", 0.75, {"bias": "all"}),
        ("layers.0.q.lora_B.bias", 0.5, {"lora_bias": True}),
        ("layers.1.q.lora_B.bias", 0.75, {"lora_bias": True}),
        ("layers.1.norm.bias", 0.625, {"bias": "all"}),
        ("layers.1.score.weight", 0.625, {"modules_to_save": ["score"]}),
    ],
)
def test_weights_that_differ_by_module(
    name: str, share: float, config: dict[str, object], tmp_path: Path
) -> None:
    """What belongs to an adapted module has its weights; anything else their average over the modules."""
    factors = {f"layers.{i}.q": (torch.ones(4, 2), torch.ones(2, 6)) for i in range(2)}
    a, b = (
        write(tmp_path / f"{x}", {name: torch.full((4,), x)}, factors=factors, **config)
        for x in (1.0, 0.0)
    )
    gm.merge([a, b], weights=[[1, 3], 1], method="mean", out=tmp_path / "out")
    assert torch.equal(read(tmp_path / "out")[name], torch.full((4,), share))


def test_every_module_has_a_bias_if_one_has(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {"layers.0.q.lora_B.bias": torch.ones(4)}, lora_bias=True)
    b = write_adapter(tmp_path / "b", {"layers.0.v": FACTORS["layers.0.q"]})
    gm.merge([a, b], method="mean", missing="zero", out=tmp_path / "out")
    assert torch.equal(read(tmp_path / "out")["layers.0.v.lora_B.bias"], torch.zeros(4))


@pytest.mark.parametrize("form", ["grouped", "embedding", "experts"])
def test_what_else_has_a_lora_bias(form: str) -> None:
    """A convolution has one of all its groups; PEFT has none where there is no linear layer."""
    config = {"r": 2, "lora_alpha": 2, "target_parameters": ["w.up"] if form == "experts" else None}
    a, b = {
        "grouped": ((2, 3, 1), (8, 1, 1)),
        "embedding": ((2, 6), (4, 2)),
        "experts": ((6, 6), (4, 6)),
    }[form]
    keys = [f"w.lora_embedding_{x}" if form == "embedding" else f"w.lora_{x}.weight" for x in "AB"]
    other = from_state_dict({keys[0]: torch.ones(a), keys[1]: torch.ones(b)}, config)
    linear = {
        "q.lora_A.weight": torch.ones(2, 6),
        "q.lora_B.weight": torch.ones(4, 2),
        "q.lora_B.bias": torch.ones(4),
    }
    biased = from_state_dict(linear, {"r": 2, "lora_alpha": 2, "lora_bias": True})
    if form == "grouped":
        merged = gm.merge([other, biased], missing="zero").adapter
        assert read_tensor(merged.extras["w.lora_B.bias"].tensor).shape == (8,)
    else:
        with pytest.raises(gm.GamMergeError, match="lora_bias needs linear layers, but w is"):
            gm.plan([other, biased], missing="zero")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("all", "lora_only", "all"),
        ("lora_only", "lora_only", "lora_only"),
        ("lora_only", "none", "lora_only"),
    ],
)
def test_which_biases_peft_is_told_of(
    first: str, second: str, expected: str, tmp_path: Path
) -> None:
    a = write(tmp_path / "a", {"layers.0.q.base_layer.bias": torch.ones(4)}, bias=first)
    b = write(tmp_path / "b", {}, bias=second)
    assert gm.merge([b, a]).adapter.config["bias"] == expected


def test_a_parameter_that_is_a_bias_in_one_and_of_a_module_in_another(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {"score.bias": torch.ones(3)}, bias="all")
    b = write(
        tmp_path / "b",
        {"score.bias": torch.zeros(3), "score.weight": torch.ones(3, 2)},
        modules_to_save=["score"],
    )
    assert gm.merge([a, b]).report.extras == {"modules_to_save": 2}


@pytest.mark.parametrize(("asked", "expected"), [(None, torch.float32), ("fp16", torch.float16)])
def test_dtypes(asked: str | None, expected: torch.dtype, tmp_path: Path) -> None:
    """The narrowest that holds both, or what the user asks for."""
    config = {"modules_to_save": ["score"]}
    a = write(tmp_path / "a", {"score.weight": torch.ones(3, 2, dtype=torch.bfloat16)}, **config)
    b = write(tmp_path / "b", {"score.weight": torch.ones(3, 2)}, **config)
    gm.merge([a, b], dtype=asked, out=tmp_path / "out")
    assert read(tmp_path / "out")["score.weight"].dtype == expected


def test_a_bias_moves_under_the_base_layer_where_its_module_is_adapted(tmp_path: Path) -> None:
    a = write(
        tmp_path / "a",
        {"layers.0.q.base_layer.bias": torch.ones(4), "norm.bias": torch.ones(6)},
        bias="all",
    )
    b = write_adapter(tmp_path / "b", {"layers.0.v": FACTORS["layers.0.q"]}, bias="all")
    file = b / "adapter_model.safetensors"
    save_file({**load_file(file), PREFIX + "layers.0.q.bias": torch.full((4,), 3.0)}, file)
    gm.merge([a, b], missing="zero", out=tmp_path / "out")
    tensors = read(tmp_path / "out")
    assert torch.equal(tensors["layers.0.q.base_layer.bias"], torch.full((4,), 2.0))
    assert torch.equal(tensors["norm.bias"], torch.ones(6))


@pytest.mark.parametrize("name", ["layers.0.q.base_layer.weight", "score.original_module.weight"])
def test_copies_of_the_base_are_left_out_and_named(name: str, tmp_path: Path) -> None:
    weight = {name: torch.ones(4, 6)}
    result = gm.merge(
        [write(tmp_path / "a", weight), write(tmp_path / "b", weight)], out=tmp_path / "out"
    )
    assert set(read(tmp_path / "out")) == {"layers.0.q.lora_B.weight"}
    assert any(name in note for note in result.report.notes)
    other = write(tmp_path / "c", {name: torch.ones(4, 6).index_fill(0, torch.tensor(3), 2.0)})
    with pytest.raises(gm.GamMergeError, match=f"{name}.*differs"):
        gm.merge([tmp_path / "a", tmp_path / "b", other], out=tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("first", "second", "named"),
    [
        ({"score.weight": torch.ones(3, 2)}, {"score.weight": torch.ones(2, 2)}, "score.weight"),
        (
            {"score.weight": torch.ones(3, 2)},
            {"score.weight": torch.full((3, 2), torch.nan)},
            "score.weight has NaN",
        ),
        ({"layers.0.q.weight": torch.ones(4, 6)}, {}, "layers.0.q"),
        ({"surprise": torch.ones(3)}, {}, "surprise"),
        (
            {"layers.0.q.token_adapter.trainable_tokens_delta": torch.ones(2, 6)},
            {},
            r"layers\.0\.q has LoRA factors",
        ),
        ({TOKENS: torch.ones(2, 6), f"{TOKENS}.default": torch.zeros(2, 6)}, {}, "twice"),
        ({"norm.bias": torch.ones(6)}, {}, r"norm\.bias is not part"),
        ({"layers.0.q.lora_A.other.weight": torch.ones(2, 6)}, {}, "twice"),
    ],
)
def test_refused_by_name(
    first: dict[str, Tensor], second: dict[str, Tensor], named: str, tmp_path: Path
) -> None:
    paths: list[Path] = []
    for x, extras in (("a", first), ("b", second)):
        saved = [name for name in ("score", "q") if any(f"{name}." in key for key in extras)]
        paths.append(write(tmp_path / x, extras, modules_to_save=saved, bias="none"))
    a, b = paths
    with pytest.raises(gm.GamMergeError, match=named):
        gm.merge([a, b], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_different_tokens_are_refused(tmp_path: Path) -> None:
    delta = {TOKENS: torch.ones(2, 6)}
    a = write(tmp_path / "a", delta, trainable_token_indices=[1, 2])
    b = write(tmp_path / "b", delta, trainable_token_indices=[2, 1])
    with pytest.raises(gm.GamMergeError, match="trainable_token_indices"):
        gm.merge([a, b])


def test_in_memory_and_on_disk_hold_the_same(tmp_path: Path) -> None:
    a = write(tmp_path / "a", {"score.weight": torch.randn(3, 2)}, modules_to_save=["score"])
    gm.merge([a], out=tmp_path / "disk")
    gm.merge([a]).save(tmp_path / "memory")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "disk" / name).read_bytes() == (tmp_path / "memory" / name).read_bytes()
