"""The config of a merge: PEFT wraps the modules that are in the file, and no others."""

from typing import Any

import pytest
import torch
from torch import Tensor

import gam_merge as gm
from gam_merge._state_dict import from_state_dict

PAIR = (torch.ones(4, 2), torch.ones(2, 6))
Q, QV = ["layers.0.q", "layers.1.q"], ["layers.0.q", "layers.0.v", "layers.1.q", "layers.1.v"]


def source(
    modules: list[str], config: dict[str, Any], more: dict[str, Tensor] | None = None
) -> gm.Adapter:
    """An adapter of these linear modules, and what else there is."""
    factors = {
        f"{name}.lora_{x}.weight": factor
        for name in modules
        for x, factor in zip("BA", PAIR, strict=True)
    }
    return from_state_dict({**factors, **(more or {})}, {"r": 2, "lora_alpha": 2, **config})


MAPPING = {"base_model_class": "X", "parent_library": "attackers_choice"}


def written(adapters: list[tuple[list[str], dict[str, Any]]], **settings: Any) -> dict[str, Any]:
    """The config of the merge of adapters of these modules and configs."""
    return dict(gm.merge([source(*adapter) for adapter in adapters], **settings).adapter.config)


@pytest.mark.parametrize(
    ("adapters", "expected"),
    [
        ([(Q, {"target_modules": ["q"]})], ["q"]),
        ([(Q, {"target_modules": ["q"]}), (QV, {"target_modules": ["v", "q"]})], ["q", "v"]),
        ([(QV, {"target_modules": "all-linear"})], QV),
        ([(Q, {"target_modules": r".*\.q"}), (Q, {"target_modules": ["q"]})], Q),
        ([(Q, {"target_modules": Q})], Q),
        ([(Q, {"target_modules": None})], Q),
        ([(QV, {"target_modules": ["q"]})], QV),
        ([(Q[1:], {"target_modules": ["q"], "layers_to_transform": [1]})], Q[1:]),
        ([(Q[:1], {"target_modules": ["q"], "layers_to_transform": 0})], Q[:1]),
        ([(Q[:1], {"target_modules": ["q"], "exclude_modules": ["layers.1.q"]})], Q[:1]),
        (
            [
                (Q, {"target_modules": ["q"]}),
                (QV[2:], {"target_modules": ["q", "v"], "layers_to_transform": [1]}),
            ],
            Q + QV[3:],
        ),
        ([(["layers.0.q", "layers.0.x_q"], {"target_modules": ["q", "x_q"]})], ["q", "x_q"]),
        (
            [(["layers.0.q", "layers.0.x.q"], {"target_modules": ["q", "x.q"]})],
            ["layers.0.q", "layers.0.x.q"],
        ),
    ],
)
def test_target_modules(
    adapters: list[tuple[list[str], dict[str, Any]]], expected: list[str]
) -> None:
    """Suffixes where each adapter names its own so; else full names, which mean the same in every model."""
    assert written(adapters)["target_modules"] == sorted(expected)


@pytest.mark.parametrize(("at", "left"), [("layers.0.", "layers.1"), ("layers.1.", "layers.0")])
def test_a_module_that_takes_no_part_is_not_named(at: str, left: str) -> None:
    """A suffix would name it still, and PEFT would look for it in the file."""
    tensors: dict[str, Tensor] = {}
    for i in range(2):
        tensors[f"layers.{i}.mlp.experts.lora_A.weight"] = torch.ones(6, 5)
        tensors[f"layers.{i}.mlp.experts.lora_B.weight"] = torch.ones(4, 6)
    adapter = source(Q, {"target_modules": ["q"], "target_parameters": ["mlp.experts.up"]}, tensors)
    weight = [{"filter": at, "value": 0}, {"filter": "*", "value": 1}]
    config = gm.merge([adapter], weights=[weight]).adapter.config
    assert (config["target_modules"], config["target_parameters"]) == (
        [f"{left}.q"],
        [f"{left}.mlp.experts.up"],
    )


@pytest.mark.parametrize(
    ("first", "second", "name", "expected"),
    [
        ({"fan_in_fan_out": True}, {"fan_in_fan_out": True}, "fan_in_fan_out", True),
        ({"fan_in_fan_out": False}, {}, "fan_in_fan_out", False),
        ({"task_type": "CAUSAL_LM"}, {"task_type": "CAUSAL_LM"}, "task_type", "CAUSAL_LM"),
        ({"task_type": "CAUSAL_LM"}, {"task_type": "SEQ_CLS"}, "task_type", None),
        ({"task_type": "CAUSAL_LM"}, {}, "task_type", "CAUSAL_LM"),
        ({"revision": "abc"}, {"revision": "abc"}, "revision", "abc"),
        ({"revision": "abc"}, {"revision": "abd"}, "revision", None),
        ({"revision": "refs/pr/666"}, {"revision": None}, "revision", None),
        ({"revision": "refs/pr/666"}, {}, "revision", None),
        ({"auto_mapping": MAPPING}, {"auto_mapping": MAPPING}, "auto_mapping", None),
        ({"auto_mapping": MAPPING}, {}, "auto_mapping", None),
        ({"use_rslora": True}, {}, "use_rslora", False),
        ({"lora_dropout": 0.1}, {}, "lora_dropout", 0.0),
        ({"init_lora_weights": False}, {}, "init_lora_weights", True),
        ({"inference_mode": False}, {}, "inference_mode", True),
        ({"bias": "all"}, {}, "bias", "none"),
        ({"lora_bias": True}, {}, "lora_bias", False),
        ({"task_type": "SEQ_CLS"}, {}, "modules_to_save", None),
        ({"trainable_token_indices": [1]}, {}, "trainable_token_indices", None),
        ({"ensure_weight_tying": True}, {}, "ensure_weight_tying", False),
    ],
)
def test_fields(first: dict[str, Any], second: dict[str, Any], name: str, expected: Any) -> None:
    """What describes the model is kept where the adapters agree; what the file has no tensor of is not promised."""
    for adapters in ([first, second], [second, first], [first, first, second]):
        assert written([(Q, config) for config in adapters])[name] == expected


@pytest.mark.parametrize("revision", ["refs/pr/666", "abc"])
def test_one_adapter_does_not_choose_the_revision_of_the_base(revision: str) -> None:
    """Anyone can open refs/pr/N on the Hub, and PEFT loads the base at the revision of the config."""
    adapters = [source(Q, {}), source(Q, {"revision": revision}), source(Q, {})]
    result = gm.merge(adapters)
    assert result.adapter.config["revision"] is None
    (note,) = (note for note in result.report.notes if "revision" in note)
    assert f"{adapters[1].source}: {revision}" in note
    agreed = gm.merge([adapters[1], adapters[1]])
    assert agreed.adapter.config["revision"] == revision
    assert not any("revision" in note for note in agreed.report.notes)


@pytest.mark.parametrize("tied", [[True, True], [True, False], [False, True]])
@pytest.mark.parametrize(
    ("key", "fields"),
    [
        ("embed.weight", {"modules_to_save": ["embed"]}),
        *(
            (f"{name}.weight", {})
            for name in ("embed_tokens", "lm_head", "wte", "shared", "word_embeddings")
        ),
        ("embed.token_adapter.trainable_tokens_delta", {"trainable_token_indices": [1, 2]}),
    ],
)
def test_whole_embeddings_stay_tied(key: str, fields: dict[str, Any], tied: list[bool]) -> None:
    sources = [
        source(Q, {"ensure_weight_tying": t, **fields}, {key: torch.ones(2, 3)}) for t in tied
    ]
    config = gm.merge(sources).adapter.config
    assert config["ensure_weight_tying"] is True
    for name, value in fields.items():
        assert config[name] == value


@pytest.mark.parametrize(
    ("spelled", "expected"),
    [
        ([["mlp.experts.up", "mlp.experts.down"]] * 2, ["mlp.experts.down", "mlp.experts.up"]),
        (
            [["mlp.experts.up", "mlp.experts.down"], ["experts.down", "experts.up"]],
            ["layers.0.mlp.experts.down", "layers.0.mlp.experts.up"],
        ),
    ],
)
def test_target_parameters(spelled: list[list[str]], expected: list[str]) -> None:
    tensors = {}
    for wrap in ("layers.0.mlp.experts", "layers.0.mlp.experts.base_layer"):
        tensors |= {
            f"{wrap}.lora_A.weight": torch.ones(6, 5),
            f"{wrap}.lora_B.weight": torch.ones(4, 6),
        }
    config = gm.merge(
        [source(Q, {"target_parameters": names}, tensors) for names in spelled]
    ).adapter.config
    assert config["target_parameters"] == expected
    assert config["target_modules"] == Q


def test_a_module_of_a_longer_name_is_no_parameter() -> None:
    config = gm.merge(
        [source(["layers.0.x_experts"], {"target_parameters": ["experts.up"]})]
    ).adapter.config
    assert config["target_modules"] == ["layers.0.x_experts"]
