"""Merges of the adapters of a live pipeline: what diffusers computes with them, and nothing else changes."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import relative
from safetensors.torch import load_file, save_file

import gam_merge as gm

pipelines = pytest.importorskip("pipelines")
from gam_merge.integrations.diffusers import (  # noqa: E402
    add_merged_adapter,
    from_pipeline,
    merge_adapters,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:Already found a `peft_config` attribute:UserWarning"  # of every second adapter
)
TRANSFORMER = ("attn.to_q", "attn.to_out.0", "ff.net.2", "proj_out")


def save_stable_diffusion(path: Path, seed: int, *, rank: int, alpha: float) -> Path:
    """A file of kohya's for a UNet and one layer of a text encoder, another with each seed."""
    pipelines.save_kohya(path, seed, rank=rank, alpha=alpha, mixed=True)
    generator = torch.Generator().manual_seed(seed)
    more: dict[str, torch.Tensor] = {}
    for name in ("q_proj", "out_proj"):  # without the last diffusers does not know the file
        stem = f"lora_te_text_model_encoder_layers_{seed % 2}_self_attn_{name}"
        more[f"{stem}.lora_down.weight"] = torch.randn(rank, 8, generator=generator)
        more[f"{stem}.lora_up.weight"] = torch.randn(8, rank, generator=generator)
        more[f"{stem}.alpha"] = torch.tensor(alpha)
    save_file({**load_file(path), **more}, path)
    return path


def save_flux(path: Path, seed: int, *, rank: int, alpha: float) -> Path:
    """A file of diffusers' for the transformer, with a tensor of alpha per module."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in pipelines.transformer().named_modules():
        if name.endswith(TRANSFORMER):
            a, b = pipelines.factors(layer, rank, generator)
            stem = f"transformer.{name}"
            tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


KINDS = {
    "stable diffusion": (pipelines.stable_diffusion, save_stable_diffusion),
    "flux": (pipelines.flux, save_flux),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def files(kind: str, tmp_path: Path) -> list[Path]:
    save = KINDS[kind][1]
    return [
        save(tmp_path / "a.safetensors", 1, rank=4, alpha=2.5),
        save(tmp_path / "b.safetensors", 2, rank=6, alpha=6.0),
    ]


@pytest.fixture
def pipeline(kind: str, files: list[Path]) -> Any:
    """With the adapters "style" and "person", of which the second is active."""
    loaded = KINDS[kind][0]()
    for name, file in zip(("style", "person"), files, strict=True):
        loaded.load_lora_weights(file.parent, weight_name=file.name, adapter_name=name)
    return loaded


def parts(pipeline: Any) -> dict[str, Any]:
    names = ("unet", "text_encoder", "transformer")
    return {name: getattr(pipeline, name) for name in names if hasattr(pipeline, name)}


@contextmanager
def unchanged(pipeline: Any) -> Iterator[None]:
    """All that the pipeline holds before is there after, to the bit, and so are the next random numbers."""
    models = parts(pipeline)
    before: dict[str, dict[str, tuple[torch.Tensor, bool]]] = {}
    for part, model in models.items():
        parameters = model.named_parameters() if model is not None else ()
        before[part] = {name: (p.detach().clone(), p.requires_grad) for name, p in parameters}
    active, state = pipeline.get_active_adapters(), torch.get_rng_state()
    yield
    for part, values in before.items():
        after = dict(models[part].named_parameters()) if models[part] is not None else {}
        for name, (value, trainable) in values.items():
            assert torch.equal(after[name], value), name
            assert after[name].requires_grad == trainable, name
    assert pipeline.get_active_adapters() == active
    assert torch.equal(torch.get_rng_state(), state)


def deltas(model: Any, adapter: str) -> dict[str, torch.Tensor]:
    """What PEFT's layers make of an adapter in one part of the pipeline."""
    changes: dict[str, torch.Tensor] = {}
    for name, layer in model.named_modules():
        if hasattr(layer, "get_delta_weight") and adapter in layer.lora_A:
            changes[name] = layer.get_delta_weight(adapter).detach()
    return changes


@torch.no_grad()
def forward(part: str, model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if part == "text_encoder":
        return model(torch.arange(6).reshape(1, 6)).last_hidden_state
    hidden = torch.randn(1, 3, 8, generator=generator)
    if part == "unet":
        sample = torch.randn(1, 4, 8, 8, generator=generator)
        return model(sample, torch.tensor([5]), hidden).sample
    return model(
        hidden_states=torch.randn(1, 4, 4, generator=generator),
        encoder_hidden_states=hidden,
        pooled_projections=torch.randn(1, 8, generator=generator),
        timestep=torch.tensor([0.5]),
        txt_ids=torch.zeros(3, 3),
        img_ids=torch.zeros(4, 3),
    ).sample


def test_the_merge_is_what_the_pipeline_computes(kind: str, pipeline: Any) -> None:
    """Every part of it, against weights to which the deltas were added."""
    weights = {"style": 0.3, "person": 0.7}
    add_merged_adapter(
        pipeline, list(weights), "both", method="mean", weights=list(weights.values()), rank=10
    )
    pipeline.set_adapters("both")
    plain = parts(KINDS[kind][0]())
    for part, model in parts(pipeline).items():
        if model is None:
            continue
        before = forward(part, plain[part])
        for adapter, weight in weights.items():
            for name, delta in deltas(model, adapter).items():
                plain[part].get_submodule(name).weight.data += weight * delta
        effect = forward(part, plain[part]) - before
        assert effect.norm() > 1e-2 * before.norm()
        assert relative(forward(part, model) - before, effect) < 1e-5


@pytest.mark.parametrize("method", ["gam", "ties"])
def test_as_from_files(method: str, pipeline: Any, files: list[Path]) -> None:
    filed = gm.merge(files, method=method, weights=[0.5, 1.5])
    options: dict[str, Any] = {"method": method, "weights": [0.5, 1.5]}
    with unchanged(pipeline):
        alone = merge_adapters(pipeline, ["style", "person"], **options)
    with unchanged(pipeline):
        report = add_merged_adapter(pipeline, ["style", "person"], "both", **options)
    assert report.sources == ("style", "person")
    assert sorted(report.norms) == pytest.approx(sorted(filed.report.norms), rel=1e-6)
    norms = sorted(float(module.delta().norm()) for module in filed.adapter.modules.values())
    for merged in (alone, from_pipeline(pipeline, "both")):
        found = sorted(float(module.delta().norm()) for module in merged.modules.values())
        assert found == pytest.approx(norms, rel=1e-6)


def test_merged_adapters_can_be_saved_and_merged_again(pipeline: Any, tmp_path: Path) -> None:
    result = merge_adapters(pipeline, ["style", "person"], method="mean", out=tmp_path / "out")
    assert gm.load(tmp_path / "out").modules.keys() == result.modules.keys()
    add_merged_adapter(pipeline, ["style", "person"], "both")
    again = merge_adapters(pipeline, ["both", "person"], method="mean", anchor="person")
    assert again.modules.keys() == result.modules.keys()


@pytest.mark.parametrize(
    ("adapters", "name", "options", "message"),
    [
        (["style", "x"], "both", {}, r"no adapter 'x'; it has: style, person"),
        (["style", "person"], "style", {}, r"already has an adapter 'style'"),
        (["style", "person"], "x.y", {}, r"'x\.y' cannot be the name of a module"),
        (["style", "person"], "both", {"weights": [1.0]}, r"1 weights for 2 adapters"),
        (["style", "person"], "both", {"method": "nope"}, r"unknown method 'nope'"),
        ([], "both", {}, r"no adapters to merge"),
        ("ab", "both", {}, r"adapters must be a list of names, got the one name 'ab'"),
    ],
)
def test_mistakes_change_nothing(
    adapters: Any, name: str, options: dict[str, Any], message: str, pipeline: Any
) -> None:
    listed = pipeline.get_list_adapters()
    with unchanged(pipeline), pytest.raises(gm.GamMergeError, match=message):
        add_merged_adapter(pipeline, adapters, name, **options)
    assert pipeline.get_list_adapters() == listed


def test_a_load_that_fails_changes_nothing(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers had loaded one part already."""
    load = pipeline.load_lora_weights

    def interrupted(*arguments: Any, **options: Any) -> None:
        load(*arguments, **options)
        raise ValueError("no room")

    monkeypatch.setattr(pipeline, "load_lora_weights", interrupted)
    listed = pipeline.get_list_adapters()
    with unchanged(pipeline), pytest.raises(gm.GamMergeError, match=r"does not load .*'both': no"):
        add_merged_adapter(pipeline, ["style", "person"], "both")
    assert pipeline.get_list_adapters() == listed


def test_other_objects_are_refused() -> None:
    with pytest.raises(gm.GamMergeError, match="that loads LoRA, got UNet2DConditionModel; give"):
        merge_adapters(pipelines.unet(), ["a"])
    with pytest.raises(gm.GamMergeError, match="no adapter 'a'; it has: none"):
        merge_adapters(pipelines.stable_diffusion(), ["a"])


def test_dora() -> None:
    """Base weights are the pipeline's own; what diffusers' format cannot hold is refused by name."""
    pipeline = pipelines.stable_diffusion()
    config = pipelines.peft.LoraConfig(
        r=2, target_modules=["to_q"], use_dora=True, init_lora_weights=False
    )
    for name in ("a", "b"):
        pipeline.unet.add_adapter(copy.copy(config), adapter_name=name)
    with pytest.raises(gm.GamMergeError, match=r"without DoRA.*flatten_dora=True"):
        merge_adapters(pipeline, ["a", "b"])
    merged = merge_adapters(pipeline, ["a", "b"], flatten_dora=True, method="mean", rank=4)
    assert merged.rank == 4
