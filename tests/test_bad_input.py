"""What cannot be merged is refused in one line that names it and says what to do, and nothing is written."""

import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_factors, tree, write_adapter
from hypothesis import given
from hypothesis import strategies as st
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

import gam_merge as gm
from gam_merge._common.tensors import MemoryTensor
from gam_merge._read.format import Contents
from gam_merge._read.peft import Peft
from gam_merge._state_dict import from_state_dict

PATTERNS = st.sampled_from(
    [
        "q_proj",
        "proj",
        "_proj",
        "q.proj",
        "1.q_proj",
        r"\d.q_proj",
        ".*",
        "layers",
        "layers.0.q_proj",
        "^layers.*",
        "v|q_proj",
    ]
)
MODULES = ("layers.0.q_proj", "layers.1.q_proj", "layers.1.v_proj")


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """Adapters ``good`` and ``bad``, alike so far, of rank 3 and alpha 6."""
    generator = torch.Generator().manual_seed(0)
    return [
        write_adapter(
            tmp_path / name,
            {module: random_factors(generator, 8, 6, 3, torch.float32) for module in MODULES},
            lora_alpha=6,
        )
        for name in ("good", "bad")
    ]


def refused(sources: list[Any], *words: str, **options: Any) -> None:
    """Merging raises one line that has all the words; the folder of the sources is left as it was."""
    folder = Path(sources[0]).parent
    before = tree(folder)
    for out in (folder / "out", folder / "deep" / "er" / "out"):
        with pytest.raises(gm.GamMergeError) as error:
            gm.merge(sources, out=out, **options)
        message = str(error.value)
        assert message.isprintable()
        for word in words:
            assert word in message
        assert tree(folder) == before


def key(module: str, factor: str) -> str:
    return f"base_model.model.{module}.lora_{factor}.weight"


def change_tensors(adapter: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, {"format": "pt"})


def change_config(adapter: Path, **fields: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# --- tensors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gam", "mean"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("factor", ["A", "B"])
def test_not_finite(
    factor: str, value: float, dtype: torch.dtype, method: str, sources: list[Path]
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            tensors[name] = tensors[name].to(dtype)
        tensors[key("layers.1.q_proj", factor)][1, 2] = value

    change_tensors(sources[1], spoil)
    refused(
        sources,
        str(sources[1]),
        "layers.1.q_proj",
        f"lora_{factor}",
        "NaN or Inf",
        "leave",
        method=method,
    )
    gm.merge(sources, weights=[1, 0], method=method)  # the way out that the message tells


def test_not_finite_beside_a_zero_factor(sources: list[Path]) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[key("layers.0.q_proj", "B")].zero_()
        tensors[key("layers.0.q_proj", "A")][0, 0] = math.nan

    change_tensors(sources[1], spoil)
    refused(sources, str(sources[1]), "layers.0.q_proj", "lora_A")


Change = Callable[[dict[str, torch.Tensor]], object]
TENSORS: dict[str, tuple[Change, list[str]]] = {
    "ranks_of_a_and_b_differ": (
        lambda t: t.update({key(MODULES[0], "B"): torch.ones(8, 2)}),
        [MODULES[0], "(3, 6)", "(8, 2)"],
    ),
    "no_b": (lambda t: t.pop(key(MODULES[0], "B")), [MODULES[0], "no lora_B"]),
    "no_a": (lambda t: t.pop(key(MODULES[0], "A")), [MODULES[0], "no lora_A"]),
    "vectors": (lambda t: t.update({key(MODULES[0], "A"): torch.ones(6)}), [MODULES[0], "(6,)"]),
    "empty": (
        lambda t: t.update(
            {key(MODULES[0], "A"): torch.ones(0, 6), key(MODULES[0], "B"): torch.ones(8, 0)}
        ),
        [MODULES[0], "(0, 6)"],
    ),
    "other_rank_than_the_config_says": (
        lambda t: t.update(
            {key(MODULES[0], "A"): torch.ones(5, 6), key(MODULES[0], "B"): torch.ones(8, 5)}
        ),
        [MODULES[0], "rank 5", "3 by its config"],
    ),
    "unknown": (
        lambda t: t.update({"base_model.model.layers.0.gate": torch.ones(3)}),
        ["layers.0.gate"],
    ),
    "unknown_factor": (
        lambda t: t.update({"base_model.model.layers.0.lora_C.weight": torch.ones(3, 3)}),
        ["lora_C"],
    ),
    "integers": (lambda t: t.update({"steps": torch.ones(3, dtype=torch.int64)}), ["steps", "I64"]),
    "nothing": (lambda t: t.clear(), ["no LoRA factors"]),
    "two_lines": (lambda t: t.update({"one\ntwo": torch.ones(3)}), [r"one\ntwo"]),
    "terminal_codes": (lambda t: t.update({"\x1b[2J": torch.ones(3)}), [r"\x1b[2J"]),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors(name: str, sources: list[Path]) -> None:
    change, words = TENSORS[name]
    change_tensors(sources[1], change)
    refused(sources, str(sources[1]), *words)


def test_shapes_that_differ_between_adapters(sources: list[Path]) -> None:
    change_tensors(sources[1], lambda t: t.update({key(MODULES[0], "A"): torch.ones(3, 7)}))
    refused(
        sources,
        str(sources[0]),
        str(sources[1]),
        MODULES[0],
        "(8, 6)",
        "(8, 7)",
        "different base models",
    )


# --- files -------------------------------------------------------------------------------------------------------

FILES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "truncated": (
        lambda bad: (w := bad / "adapter_model.safetensors").write_bytes(w.read_bytes()[:-100]),
        ["adapter_model.safetensors", "not a complete safetensors file", "download it again"],
    ),
    "empty": (
        lambda bad: (bad / "adapter_model.safetensors").write_bytes(b""),
        ["not a complete safetensors file"],
    ),
    "header_lies": (
        lambda bad: (w := bad / "adapter_model.safetensors").write_bytes(
            b"\xff" * 8 + w.read_bytes()[8:]
        ),
        ["adapter_model.safetensors", "its header claims"],
    ),
    "no_weights": (
        lambda bad: (bad / "adapter_model.safetensors").unlink(),
        ["no adapter_model.safetensors"],
    ),
    "no_config": (
        lambda bad: (bad / "adapter_config.json").unlink(),
        ["adapter_config.json", "No such file"],
    ),
    "config_is_a_folder": (
        lambda bad: ((bad / "adapter_config.json").unlink(), (bad / "adapter_config.json").mkdir()),
        ["adapter_config.json", "Is a directory"],
    ),
    "config_not_json": (
        lambda bad: (bad / "adapter_config.json").write_text("{'r': 3}"),
        ["is not JSON"],
    ),
    "config_not_text": (
        lambda bad: (bad / "adapter_config.json").write_bytes(b"\xff\xfe\xfd"),
        ["is not JSON"],
    ),
    "config_too_deep": (
        lambda bad: (bad / "adapter_config.json").write_text("[" * 10**5),
        ["is not JSON"],
    ),
    "config_a_list": (
        lambda bad: (bad / "adapter_config.json").write_text("[]"),
        ["not a JSON object"],
    ),
    "not_there": (shutil.rmtree, ["no such file or directory"]),
}


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, sources: list[Path]) -> None:
    change, words = FILES[name]
    change(sources[1])
    refused(sources, str(sources[1]), *words)


def test_name_that_is_not_utf8(sources: list[Path]) -> None:
    """A recipe beside the output would have to hold it."""
    source = sources[1].rename(sources[1].with_name(os.fsdecode(b"\xff")))
    refused([sources[0], source], r"\udcff", "rename it")


@pytest.mark.parametrize("name", ["one\ntwo", "\x1b[2J", "\u65e5\u672c", "a\u00a0b"])
def test_name_of_any_other_characters(name: str, sources: list[Path], tmp_path: Path) -> None:
    source = sources[1].rename(sources[1].with_name(name))
    assert (
        gm.merge([sources[0], source], out=tmp_path / f"out{name}").path == tmp_path / f"out{name}"
    )


def test_bare_file_without_a_config(sources: list[Path]) -> None:
    (sources[1] / "adapter_config.json").unlink()
    bare = sources[1] / "adapter_model.safetensors"
    refused([sources[0], bare], str(bare), "no config next to it", "--alpha")
    refused([sources[0], bare], str(bare), "--base", alpha=6)
    refused([sources[0], bare], "3 alphas for 2 adapters", alpha=[1, 2, 3])


# --- configs -----------------------------------------------------------------------------------------------------

CONFIGS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "adalora": ({"peft_type": "ADALORA"}, ["ADALORA", "only LoRA"]),
    "loha": ({"peft_type": "LOHA"}, ["LOHA", "only LoRA"]),
    "ia3": ({"peft_type": "IA3"}, ["IA3", "only LoRA"]),
    "type_a_list": ({"peft_type": ["LORA"]}, ["LORA", "only LoRA"]),
    "pissa": (
        {"init_lora_weights": "pissa_niter_4"},
        ["pissa_niter_4", "changed the base weights"],
    ),
    "olora": ({"init_lora_weights": "olora"}, ["olora", "changed the base weights"]),
    "rank": ({"r": 4}, ["layers.0.q_proj", "rank 3 by its tensors", "4 by its config"]),
    "rank_pattern": (
        {"rank_pattern": {"v_proj": 5}},
        ["layers.1.v_proj", "rank 3 by its tensors", "5 by its config"],
    ),
    "experts_of_two_ranks": (
        {"target_parameters": ["q_proj.up", "q_proj.down"], "rank_pattern": {"q_proj.up": 6}},
        ["layers.0.q_proj.down", "layers.0.q_proj.up", "different ranks"],
    ),
    "experts_of_two_alphas": (
        {"target_parameters": ["q_proj.up", "q_proj.down"], "alpha_pattern": {"q_proj.up": 3}},
        ["layers.0.q_proj.down", "layers.0.q_proj.up", "different alphas"],
    ),
    "experts_of_no_whole_rank": (
        {"target_parameters": ["q_proj.up"], "r": 2},
        ["layers.0.q_proj", "(3, 6)"],
    ),
    "rank_a_text": ({"r": "3"}, ["r must be", "got '3'"]),
    "rank_pattern_sorted": (
        {"rank_pattern": {"0.q_proj": 2, "q_proj": 3}},
        ["0.q_proj", "correct r or rank_pattern"],
    ),
    "modules_to_save_a_number": (
        {"modules_to_save": 7},
        ["modules_to_save must be a list of names, got 7"],
    ),
    "rank_pattern_a_list": ({"rank_pattern": ["v_proj"]}, ["rank_pattern"]),
    "alpha_missing": ({"lora_alpha": None}, ["lora_alpha", "--alpha"]),
    "alpha_a_text": ({"lora_alpha": "6"}, ["lora_alpha must be", "got '6'"]),
    "alpha_true": ({"lora_alpha": True}, ["lora_alpha must be", "got True"]),
    "alpha_negative": ({"lora_alpha": -6}, ["lora_alpha must be", "got -6"]),
    "alpha_nan": ({"lora_alpha": math.nan}, ["lora_alpha must be", "got nan"]),
    "alpha_infinite": ({"lora_alpha": math.inf}, ["lora_alpha must be", "got inf"]),
    "alpha_beyond_floats": ({"lora_alpha": 10**400}, ["lora_alpha"]),
    "alpha_pattern_of_texts": ({"alpha_pattern": {"q_proj": "6"}}, ["layers.0.q_proj", "'6'"]),
    "pattern_not_regular": ({"alpha_pattern": {"(": 6}}, ["'('", "cannot be matched"]),
    "base_a_number": ({"base_model_name_or_path": 5}, ["base_model_name_or_path"]),
    "base_of_two_lines": ({"base_model_name_or_path": "a\nb"}, [r"a\nb"]),
}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, 3, 3), (4, 2, 3)),  # a kernel in B
        ((4, 3, 2), (5, 2, 1)),  # rows that two groups do not share
        ((4, 3, 2), (6, 3, 1)),  # a rank that no groups share
        ((2, 3, 2), (6, 4, 1)),  # of more than the rank
        ((2, 3, 2), (6, 2)),
    ],
)
def test_shapes_of_no_convolution(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    tensors = {"w.lora_A.weight": torch.ones(a), "w.lora_B.weight": torch.ones(b)}
    with pytest.raises(
        gm.GamMergeError, match=re.escape(f"module w has A {a} and B {b}, not (r, in) and (out, r)")
    ):
        from_state_dict(tensors, {"lora_alpha": 2})


FORMS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "a linear layer": ("", (2, 6), (4, 2), {}),
    "an embedding": ("embedding_", (2, 6), (4, 2), {}),
    "a convolution of kernel 3": ("", (2, 2, 3), (4, 2, 1), {}),
    "a convolution of kernel 1 x 2": ("", (2, 3, 1, 2), (4, 2, 1, 1), {}),
    "a convolution of kernel 3 in 2 groups": ("", (2, 2, 3), (4, 1, 1), {}),
    "the parameter up": ("", (2, 6), (4, 2), {"target_parameters": ["w.up"]}),
    "the parameter up of 3 experts": ("", (6, 6), (4, 6), {"target_parameters": ["w.up"]}),
    "the parameters down and up of 2 experts": (
        "",
        (4, 6),
        (4, 4),
        {"target_parameters": ["w.up", "w.down"]},
    ),
}


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(FORMS, 2)))
def test_unlike_layers(first: str, second: str) -> None:
    adapters = []
    for name, (kind, a, b, fields) in ((form, FORMS[form]) for form in (first, second)):
        suffix = "" if kind else ".weight"
        tensors = {
            f"w.lora_{kind}A{suffix}": torch.ones(a),
            f"w.lora_{kind}B{suffix}": torch.ones(b),
        }
        adapters.append(
            from_state_dict(tensors, {"r": 2, "lora_alpha": 2, **fields}, name=f"({name})")
        )
    gm.merge(adapters[:1])
    with pytest.raises(gm.GamMergeError) as error:
        gm.plan(adapters)
    assert (
        str(error.value)
        == f"module w is {first} in ({first}) and {second} in ({second}); leave one of them out"
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_configs(name: str, sources: list[Path]) -> None:
    fields, words = CONFIGS[name]
    change_config(sources[1], **fields)
    refused(sources, str(sources[1]), *words)


def test_pattern_that_never_ends(tmp_path: Path) -> None:
    """A regular expression from a stranger's file may take longer than the universe: it is stopped."""
    factors = {"q" * 80: random_factors(torch.Generator().manual_seed(0), 8, 6, 3, torch.float32)}
    evil = write_adapter(tmp_path / "evil", factors, alpha_pattern={"(?:(?:.|..)+)+(?<=!)": 6})
    with pytest.raises(gm.GamMergeError, match="cannot be matched: regex timed out"):
        gm.load(evil)


@given(st.lists(PATTERNS, unique=True, max_size=4), st.sampled_from(MODULES))
def test_patterns_are_matched_as_peft_matches_them(patterns: list[str], module: str) -> None:
    key = get_pattern_key(patterns, module)
    numbers = {pattern: i + 1 for i, pattern in enumerate(patterns)}
    a, b = (MemoryTensor(torch.ones(1, 1)) for _ in range(2))
    tensors = {f"base_model.model.{module}.lora_{x}.weight": t for x, t in [("A", a), ("B", b)]}
    config = {"r": 1, "lora_alpha": 99, "alpha_pattern": numbers}
    adapter = Peft().parse(Contents("x", "x", tensors, config=config))
    assert adapter.modules[module].scale == numbers.get(key, 99)


def test_two_base_models(sources: list[Path]) -> None:
    change_config(sources[0], base_model_name_or_path="org/one")
    change_config(sources[1], base_model_name_or_path="org/other")
    refused(
        sources, str(sources[0]), str(sources[1]), "org/one", "org/other", "--allow-base-mismatch"
    )
    assert gm.merge(sources, allow_base_mismatch=True).adapter.base_model == "org/one"


def test_a_base_model_that_is_not_known_matches_any(sources: list[Path]) -> None:
    change_config(sources[0], base_model_name_or_path=None)
    change_config(sources[1], base_model_name_or_path="org/other")
    assert gm.merge(sources).adapter.base_model == "org/other"


# --- arguments ---------------------------------------------------------------------------------------------------

ARGUMENTS: list[tuple[dict[str, Any], list[str]]] = [
    ({"method": "meam"}, ["'meam'", "did you mean 'mean'", "gam-merge methods"]),
    ({"weights": [1]}, ["1 weights for 2 adapters"]),
    ({"weights": [1, 2, 3]}, ["3 weights for 2 adapters"]),
    ({"weights": [1, -1]}, ["-1", "negative"]),
    ({"weights": [1, math.nan]}, ["nan"]),
    ({"weights": [1, math.inf]}, ["inf"]),
    ({"weights": [0, 0]}, ["zero"]),
    ({"weights": ["1", 1]}, ["'1'"]),
    ({"anchor": 2}, ["anchor must be", "got 2", "good", "bad"]),
    ({"anchor": -1}, ["anchor must be", "got -1"]),
    ({"anchor": "ugly"}, ["anchor must be", "got 'ugly'", "good", "bad"]),
    ({"anchor": 1.5}, ["anchor must be", "got 1.5"]),
    ({"anchor": 1, "weights": [1, 0]}, ["bad", "weight zero"]),
    ({"rank": 0}, ["rank must be", "got 0"]),
    ({"rank": -4}, ["rank must be", "got -4"]),
    ({"rank": 2.5}, ["rank must be", "got 2.5"]),
    ({"rank": "8"}, ["rank must be", "got '8'"]),
    ({"energy": "most"}, ["energy must be in (0, 1]", "got 'most'"]),
    ({"dtype": "int8"}, ["'int8'", "bf16", "float32"]),
    ({"dtype": torch.int32}, ["torch.int32", "bf16"]),
    ({"device": "abacus"}, ["'abacus'"]),
    ({"device": "cuda:99"}, ["'cuda:99'"]),
    ({"device": "meta"}, ["'meta'"]),
]


@pytest.mark.parametrize(
    ("arguments", "words"), ARGUMENTS, ids=[str(arguments) for arguments, _ in ARGUMENTS]
)
def test_arguments(arguments: dict[str, Any], words: list[str], sources: list[Path]) -> None:
    refused(sources, *words, **arguments)


def test_sources_that_are_none() -> None:
    with pytest.raises(gm.GamMergeError, match="no adapters"):
        gm.merge([])
    with pytest.raises(gm.GamMergeError, match="must be a list of adapters"):
        gm.merge("adapter")


# --- outputs -----------------------------------------------------------------------------------------------------


def test_output_that_exists(sources: list[Path], tmp_path: Path) -> None:
    for out in (tmp_path / "folder", tmp_path / "file"):
        out.mkdir() if out.name == "folder" else out.touch()
        before = tree(tmp_path)
        with pytest.raises(gm.GamMergeError, match=r"already exists.*--force") as error:
            gm.merge(sources, out=out)
        assert str(error.value).startswith(f"{out}: ")
        assert tree(tmp_path) == before


def test_output_that_cannot_be(sources: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = tree(tmp_path)
    for out in (tmp_path / "file" / "out", tmp_path / ("x" * 300), tmp_path / ("x" * 240)):
        with pytest.raises(gm.GamMergeError, match="cannot be written") as error:
            gm.merge(sources, out=out)
        assert str(error.value).startswith(f"{out}: ")
        assert tree(tmp_path) == before


def test_numbers_that_the_output_cannot_hold(tmp_path: Path) -> None:
    """An error, never Inf in the file; what just fits is written."""

    def adapter(name: str, size: float) -> Path:
        return write_adapter(
            tmp_path / name, {"x.w": (torch.full((2, 1), size), torch.full((1, 2), size))}
        )

    small, large = adapter("small", 0.999 * 65504), adapter("large", 1.001 * 65504)
    refused([large], "x.w", "float16", "does not fit", "bfloat16 or float32", dtype="fp16")
    result = gm.merge([small], out=tmp_path / "out", dtype="fp16")
    assert result.adapter.modules["x.w"].delta().isfinite().all()
