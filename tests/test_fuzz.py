"""Whatever stands in a file: a merge holds every module and every trained tensor, or says why not, in one line."""

from typing import Any

import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor

import gam_merge as gm
from gam_merge._common.errors import collecting
from gam_merge._state_dict import from_state_dict, state_dict

PREFIX = "base_model.model."
MODULES = [
    "layers.0.q",
    "layers.1.q",
    "layers.10.q",
    "layers.0.mlp.experts",
    "embed_tokens",
    "lm_head",
    "score",
    "norm",
]
JUNK = st.sampled_from(
    [None, True, -1, 0, 2.5, float("nan"), float("inf"), "x", "(", [], [1], {}, {"q": 1}, {"(": 2}]
)

# key of a tensor, its shape; {r} is a rank
FORMS: dict[str, list[tuple[str, tuple[int | str, ...]]]] = {
    "linear": [("lora_A.weight", ("r", 6)), ("lora_B.weight", (4, "r"))],
    "state": [("lora_A.default.weight", ("r", 6)), ("lora_B.default.weight", (4, "r"))],
    "embedding": [("lora_embedding_A", ("r", 11)), ("lora_embedding_B", (6, "r"))],
    "conv": [("lora_A.weight", ("r", 3, 2, 2)), ("lora_B.weight", (4, "r", 1, 1))],
    "grouped": [("lora_A.weight", (4, 3, 2)), ("lora_B.weight", (4, 2, 1))],
    "experts": [("lora_A.weight", (6, 5)), ("lora_B.weight", (4, 6))],
    "nested": [("base_layer.lora_A.weight", (6, 5)), ("base_layer.lora_B.weight", (4, 6))],
    "half": [("lora_A.weight", ("r", 6))],
    "odd": [("lora_A.weight", ("r", 6)), ("lora_B.weight", (4, 5))],
    "lora_bias": [("lora_A.weight", ("r", 6)), ("lora_B.weight", (4, "r")), ("lora_B.bias", (4,))],
    "bias": [("bias", (4,))],
    "inner_bias": [("base_layer.bias", (4,))],
    "whole": [("weight", (4, 6))],
    "deep": [("dense.weight", (4, 6)), ("dense.bias", (4,))],
    "tokens": [("token_adapter.trainable_tokens_delta", (2, 6))],
    "base": [("base_layer.weight", (4, 6))],
    "dora": [
        ("lora_A.weight", ("r", 6)),
        ("lora_B.weight", (4, "r")),
        ("lora_magnitude_vector", (4,)),
    ],
    "stranger": [("lora_C.weight", (4, 6))],
    "scalar": [("lora_A.weight", ()), ("lora_B.weight", ())],
    "empty": [("lora_A.weight", (0, 6)), ("lora_B.weight", (4, 0))],
}
FACTORS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")


@st.composite
def adapters(draw: st.DrawFn) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and a config, mostly sensible."""
    rank = draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 3)))
    tensors: dict[str, Tensor] = {}
    for module in draw(st.lists(st.sampled_from(MODULES), min_size=1, max_size=4, unique=True)):
        form = draw(st.one_of(st.just("linear"), st.sampled_from(sorted(FORMS))))
        prefix = draw(st.sampled_from([PREFIX, PREFIX, PREFIX, ""]))
        for key, shape in FORMS[form]:
            size = [rank if side == "r" else int(side) for side in shape]
            tensors[f"{prefix}{module}.{key}"] = torch.randn(size, generator=generator)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "base_model_name_or_path": "base",
        "r": rank,
        "lora_alpha": draw(st.sampled_from([1, 8])),
        "use_rslora": draw(st.booleans()),
        "bias": draw(st.sampled_from(["none", "all", "lora_only"])),
        "modules_to_save": draw(st.sampled_from([None, ["score"], ["norm", "lm_head"]])),
        "target_modules": draw(st.sampled_from([None, ["q"], "all-linear", ["layers.0.q"]])),
        "target_parameters": draw(
            st.sampled_from([None, ["experts.up"], ["experts.up", "mlp.experts.down"]])
        ),
        "trainable_token_indices": draw(st.sampled_from([None, [1, 2]])),
        "rank_pattern": draw(st.sampled_from([{}, {"q": 2}, {"layers.1.*": 1}])),
        "alpha_pattern": draw(st.sampled_from([{}, {"q": 3}, {"layers.1.*": 5}])),
    }
    if draw(st.integers(0, 3)) == 0:
        config[
            draw(st.sampled_from([*config, "lora_bias", "use_dora", "init_lora_weights", "anew"]))
        ] = draw(JUNK)
    return tensors, config


def meant(key: str) -> str:
    """What a tensor is, whatever the file calls it: its module, or its name."""
    bare = key.removeprefix(PREFIX).replace(".default.", ".")
    for factor in FACTORS:
        module, found, _ = bare.partition(f".{factor}")
        if found and not bare.endswith("lora_B.bias"):
            return module
    return bare.replace(".base_layer.bias", ".bias")


@settings(max_examples=400)
@given(
    st.lists(adapters(), min_size=1, max_size=3),
    st.sampled_from(["gam", "mean"]),
    st.sampled_from(["zero", "skip"]),
)
def test_nothing_is_lost_and_nothing_else_is_raised(
    found: list[tuple[dict[str, Tensor], dict[str, Any]]], method: str, missing: str
) -> None:
    problems: list[str] = []
    with collecting(problems):
        sources = [
            from_state_dict(tensors, config, name=f"source {i}")
            for i, (tensors, config) in enumerate(found)
        ]
        result = gm.merge(sources, method=method, missing=missing)
    event("refused" if problems else "merged")
    if problems:
        assert len(problems[0].splitlines()) == 1
        return
    merged = state_dict(result.adapter)
    written = {meant(key) for key in merged}
    given_ = {meant(key) for tensors, _ in found for key in tensors}
    left_out = {name for name in given_ if name.endswith(".base_layer.weight")}
    assert written >= given_ - left_out
    assert all(any(name in note for note in result.report.notes) for name in left_out)
    assert all(value.isfinite().all() for value in merged.values())
    again = from_state_dict(merged, result.adapter.config)  # and we read what we write
    assert list(again.modules) == list(result.adapter.modules)
    assert list(again.extras) == list(result.adapter.extras)
