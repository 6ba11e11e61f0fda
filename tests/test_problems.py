"""What a merge would refuse can be collected instead of raised, and the rest is still an adapter."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import gam_merge as gm


@pytest.fixture
def velora(tmp_path: Path) -> Path:
    """Two whole modules, one without its B, one with a projection of VeLoRA; VeLoRA by its config."""
    key = "base_model.model.layers.{}.q.lora_{}"
    tensors = {key.format(i, "A.weight"): torch.ones(2, 6) for i in range(3)}
    tensors |= {key.format(i, "B.weight"): torch.ones(4, 2) for i in (0, 2)}
    tensors[key.format(2, "velora_embed")] = torch.ones(4)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "velora_config": {"num_groups": 2}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path


def test_the_first_is_raised(velora):
    with pytest.raises(gm.GamMergeError, match="velora_config"):
        gm.load(velora)


def test_all_are_collected(velora):
    problems: list[str] = []
    adapter = gm.load(velora, problems=problems)
    assert list(adapter.modules) == ["layers.0.q", "layers.2.q"]
    for told, expected in zip(
        problems, ["velora_config", "lora_velora_embed", "layers.1.q has no lora_B"], strict=True
    ):
        assert expected in told
