"""One adapter, or the same one twice, comes back unchanged, and PEFT itself says so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import relative
from properties import catalogue
from real import forward, forward_with_deltas, save_adapter

import gam_merge as gm

METHODS = ("gam", "mean")
UNCHANGED = [
    (method.name, copies)
    for method in catalogue()
    for copies, property in [(1, "identity"), (2, "equal")]
    if property not in method.breaks and method.adapters in (None, copies)
]

# Every reading of the scale that a linear LoRA can ask for. The patterns are chosen so that PEFT's rules matter: the
# first match wins (in the order of the file: PEFT sorts keys when it saves), a dot is a wildcard, a key matches a whole
# tail of the name.
CONFIGS: dict[str, dict[str, Any]] = {
    "alpha_is_r": {"r": 4, "lora_alpha": 4},
    "alpha_not_r": {"r": 4, "lora_alpha": 10},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "rank_pattern": {
        "r": 4,
        "lora_alpha": 6,
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, "q_proj": 7},
    },
    "alpha_pattern": {
        "r": 4,
        "lora_alpha": 6,
        "alpha_pattern": {"0.self.attn.v_proj": 24, "v_proj": 3},
    },
    "regex": {
        "r": 3,
        "rank_pattern": {r"layers\.1\..*(q|v)_proj": 5},
        "alpha_pattern": {"^model.*down_proj": 5},
    },
    "rslora_patterns": {
        "r": 4,
        "lora_alpha": 6,
        "use_rslora": True,
        "rank_pattern": {"down_proj": 2, "v_proj": 6},
        "alpha_pattern": {"down_proj": 9, "q_proj": 2},
    },
}


@pytest.fixture(scope="session")
def written(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("identity")
    return {name: save_adapter(llama, folder / name, **config) for name, config in CONFIGS.items()}


@pytest.fixture(scope="session")
def logits(llama: Any, written: dict[str, Path]) -> dict[str, torch.Tensor]:
    """What each adapter does to the model; the empty name is the model alone."""
    return {"": forward(llama), **{name: forward(llama, path) for name, path in written.items()}}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("name", CONFIGS)
def test_merge_of_equal_adapters_is_the_adapter(
    name: str,
    copies: int,
    method: str,
    llama: Any,
    written: dict[str, Path],
    logits: Any,
    tmp_path: Path,
) -> None:
    result = gm.merge([written[name]] * copies, method=method, out=tmp_path / "out")
    effect = logits[name] - logits[""]
    assert effect.norm() > 0.1 * logits[""].norm()  # else the comparison proves nothing
    assert relative(forward(llama, tmp_path / "out") - logits[""], effect) < 1e-5
    assert result.report.survival == pytest.approx([1.0] * copies, rel=1e-5)


@pytest.mark.parametrize(("method", "copies"), UNCHANGED)
def test_every_method_that_says_so_gives_equal_adapters_back(
    method: str, copies: int, llama: Any, written: dict[str, Path], logits: Any, tmp_path: Path
) -> None:
    gm.merge([written["rslora_patterns"]] * copies, method=method, out=tmp_path / "out")
    effect = logits["rslora_patterns"] - logits[""]
    assert relative(forward(llama, tmp_path / "out") - logits[""], effect) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_forward_pass_is_base_plus_merged_delta(
    method: str, llama: Any, written: dict[str, Path], logits: Any, tmp_path: Path
) -> None:
    """Adapters of unlike scale and rank, merged for real: what PEFT applies is what the result says it holds."""
    sources = [written["alpha_not_r"], written["rank_pattern"], written["rslora_patterns"]]
    gm.merge(sources, method=method, weights=[0.5, 0.2, 0.3], out=tmp_path / "out")
    merged = {name: module.delta() for name, module in gm.load(tmp_path / "out").modules.items()}
    expected = forward_with_deltas(llama, merged) - logits[""]
    assert expected.norm() > 0.01 * logits[""].norm()
    assert relative(forward(llama, tmp_path / "out") - logits[""], expected) < 1e-5


def test_mean_of_different_adapters_is_the_mean_of_their_deltas(
    llama: Any, written: dict[str, Path], logits: Any, tmp_path: Path
) -> None:
    """The deltas are taken from PEFT (merge_and_unload), so a scale that we misread cannot cancel out."""
    names = ["alpha_not_r", "rslora_patterns", "regex"]
    total: dict[str, torch.Tensor] = {}
    for weight, name in zip([0.5, 0.2, 0.3], names, strict=True):
        for module, delta in _deltas_by_peft(llama, written[name]).items():
            total[module] = total.get(module, 0) + weight * delta
    gm.merge(
        [written[n] for n in names],
        method="mean",
        weights=[0.5, 0.2, 0.3],
        rank=24,
        out=tmp_path / "out",
    )
    expected = forward_with_deltas(llama, total) - logits[""]
    assert relative(forward(llama, tmp_path / "out") - logits[""], expected) < 1e-5


def _deltas_by_peft(model: Any, path: Path) -> dict[str, torch.Tensor]:
    import copy

    from peft import PeftModel

    fused = PeftModel.from_pretrained(copy.deepcopy(model).double(), path).merge_and_unload()
    base = dict(model.named_parameters())
    changed = {name: value - base[name].double() for name, value in fused.named_parameters()}
    return {
        name.removesuffix(".weight"): delta
        for name, delta in changed.items()
        if delta.abs().max() > 0
    }
