"""The mean of the last checkpoints of a run, by function and by command."""

import json
from pathlib import Path

import pytest
import torch
from helpers import random_factors, relative
from real import save_adapter
from safetensors.torch import save_file
from test_cli import run

import gam_merge as gm
from gam_merge._checkpoints import ema_weights, find_checkpoints

STEPS = (5, 10, 15, 100)


@pytest.fixture(scope="module")
def folder(llama, tmp_path_factory):
    """Four checkpoints, whose order by name is not that by step, and what else lies in such a folder."""
    folder = tmp_path_factory.mktemp("run")
    for step in STEPS:
        save_adapter(llama, folder / f"checkpoint-{step}", seed=step, r=4)
    (folder / "checkpoint-200").mkdir()  # of a model that is no adapter
    (folder / "checkpoint-best").mkdir()
    (folder / "runs").mkdir()
    return folder


def expected(folder: Path, weights: dict[int, float]) -> dict[str, object]:
    adapters = {step: gm.load(folder / f"checkpoint-{step}") for step in weights}
    names = adapters[STEPS[-1]].modules
    return {
        name: sum(w * adapters[step].modules[name].delta() for step, w in weights.items())
        for name in names
    }


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"last": 2}, {15: 0.5, 100: 0.5}),
        ({"last": 9}, dict.fromkeys(STEPS, 0.25)),
        ({"last": None, "ema": 0.6}, {5: 0.6**3, 10: 0.4 * 0.36, 15: 0.4 * 0.6, 100: 0.4}),
        ({"last": 3, "ema": 0.0}, {100: 1.0}),
    ],
)
def test_mean_of_the_last(options, weights, folder, tmp_path):
    gm.average_checkpoints(folder, **options, rank=16, out=tmp_path / "out")
    merged = gm.load(tmp_path / "out").modules
    for name, delta in expected(folder, weights).items():
        assert relative(merged[name].delta(), delta) < 1e-6


def _files(folder: Path, names: list[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    for name in names:
        up, down = random_factors(generator, 12, 10, 3, torch.float32)
        tensors = {"lora_unet_x.lora_up.weight": up, "lora_unet_x.lora_down.weight": down}
        save_file(tensors, folder / name)


@pytest.mark.parametrize(
    "names",
    [
        ["my-000002.safetensors", "my-000010.safetensors"],
        ["my-step00000900.safetensors", "my-step00001000.safetensors"],
    ],
)
def test_files_of_sd_scripts(names, tmp_path):
    _files(tmp_path, [*names, "my.safetensors"])
    assert [path.name for path in find_checkpoints(tmp_path)] == names
    merged = gm.average_checkpoints(tmp_path, rank=6, out=tmp_path / "out.safetensors").adapter
    deltas = [gm.load(tmp_path / name).modules["lora_unet_x"].delta() for name in names]
    assert relative(merged.modules["lora_unet_x"].delta(), sum(deltas) / 2) < 1e-6


def test_checkpoints_of_mlx(tmp_path):
    pytest.importorskip("mlx_lm")
    from test_mlx import save

    for i, step in enumerate((100, 1000)):
        path = save(tmp_path / str(step), i, rank=4, scale=2.0, keys=["self_attn.q_proj"])
        (path / "adapters.safetensors").rename(tmp_path / f"{step:07}_adapters.safetensors")
        (path / "adapter_config.json").rename(tmp_path / "adapter_config.json")
    names = [path.name for path in find_checkpoints(tmp_path)]
    assert names == ["0000100_adapters.safetensors", "0001000_adapters.safetensors"]
    assert gm.average_checkpoints(tmp_path).adapter.format == "mlx"


def test_checkpoints_of_diffusers(tmp_path):
    for step in (5, 40):
        (tmp_path / f"checkpoint-{step}").mkdir()
        _files(tmp_path / f"checkpoint-{step}", ["pytorch_lora_weights.safetensors"])
    assert [path.name for path in find_checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-40"]


def test_ema_weights_are_those_of_the_recursion():
    values, average = [3.0, -1.0, 4.0, 1.5], None
    for value in values:
        average = value if average is None else 0.7 * average + 0.3 * value
    weights = ema_weights(4, 0.7)
    assert sum(w * v for w, v in zip(weights, values, strict=True)) == pytest.approx(average)
    assert sum(weights) == pytest.approx(1.0)


def test_order_is_by_step(folder):
    assert [path.name for path in find_checkpoints(folder)] == [
        f"checkpoint-{step}" for step in STEPS
    ]


def test_mistakes(folder, tmp_path):
    for call, message in (
        (lambda: gm.average_checkpoints(tmp_path / "nowhere"), "no such directory"),
        (lambda: gm.average_checkpoints(tmp_path), "holds no adapter checkpoints"),
        (lambda: gm.average_checkpoints(folder, last=0), "last must be positive, got 0"),
        (lambda: gm.average_checkpoints(folder, ema=1.0), r"ema must be in \[0, 1\), got 1\.0"),
    ):
        with pytest.raises(gm.GamMergeError, match=message):
            call()


def test_command(folder, tmp_path):
    done = run(
        [
            "checkpoints",
            folder,
            "-o",
            "out",
            "--last",
            "2",
            "--ema",
            "0.75",
            "--rank",
            "8",
            "--json",
        ],
        tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["weights"] == [0.75, 0.25]
    merged = gm.load(tmp_path / "out").modules
    assert all(
        relative(merged[n].delta(), d) < 1e-6
        for n, d in expected(folder, {15: 0.75, 100: 0.25}).items()
    )
