"""Public bug reports about LoRA files, by the number of the report: what was merged wrong, refused unfairly or misnamed.

The nightly run counts them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_factors, relative
from safetensors.torch import load_file, save_file
from torch import Tensor

import gam_merge as gm

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
MODULES = [f"model.layers.{i}.self_attn.{name}_proj" for i in (0, 1) for name in "qv"]
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "org/base",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
}
SCALE = 2.0

Tensors = dict[str, Tensor]


def factors(
    seed: int, modules: list[str] = MODULES, *, prefix: str = PREFIX, ranks: Any = lambda name: 4
) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for name in modules:
        b, a = random_factors(generator, 24, 16, ranks(name), torch.float32)
        tensors |= {f"{prefix}{name}.lora_A.weight": a, f"{prefix}{name}.lora_B.weight": b}
    return tensors


def write(path: Path, tensors: Tensors, **config: Any) -> Path:
    path.mkdir()
    save_file(tensors, path / WEIGHTS, {"format": "pt"})
    (path / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    return path


def pair(
    folder: Path, more: Any = lambda seed: {}, **config: Any
) -> tuple[list[Path], list[Tensors]]:
    """Two adapters of the usual factors and what else ``more`` gives for a seed."""
    tensors = [{**factors(seed), **more(seed)} for seed in (0, 1)]
    paths = [write(folder / x, t, **config) for x, t in zip("ab", tensors, strict=True)]
    return paths, tensors


def merged(folder: Path, sources: list[Path], **options: Any) -> Tensors:
    result = gm.merge(sources, method="mean", rank=8, out=folder / "out", **options)
    assert result.path is not None
    return load_file(result.path / WEIGHTS)


def delta(tensors: Mapping[str, Tensor], name: str, scale: float) -> Tensor:
    a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
    return scale * b.double() @ a.double()


def check_mean(
    out: Tensors, sources: list[Tensors], *, prefixes: tuple[str, str] = (PREFIX, PREFIX)
) -> None:
    """The output is half of each."""
    for name in MODULES:
        deltas = [delta(t, p + name, SCALE) for t, p in zip(sources, prefixes, strict=True)]
        assert relative(delta(out, PREFIX + name, 1.0), sum(deltas, start=0 * deltas[0]) / 2) < 1e-6


# Names


@pytest.mark.parametrize(
    "wrapped",
    [
        "_orig_mod.base_model.model.",
        "base_model.model._orig_mod.",
        "module.base_model.model.",
        "module._orig_mod.base_model.model.",
        "_fsdp_wrapped_module.base_model.model._fsdp_wrapped_module.",
        "base_model.model.base_model.model.",
        "base_model.model.module.",
        "_forward_module.base_model.model.",
    ],
)
@pytest.mark.parametrize("both", [True, False])
def test_wrappers_of_training(wrapped: str, both: bool, tmp_path: Path) -> None:
    """MakazhanAlpamys/Soup#335, #351: keys of a compiled model met nobody's, and were written so."""
    prefixes = (wrapped if both else PREFIX, wrapped)
    tensors = [factors(seed, prefix=prefix) for seed, prefix in enumerate(prefixes)]
    paths = [write(tmp_path / x, t) for x, t in zip("ab", tensors, strict=True)]
    notes = gm.load(paths[1]).notes
    assert len(notes) == 1
    assert "left out of the names" in notes[0]
    out = merged(tmp_path, paths)
    assert out.keys() == factors(0).keys()
    check_mean(out, tensors, prefixes=prefixes)


def test_wrappers_inside_a_name_and_in_patterns(tmp_path: Path) -> None:
    """FSDP wraps each layer, and PEFT then finds its patterns under the wrapped names."""
    inner = "_fsdp_wrapped_module._checkpoint_wrapped_module"
    tensors = {key.replace("layers.0", f"layers.0.{inner}"): t for key, t in factors(0).items()}
    pattern = (
        r"model\.layers\.0\._fsdp_wrapped_module\._checkpoint_wrapped_module\.self_attn\.q_proj"
    )
    path = write(tmp_path / "a", tensors, alpha_pattern={pattern: 40})
    modules = gm.load(path).modules
    assert sorted(modules) == sorted(MODULES)
    assert [modules[name].scale for name in MODULES] == [10.0, 2.0, 2.0, 2.0]


def test_a_module_that_is_called_module(tmp_path: Path) -> None:
    path = write(tmp_path / "a", factors(0, ["module", "x.module.y"]))
    assert sorted(gm.load(path).modules) == ["module", "x.module.y"]


def test_two_versions_of_transformers(tmp_path: Path) -> None:
    """vllm#34186, transformers#38927, colpali#424: one base under two names was merged into two halves."""
    names = [
        [name.replace("model.", head) for name in MODULES]
        for head in ("language_model.model.", "model.language_model.")
    ]
    tensors = [factors(seed, each) for seed, each in enumerate(names)]
    out = merged(tmp_path, [write(tmp_path / x, t) for x, t in zip("ab", tensors, strict=True)])
    for first, second in zip(*names, strict=True):
        deltas = [
            delta(t, PREFIX + name, SCALE) for t, name in zip(tensors, (first, second), strict=True)
        ]
        assert relative(delta(out, PREFIX + first, 1.0), (deltas[0] + deltas[1]) / 2) < 1e-6
    assert len(out) == len(tensors[0])


def test_keys_without_a_prefix(tmp_path: Path) -> None:
    """peft#3110: transformers' load_adapter saves keys without base_model.model."""
    tensors = [factors(0), factors(1, prefix="")]
    paths = [write(tmp_path / x, t) for x, t in zip("ab", tensors, strict=True)]
    check_mean(merged(tmp_path, paths), tensors, prefixes=(PREFIX, ""))


def test_an_adapter_named_lora(tmp_path: Path) -> None:
    """peft#2699: adapter_name="lora" saved q_proj_A.weight for q_proj.lora_A.weight."""
    tensors = {key.replace(".lora_", "_"): t for key, t in factors(0).items()}
    with pytest.raises(gm.GamMergeError, match=r"_proj_A\.weight"):
        gm.load(write(tmp_path / "a", tensors))


# Tensors that were lost


@pytest.mark.parametrize("shape", [(0,), (0, 16)])
@pytest.mark.parametrize("key", ["model.layers.0.self_attn.q_proj.lora_A.weight", "lm_head.weight"])
def test_empty_tensors(key: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """trl#4416, accelerate#3508, peft#2450: ZeRO-3 saved tensors without elements."""
    tensors = {**factors(0), "base_model.model.lm_head.weight": torch.ones(4, 4)}
    tensors[PREFIX + key] = torch.zeros(shape)
    path = write(tmp_path / "a", tensors, modules_to_save=["lm_head"])
    with pytest.raises(gm.GamMergeError, match=r"is empty.*ZeRO-3") as caught:
        gm.load(path)
    assert f"{PREFIX}{key} is empty, {shape}" in str(caught.value)


def test_a_saved_module_that_is_not_in_the_file(tmp_path: Path) -> None:
    """unsloth#3317, peft#310: the config lists a module, the file holds none of it."""
    for task, saved, named in (
        ("SEQ_CLS", ["score"], "score"),
        ("SEQ_CLS", ["classifier", "score"], "classifier or score"),
        ("CAUSAL_LM", ["embed_tokens", "lm_head"], "embed_tokens"),
    ):
        path = write(tmp_path / named, factors(0), task_type=task, modules_to_save=saved)
        with pytest.raises(gm.GamMergeError, match=f"modules_to_save names {named}, but"):
            gm.load(path)


def test_one_head_of_a_task_is_enough(tmp_path: Path) -> None:
    """PEFT lists classifier and score: a model has one of them."""
    head = {PREFIX + "classifier.weight": torch.ones(2, 16)}
    config = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]}
    gm.load(write(tmp_path / "a", {**factors(0), **head}, **config))


def test_one_end_of_tied_weights_is_enough(tmp_path: Path) -> None:
    saved = {PREFIX + "model.embed_tokens.weight": torch.ones(2, 16)}
    config = {"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}
    gm.load(write(tmp_path / "a", {**factors(0), **saved}, **config))


def test_a_slice_of_every_tensor(tmp_path: Path) -> None:
    """accelerate#4206, #3732: FSDP2 saved the first rank's part of A and B."""
    tensors = {key: t[: len(t) // 2].clone() for key, t in factors(0).items()}
    with pytest.raises(gm.GamMergeError, match="q_proj"):
        gm.load(write(tmp_path / "a", tensors))


def test_nan_from_end_to_end(tmp_path: Path) -> None:
    """ainode#186, unsloth#3690."""
    paths, _ = pair(tmp_path)
    nan = {key: t * torch.nan for key, t in factors(0).items()}
    paths.append(write(tmp_path / "c", nan))
    with pytest.raises(gm.GamMergeError, match=r"c: .*NaN|c.*NaN"):
        merged(tmp_path, paths)
    assert not (tmp_path / "out").exists()


# Modules saved whole


@pytest.mark.parametrize(
    ("task", "heads"),
    [
        ("SEQ_CLS", ["score.weight"]),
        ("SEQ_CLS", ["pre_classifier.weight", "pre_classifier.bias", "classifier.weight"]),
        ("TOKEN_CLS", ["classifier.weight", "classifier.bias"]),
        ("QUESTION_ANS", ["qa_outputs.weight", "qa_outputs.bias"]),
    ],
)
def test_heads_that_the_task_implies(task: str, heads: list[str], tmp_path: Path) -> None:
    """peft#577, #876: before 0.11 PEFT saved the head and did not list it in modules_to_save."""

    def head(seed: int) -> Tensors:
        generator = torch.Generator().manual_seed(seed)
        return {PREFIX + name: torch.randn(3, 16, generator=generator) for name in heads}

    paths, tensors = pair(tmp_path, head, task_type=task, modules_to_save=None)
    out = merged(tmp_path, paths)
    check_mean(out, tensors)
    for name in heads:
        key = PREFIX + name
        assert relative(out[key], (tensors[0][key] + tensors[1][key]) / 2) < 1e-6
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert heads[0].partition(".")[0].removeprefix("pre_") in config["modules_to_save"]
    gm.load(tmp_path / "out")


def test_a_head_without_its_task_is_refused(tmp_path: Path) -> None:
    head = {PREFIX + "score.weight": torch.ones(3, 16)}
    with pytest.raises(gm.GamMergeError, match=r"score\.weight is not part"):
        gm.load(write(tmp_path / "a", {**factors(0), **head}, task_type="CAUSAL_LM"))


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_counters_of_batch_norms(dtype: str | None, pickled: bool, tmp_path: Path) -> None:
    """peft#1732, #1734: batch norms in modules_to_save have an integer, num_batches_tracked."""
    norm = PREFIX + "resnet.embedder.normalization."

    def batch_norm(seed: int) -> Tensors:
        return {
            norm + "running_mean": torch.full((16,), float(seed)),
            norm + "running_var": torch.full((16,), 1.0 + seed),
            norm + "num_batches_tracked": torch.tensor(5 + 3 * seed),
        }

    paths, tensors = pair(tmp_path, batch_norm, modules_to_save=["normalization"])
    if pickled:
        for path, content in zip(paths, tensors, strict=True):
            (path / WEIGHTS).unlink()
            torch.save(content, path / "adapter_model.bin")
    out = merged(tmp_path, paths, weights=[3, 1], dtype=dtype)
    assert torch.equal(out[norm + "running_mean"].float(), torch.full((16,), 0.25))
    assert out[norm + "num_batches_tracked"].dtype == torch.int64
    assert out[norm + "num_batches_tracked"].item() == 6  # 0.75 * 5 + 0.25 * 8 = 5.75, rounded
    gm.load(tmp_path / "out")


@pytest.mark.parametrize("value", [torch.tensor(3), torch.ones(1, 1, dtype=torch.bool)])
def test_other_integers_are_refused(value: Tensor, tmp_path: Path) -> None:
    """Only what is saved with a module may be a counter: factors are floats."""
    tensors = {
        PREFIX + "w.lora_A.weight": value.reshape(1, 1),
        PREFIX + "w.lora_B.weight": torch.ones(1, 1),
    }
    with pytest.raises(
        gm.GamMergeError, match=r"w\.lora_A\.weight is stored as (int64|bool); convert"
    ):
        gm.load(write(tmp_path / "a", tensors, r=1))
    saved = {**factors(0), PREFIX + "norm.flag": torch.tensor(True)}
    with pytest.raises(gm.GamMergeError, match=r"norm\.flag is stored as bool"):
        gm.load(write(tmp_path / "b", saved, modules_to_save=["norm"]))


def test_embeddings_of_two_sizes(tmp_path: Path) -> None:
    """axolotl#2277, unsloth#978: a vocabulary that grew in one of them."""
    paths, _ = pair(tmp_path, lambda seed: {PREFIX + "lm_head.weight": torch.ones(66 + seed, 16)})
    with pytest.raises(gm.GamMergeError, match=r"lm_head\.weight is \(66, 16\).*\(67, 16\)"):
        merged(tmp_path, paths)


def test_modules_that_peft_does_not_combine(tmp_path: Path) -> None:
    """OpenBMB/MiniCPM-V#809: two adapters with the same modules_to_save."""

    def resampler(seed: int) -> Tensors:
        return {PREFIX + f"resampler.{name}": torch.full((4, 4), 4.0 * seed) for name in ("a", "b")}

    paths, _ = pair(tmp_path, resampler, modules_to_save=["resampler"])
    out = merged(tmp_path, paths, weights=[0.75, 0.25])
    assert all(bool((out[PREFIX + f"resampler.{name}"] == 1.0).all()) for name in ("a", "b"))


@pytest.mark.parametrize("first", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("second", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("widened", [False, True])
def test_copies_of_the_base(
    first: torch.dtype, second: torch.dtype, widened: bool, tmp_path: Path
) -> None:
    """vllm#32599, llama.cpp#5602: lm_head.base_layer.weight next to its factors, in any dtype."""
    key = PREFIX + "lm_head.base_layer.weight"
    weight = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    dtypes = (first, second)

    def copy(seed: int) -> Tensors:
        rounded = weight.to(dtypes[seed])
        return {key: rounded.float() if widened else rounded}

    paths, tensors = pair(tmp_path, copy)
    out = merged(tmp_path, paths)
    assert key not in out
    check_mean(out, tensors)
    other = {**factors(2), key: (weight * 1.02).to(second)}
    with pytest.raises(gm.GamMergeError, match="of the base differs"):
        gm.merge([paths[0], write(tmp_path / "c", other)])


def test_copies_of_two_bases_of_one_dtype(tmp_path: Path) -> None:
    """Nothing is rounded between equal dtypes: one step of a float32 is a difference."""
    key = PREFIX + "lm_head.base_layer.weight"
    weight = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    paths, _ = pair(tmp_path, lambda seed: {key: weight * (1 + 2e-7 * seed)})
    with pytest.raises(gm.GamMergeError, match="of the base differs"):
        gm.merge(paths)


def test_unlike_heads_can_be_compared(tmp_path: Path) -> None:
    """Heads of 2 and 6 classes stop a merge, not a comparison of the factors."""
    config = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]}
    paths, _ = pair(
        tmp_path,
        lambda seed: {PREFIX + "classifier.weight": torch.ones(2 + 4 * seed, 16)},
        **config,
    )
    comparison = gm.compare(paths)
    (tmp_path / "plain").mkdir()
    plain, _ = pair(tmp_path / "plain")
    expected = gm.compare(plain)
    assert comparison.to_dict()["cosine"] == expected.to_dict()["cosine"]
    (note,) = comparison.merge_notes
    assert "a merge would be refused" in note
    assert "(2, 16)" in note
    assert not expected.merge_notes
    with pytest.raises(gm.GamMergeError, match=r"\(2, 16\).*\(6, 16\)"):
        gm.merge(paths)


# Configs


@pytest.mark.parametrize(
    "fields",
    [
        {"lorap_lr_ratio": 16.0, "lorap_emb_lr": 1e-6, "lora_dtype": "bfloat16"},
        {"swift_type": "LORA", "model_type": "qwen2_5", "model_key_mapping": None},
        {"merge_weights": True},
        {"something_of_2027": None, "more_of_2027": {}, "flag_of_2027": False},
    ],
)
def test_fields_of_others_that_change_no_factor(fields: dict[str, Any], tmp_path: Path) -> None:
    """peft#2208, #2275, textgen#6819, and the configs of ms-swift."""
    paths, tensors = pair(tmp_path, **fields)
    check_mean(merged(tmp_path, paths), tensors)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"kind_of_2027": "strange"}, "kind_of_2027"),
        ({"enable_lora": [True, False, True]}, "enable_lora"),
        ({"peft_type": None, "swift_type": "LONGLORA"}, "LONGLORA"),
        ({"use_qa_lora": True}, "use_qa_lora"),
    ],
)
def test_fields_of_others_that_may_change_factors(
    fields: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(gm.GamMergeError, match=named):
        gm.load(write(tmp_path / "a", factors(0), **fields))


ORIGINAL = "Qwen/Qwen2.5-7B-Instruct"


@pytest.mark.parametrize(
    ("other", "note"),
    [
        ("", False),
        ("  ", False),
        ("qwen/qwen2.5-7b-instruct", False),
        ("Qwen/Qwen2.5-7B-Instruct/", False),
        ("unsloth/Qwen2.5-7B-Instruct-bnb-4bit", True),
        ("unsloth/qwen2.5-7b-instruct-unsloth-bnb-4bit", True),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", True),
        ("AAA/Qwen2.5-7B-Instruct-4bit", True),  # first by alphabet
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", True),
        ("Qwen/Qwen2.5-7B-Instruct-FP8-dynamic", True),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_names_of_one_base_model(other: str, note: bool, turned: bool, tmp_path: Path) -> None:
    """The output names the original, wherever that stands."""
    names = (other, ORIGINAL) if turned else (ORIGINAL, other)
    paths = [
        write(tmp_path / x, factors(i), base_model_name_or_path=names[i])
        for i, x in enumerate("ab")
    ]
    result = gm.merge(paths, out=tmp_path / "out")
    written = gm.load(tmp_path / "out").base_model
    assert written is not None
    assert written.rstrip("/").lower() == ORIGINAL.lower()
    assert any("taken as a quantised copy" in text for text in result.report.notes) is note
    if note:
        assert written == ORIGINAL
    recipe = (tmp_path / "out" / "gam_merge_recipe.yaml").read_text()
    assert "allow_base_mismatch" not in recipe


@pytest.mark.parametrize(
    "names",
    [
        (ORIGINAL, "Qwen/Qwen2.5-7B"),
        (ORIGINAL, "someone/Qwen2.5-7B-Instruct"),
        (ORIGINAL, "unsloth/Qwen2.5-14B-Instruct-bnb-4bit"),
        ("a/ViT-B-32", "a/ViT-B"),
        ("x/model-dynamic", "x/model"),
        # each is like the copy, but not like the other
        ("unsloth/X-bnb-4bit", "one/X", "two/X"),
    ],
)
def test_names_of_two_base_models(names: tuple[str, ...], tmp_path: Path) -> None:
    paths = [
        write(tmp_path / str(i), factors(i), base_model_name_or_path=name)
        for i, name in enumerate(names)
    ]
    with pytest.raises(gm.GamMergeError, match="--allow-base-mismatch"):
        gm.plan(paths)
    assert gm.plan(paths, allow_base_mismatch=True).modules


def test_patterns_are_regular_expressions(tmp_path: Path) -> None:
    """axolotl#3673: rank_pattern and alpha_pattern as PEFT matches them."""
    names = [f"model.layers.{i}.self_attn.q_proj" for i in (3, 7, 13)]
    pattern = r".*\.layers\.3\..*(q_proj|k_proj|v_proj|o_proj)$"
    tensors = factors(0, names, ranks=lambda name: 12 if ".3." in name else 8)
    config = {
        "r": 8,
        "lora_alpha": 16,
        "rank_pattern": {pattern: 12},
        "alpha_pattern": {pattern: 48},
    }
    modules = gm.load(write(tmp_path / "a", tensors, **config)).modules
    assert [modules[name].scale for name in names] == [4.0, 2.0, 2.0]


def test_the_scale_of_rslora_is_kept(tmp_path: Path) -> None:
    """paiml/aprender#2111, exllamav2#619."""
    tensors = factors(0)
    path = write(tmp_path / "a", tensors, use_rslora=True)
    gm.resize(path, rank=8, out=tmp_path / "out")
    out = load_file(tmp_path / "out" / WEIGHTS)
    for name in MODULES:  # 8 / sqrt(4)
        assert relative(delta(out, PREFIX + name, 1.0), delta(tensors, PREFIX + name, 4.0)) < 1e-6


# Files


def test_metadata_that_is_null(tmp_path: Path) -> None:
    """fastsafetensors#96, and what MLX writes."""
    paths, tensors = pair(tmp_path)
    for path in paths:
        file = path / WEIGHTS
        content = file.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        header["__metadata__"] = None
        raw = json.dumps(header).encode()
        file.write_bytes(len(raw).to_bytes(8, "little") + raw + content[8 + length :])
    check_mean(merged(tmp_path, paths), tensors)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 159967880\n"
HTML = b"\n<!DOCTYPE html>\n<html><head><title>Not Found</title></head></html>"


def _pickle(folder: Path, *, legacy: bool = False) -> bytes:
    torch.save(factors(0), folder / "x.bin", _use_new_zipfile_serialization=not legacy)
    return (folder / "x.bin").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (WEIGHTS, LFS, "Git LFS pointer.*git lfs pull"),
        ("adapter_model.bin", LFS, "Git LFS pointer.*git lfs pull"),
        ("adapter_config.json", LFS, "Git LFS pointer.*git lfs pull"),
        (WEIGHTS, HTML, "HTML page"),
        ("adapter_model.bin", HTML, "HTML page"),
        ("adapter_config.json", HTML, "HTML page"),
        (WEIGHTS, b'{"error": "Repository not found"}', "JSON text"),
        (WEIGHTS, b"\x1f\x8b\x08" + bytes(60), "gzip"),
        (WEIGHTS, b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML text"),
        ("adapter_model.bin", b"GGUF" + bytes(60), "GGUF file by another name; .*gguf"),
        (WEIGHTS, "zip", "pickle of torch.save by another name; rename it to end in .bin"),
        (WEIGHTS, "legacy", "pickle of torch.save by another name; rename it to end in .bin"),
        ("adapter_model.bin", "zip cut", "pickle.* cut off; download it again"),
        ("adapter_model.bin", "legacy cut", "pickle.* cut off; download it again"),
        ("adapter_model.bin", "safetensors", "safetensors file by another name"),
    ],
)
def test_what_a_file_is(name: str, content: Any, expected: str, tmp_path: Path) -> None:
    """AUTOMATIC1111#8123, MFTCoder#20 and 17 repositories: a pointer was called a broken download."""
    path = write(tmp_path / "a", factors(0))
    if content == "safetensors":
        content = (path / WEIGHTS).read_bytes()
    elif isinstance(content, str):
        kind, _, cut = content.partition(" ")
        content = _pickle(tmp_path, legacy=kind == "legacy")
        content = content[: len(content) // 2] if cut else content
    if name == "adapter_model.bin":
        (path / WEIGHTS).unlink()
    (path / name).write_bytes(content)
    with pytest.raises(gm.GamMergeError, match=expected) as caught:
        gm.load(path)
    assert str(path / name) in str(caught.value)


MODEL = {"model.embed_tokens.weight": torch.ones(4, 4), "model.norm.weight": torch.ones(4)}


def test_a_whole_model_is_not_an_adapter(tmp_path: Path) -> None:
    for name in ("model.safetensors", WEIGHTS):
        folder = tmp_path / name
        folder.mkdir()
        save_file(MODEL, folder / name)
        if name == WEIGHTS:
            (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
        with pytest.raises(gm.GamMergeError, match=r"whole model .*not an adapter; .*extract"):
            gm.load(folder)
    with pytest.raises(gm.GamMergeError, match=r"whole model \(model\.norm\.weight\)"):
        gm.load(tmp_path / "model.safetensors" / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("model.safetensors", torch.int32),
        ("model.safetensors", torch.uint8),
        ("model.safetensors", torch.float8_e4m3fn),
        ("model.bin", torch.int32),
        ("model.bin", torch.uint8),
    ],
)
def test_a_quantised_model_is_not_an_adapter(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """GPTQ, bitsandbytes, FP8: it is named before its dtypes, which nobody should convert."""
    tensors = {"model.layers.0.mlp.down_proj.qweight": torch.zeros(4, 4).to(dtype), **MODEL}
    save = torch.save if name == "model.bin" else save_file
    save(tensors, tmp_path / name)
    with pytest.raises(gm.GamMergeError, match=r"whole model .*not an adapter; .*extract"):
        gm.load(tmp_path / name)


def test_a_checkpoint_of_a_trainer_is_not_an_adapter(tmp_path: Path) -> None:
    torch.save({"state_dict": factors(0), "epoch": 3}, tmp_path / "last.ckpt")
    with pytest.raises(gm.GamMergeError, match=r"holds state_dict, which is not a tensor \(dict\)"):
        gm.load(tmp_path / "last.ckpt")


def test_a_sharded_model_is_not_an_adapter(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {}}))
    for i in (1, 2):
        save_file(MODEL, tmp_path / f"model-0000{i}-of-00002.safetensors")
    with pytest.raises(gm.GamMergeError, match=r"whole model \(model\.safetensors\.index\.json\)"):
        gm.load(tmp_path)
    with pytest.raises(gm.GamMergeError, match="index of a model in several files"):
        gm.load(index)


def test_a_config_is_not_an_adapter(tmp_path: Path) -> None:
    path = write(tmp_path / "a", factors(0))
    with pytest.raises(gm.GamMergeError, match=r"is a config, not weights; name .* the directory"):
        gm.load(path / "adapter_config.json")


def test_other_kinds_of_peft_keep_their_names(tmp_path: Path) -> None:
    """LN tuning holds norms alone: not a whole model."""
    tensors = {PREFIX + "model.norm.weight": torch.ones(4)}
    with pytest.raises(gm.GamMergeError, match="LN_TUNING"):
        gm.load(write(tmp_path / "a", tensors, peft_type="LN_TUNING"))


def test_torchtune(tmp_path: Path) -> None:
    names = [f"layers.0.attn.q_proj.lora_{x}.weight" for x in "ab"]
    save_file(
        dict.fromkeys(names, torch.ones(2, 2)) | {names[1]: torch.zeros(2, 2)},
        tmp_path / "a.safetensors",
    )
    with pytest.raises(gm.GamMergeError, match=r"torchtune .*adapter_model\.safetensors"):
        gm.load(tmp_path / "a.safetensors")


# Servers


def test_experts_are_not_served(tmp_path: Path) -> None:
    """vllm#41384, #52194, #52198: experts by target_parameters are dropped, or break it."""
    stem = PREFIX + "model.layers.0.mlp.experts"

    def experts(seed: int) -> Tensors:
        tensors: Tensors = {}
        for module, rows in ((f"{stem}.base_layer", 24), (stem, 16)):
            tensors[f"{module}.lora_A.weight"] = torch.ones(16, 16 if rows == 24 else 12)
            tensors[f"{module}.lora_B.weight"] = torch.ones(rows, 16)
        return tensors

    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    paths, _ = pair(tmp_path, experts, target_parameters=targets)
    with pytest.raises(gm.GamMergeError, match="vllm does not serve LoRA on experts"):
        gm.plan(paths, target="vllm")
    assert gm.plan(paths).modules
