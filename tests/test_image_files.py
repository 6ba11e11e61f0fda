"""Files that people hold of image models, through the command, as far as the reader that they are for."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from terminal import run

import gam_merge as gm

pipelines = pytest.importorskip("pipelines")


def test_diffusers_loads_the_whole_merge(tmp_path: Path) -> None:
    """Every module of the sources, named as they named it, from a directory and from a file."""
    for seed, name in enumerate(("a", "b")):
        pipelines.save_diffusers(tmp_path / name, seed, rank=4, alpha=8)
    expected = pipelines.combined([tmp_path / "a", tmp_path / "b"], [0.5, 0.5])
    assert len(expected) == 37
    for out in ("merged", "merged.safetensors"):
        done = run(["a", "b", "-o", out, "-m", "mean", "--rank", "8"], tmp_path)
        assert done.returncode == 0, done.stderr
        pipelines.assert_close(pipelines.deltas(tmp_path / out), expected)


DOWN_UP = {
    "kohya": (".lora_down.weight", ".lora_up.weight"),
    "peft style": (".lora_A.weight", ".lora_B.weight"),
    "diffusers before PEFT": (".lora.down.weight", ".lora.up.weight"),
}


@pytest.mark.parametrize("style", DOWN_UP)
def test_alphas_are_never_dropped(style: str, tmp_path: Path) -> None:
    """delta = alpha / rank * B A in the merge, whose reader may look at its alphas or not."""
    down, up = DOWN_UP[style]
    name = "lora_unet_blocks_0_q" if style == "kohya" else "diffusion_model.blocks.0.attn.q"
    generator = torch.Generator().manual_seed(0)
    expected = torch.zeros(24, 16, dtype=torch.float64)
    for file, rank, alpha in (("a", 4, 2.0), ("b", 8, 1.0)):
        a = torch.randn(rank, 16, generator=generator)
        b = torch.randn(24, rank, generator=generator)
        tensors = {name + down: a, name + up: b, f"{name}.alpha": torch.tensor(alpha)}
        save_file(tensors, tmp_path / f"{file}.safetensors")
        expected += alpha / rank * b.double() @ a.double() / 2
    arguments = ["a.safetensors", "b.safetensors", "-m", "mean", "--rank", "12"]
    refused = run([*arguments, "-o", "x.safetensors", "--alpha", "4"], tmp_path)
    assert refused.returncode == 1
    assert "has its own alphas (a tensor per module); leave --alpha" in refused.stderr
    assert run([*arguments, "-o", "merged.safetensors"], tmp_path).returncode == 0
    merged = load_file(tmp_path / "merged.safetensors")
    product = merged[name + up].double() @ merged[name + down].double()
    assert (product - expected).norm() <= 1e-6 * expected.norm()
    assert merged.get(f"{name}.alpha", torch.tensor(12.0)).item() == len(merged[name + down])


@pytest.mark.parametrize("given", [True, False])
def test_unlike_ranks_whose_alpha_is_the_rank(given: bool, tmp_path: Path) -> None:
    """A scale of 1 everywhere, said by an alpha per module or by none at all."""
    layers = [
        (f"transformer.{name}", layer)
        for name, layer in pipelines.transformer().named_modules()
        if name.endswith(("attn.to_q", "attn.to_v", "ff.net.2"))
    ]
    generator = torch.Generator().manual_seed(0)
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    expected: dict[str, torch.Tensor] = {}
    for path in paths:
        tensors: dict[str, torch.Tensor] = {}
        for i, (name, layer) in enumerate(layers):
            a, b = pipelines.factors(layer, 2 * i + 2, generator)
            tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
            if given:
                tensors[f"{name}.alpha"] = torch.tensor(2.0 * i + 2)
            half = b.double() @ a.double() / 2
            expected[name] = expected.get(name, torch.zeros(())) + half
        save_file(tensors, path)
    gm.merge(paths, method="mean", energy=1.0, out=tmp_path / "merged.safetensors")
    found = pipelines.flux_deltas(tmp_path / "merged.safetensors")
    pipelines.assert_close({f"transformer.{name}": each for name, each in found.items()}, expected)
