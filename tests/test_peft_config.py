"""Every field of PEFT's LoraConfig is known to the reader, and what it cannot mean is refused by name."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import write_adapter
from peft import LoraConfig

import gam_merge as gm
from gam_merge._read import peft_config as fields

FACTORS = {"layers.0.q": (torch.ones(4, 2), torch.ones(2, 6))}


def test_every_field_is_on_one_list() -> None:
    lists = [set(fields.HONOURED), set(fields.IGNORED), set(fields.REFUSED)]
    assert sum(map(len, lists)) == len(set.union(*lists))
    assert {field.name for field in dataclasses.fields(LoraConfig)} == set.union(*lists)


@pytest.mark.parametrize("name", fields.REFUSED)
def test_refused_if_set(name: str, tmp_path: Path) -> None:
    gm.load(write_adapter(tmp_path / "unset", FACTORS, **{name: None}))
    with pytest.raises(gm.GamMergeError, match=name):
        gm.load(write_adapter(tmp_path / "set", FACTORS, **{name: [1]}))


@pytest.mark.parametrize("value", [None, False, {}, []])
def test_unknown_field_at_its_default(value: Any, tmp_path: Path) -> None:
    gm.load(write_adapter(tmp_path / "a", FACTORS, use_next_years_idea=value))


@pytest.mark.parametrize("value", [True, 1, "yes", {"a": 1}, [0]])
def test_unknown_field_set(value: Any, tmp_path: Path) -> None:
    with pytest.raises(gm.GamMergeError, match="use_next_years_idea"):
        gm.load(write_adapter(tmp_path / "a", FACTORS, use_next_years_idea=value))


@pytest.mark.parametrize(
    ("init", "remedy"),
    [
        *(
            (init, "path_initial_model")
            for init in ("pissa", "pissa_niter_16", "PiSSA", "olora", "corda", "lora_ga")
        ),
        ("loftq", "gam-merge extract"),
        ("new_one", "is unknown here"),
    ],
)
def test_initialisation_that_changes_the_base(init: str, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(gm.GamMergeError, match=f"init_lora_weights='{init}'.*{remedy}"):
        gm.load(write_adapter(tmp_path / "a", FACTORS, init_lora_weights=init))


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_initialisation_that_leaves_the_base_alone(init: Any, tmp_path: Path) -> None:
    gm.load(write_adapter(tmp_path / "a", FACTORS, init_lora_weights=init))


@pytest.mark.parametrize(
    "kind", ["ADALORA", "LOHA", "LOKR", "IA3", "VERA", "OFT", "PREFIX_TUNING", "XLORA"]
)
def test_other_kinds_of_adapter(kind: str, tmp_path: Path) -> None:
    with pytest.raises(gm.GamMergeError, match=kind):
        gm.load(write_adapter(tmp_path / "a", FACTORS, peft_type=kind))
