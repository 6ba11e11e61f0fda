"""Merges in the memory of a live PeftModel, for each kind of adapter that PEFT can hold two of."""

import copy
from pathlib import Path

import pytest
import torch
from helpers import relative
from peft import PeftModel
from variants import VARIANTS, dense_mean, forward, load, model, quiet, save

import gam_merge as gm
from gam_merge.integrations.peft import add_merged_adapter

# PEFT ties lm_head to the embedding for the first adapter of a model, and leaves it as it was for all others.
UNTIED = {"tied_both", "modules_to_save_tied"}
BIASED = {
    name for name, (_, config) in VARIANTS.items() if "bias" in config
}  # PEFT keeps these in the base itself


def make(name: str, folder: Path) -> list[Path]:
    kind, config = VARIANTS[name]
    return [
        save(folder / f"{seed}", kind, seed, **{"init_lora_weights": False, **config})
        for seed in (0, 1)
    ]


def live(name: str, paths: list[Path]) -> PeftModel:
    kind, _ = VARIANTS[name]
    with quiet():
        built = PeftModel.from_pretrained(copy.deepcopy(model(kind)).float(), paths[0], "one")
        built.load_adapter(paths[1], "two")
    return built


@pytest.mark.parametrize("name", sorted(VARIANTS.keys() - BIASED - UNTIED))
def test_mean_of_two(name: str, tmp_path: Path) -> None:
    kind, _ = VARIANTS[name]
    paths, weights = make(name, tmp_path), [0.75, 0.25]
    built = live(name, paths)
    before = {key: value.clone() for key, value in built.state_dict().items()}
    with quiet():
        add_merged_adapter(built, ["one", "two"], "both", method="svd_k", weights=weights, rank=8)
    after = built.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    with quiet():
        built.set_adapter("both")
    base, expected = forward(model(kind)), forward(dense_mean(kind, paths, weights))
    assert relative(forward(built.double().eval()) - base, expected - base) < 1e-5


@pytest.mark.parametrize("name", sorted(BIASED))
def test_peft_has_room_for_one_trained_bias(name: str, tmp_path: Path) -> None:
    kind, _ = VARIANTS[name]
    paths = make(name, tmp_path)
    built = load(kind, paths[0])
    before = {key: value.clone() for key, value in built.state_dict().items()}
    with (
        quiet(),
        pytest.raises(
            gm.GamMergeError,
            match=r"PEFT does not add the merged adapter 'both'.*1 adapter with bias",
        ),
    ):
        add_merged_adapter(built, ["default"], "both")
    after = built.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert list(built.peft_config) == ["default"]
