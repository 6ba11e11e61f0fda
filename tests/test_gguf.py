"""GGUF adapters: read, merged and written, read back by the library gguf, and run by llama.cpp."""

import builtins
import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from helpers import relative
from hub_server import connected
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import gam_merge as gm
from gam_merge._translate import gguf as names

PROMPTS = [[1, 5, 9, 13], [1, 40, 41, 42, 43, 44, 45]]
SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,  # activations of size one, so that a wrong delta shows
}
GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 64}
# llama.cpp's architecture, transformers' config and model, settings besides the sizes
KINDS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "llama": ("llama", "LlamaConfig", "LlamaForCausalLM", {"head_dim": 32}),
    "mistral": ("llama", "MistralConfig", "MistralForCausalLM", {"head_dim": 32}),
    "qwen2": ("qwen2", "Qwen2Config", "Qwen2ForCausalLM", {}),
    "qwen3": ("qwen3", "Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 32}),
    "gemma2": ("gemma2", "Gemma2Config", "Gemma2ForCausalLM", GEMMA),
    "gemma3": ("gemma3", "Gemma3TextConfig", "Gemma3ForCausalLM", GEMMA),
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def model(kind: str) -> Any:
    torch.manual_seed(0)
    _, config, causal, settings = KINDS[kind]
    sizes = {**SIZES, "tie_word_embeddings": kind.startswith("gemma"), **settings}
    return getattr(transformers, causal)(getattr(transformers, config)(**sizes)).eval()


def base_config(path: Path, kind: str) -> Path:
    """The directory of a base model, of which nothing but the config is needed."""
    base = model(kind)
    base.config.architectures = [type(base).__name__]
    base.config.save_pretrained(path)
    return path


def trained(path: Path, kind: str, *, seed: int = 0, **config: Any) -> Path:
    """An adapter as PEFT saves it, with random factors."""
    targets = LINEAR if kind.startswith("gemma") else [*LINEAR, "embed_tokens", "lm_head"]
    settings = {"target_modules": targets, "r": 4, "lora_alpha": 6, **config}
    adapted = get_peft_model(model(kind), LoraConfig(**settings))
    torch.manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(path, save_embedding_layers=False)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of the architecture llama, and two adapters of PEFT on it, of unlike ranks."""
    path = tmp_path_factory.mktemp("gguf")
    base_config(path / "base", "llama")
    trained(path / "a", "llama", seed=1)
    trained(path / "b", "llama", seed=2, r=2, lora_alpha=8, target_modules=["q_proj", "up_proj"])
    for name in ("a", "b"):
        gm.convert(path / name, out=path / f"{name}.gguf", base_model=str(path / "base"))
    return path


def stored(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a file as the library reads them."""
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}


def fields(path: Path) -> dict[str, Any]:
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}


def deltas(path: Path) -> dict[str, NDArray[np.float64]]:
    """What llama.cpp adds to each tensor: alpha over the rank times B A."""
    tensors, alpha = stored(path), fields(path)["adapter.lora.alpha"]
    result = {}
    for name, a in tensors.items():
        if name.endswith(".lora_a"):
            b = tensors[name[:-1] + "b"].astype(np.float64)
            a = a.T if name.startswith("token_embd") else a
            result[name.removesuffix(".lora_a")] = alpha / b.shape[1] * b @ a
    return result


def permuted(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """``LlamaModel.permute`` of llama.cpp's conversion/llama.py."""
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)


def test_tensors_and_metadata(folder: Path) -> None:
    """Names, shapes and order of rows as convert_lora_to_gguf.py writes them."""
    tensors, module = stored(folder / "a.gguf"), "model.layers.1.self_attn.k_proj"
    source = gm.load(folder / "a").modules[module]
    _, a = source.factors(torch.float32)
    assert np.array_equal(tensors["blk.1.attn_k.weight.lora_a"], a[0])
    expected = permuted(source.delta().numpy(), 2)
    assert np.allclose(deltas(folder / "a.gguf")["blk.1.attn_k.weight"], expected, atol=1e-6)
    assert tensors["token_embd.weight.lora_a"].shape == (64, 4)
    assert tensors["token_embd.weight.lora_b"].shape == (64, 4)
    assert "output.weight.lora_a" in tensors
    written = fields(folder / "a.gguf")
    assert written["general.architecture"] == "llama"
    assert (written["general.type"], written["adapter.type"]) == ("adapter", "lora")
    assert written["adapter.lora.alpha"] == 4.0  # the rank: all scales are 1


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_every_delta_and_name_stays(kind: str, tmp_path: Path) -> None:
    base = str(base_config(tmp_path / "base", kind))
    source = gm.load(trained(tmp_path / "peft", kind))
    gm.convert(tmp_path / "peft", out=tmp_path / "x.gguf", base_model=base)
    back = gm.convert(tmp_path / "x.gguf", format="peft", out=tmp_path / "back", base_model=base)
    assert back.adapter.modules.keys() == source.modules.keys()
    for name, module in back.adapter.modules.items():
        assert relative(module.delta(), source.modules[name].delta()) < 1e-6
        assert module.layout == source.modules[name].layout


def merged_deltas(folder: Path, weights: tuple[float, float]) -> dict[str, NDArray[np.float64]]:
    first, second = deltas(folder / "a.gguf"), deltas(folder / "b.gguf")
    return {n: weights[0] * first[n] + weights[1] * second.get(n, 0.0) for n in first}


def test_weighted_mean(folder: Path, tmp_path: Path) -> None:
    """Through the file on disk, without the base: rows are merged as they lie there."""
    sources = [folder / "a.gguf", folder / "b.gguf"]
    gm.merge(sources, method="mean", weights=[0.3, 0.7], rank=6, out=tmp_path / "out")
    merged = deltas(tmp_path / "out" / "adapter.gguf")
    for name, expected in merged_deltas(folder, (0.3, 0.7)).items():
        assert np.abs(merged[name] - expected).max() < 1e-5


def test_together_with_an_adapter_of_peft(folder: Path, tmp_path: Path) -> None:
    """Either way: into the format that is named, by the config of the base."""
    sources, base = [folder / "a.gguf", folder / "b"], str(folder / "base")
    weights = {"method": "mean", "weights": [0.5, 0.5], "rank": 6, "base_model": base}
    allowed = {"allow_base_mismatch": True}  # PEFT names no base here
    gm.merge(sources, out=tmp_path / "m.gguf", **weights, **allowed)
    merged = deltas(tmp_path / "m.gguf")
    for name, expected in merged_deltas(folder, (0.5, 0.5)).items():
        assert np.abs(merged[name] - expected).max() < 1e-5
    other = gm.merge(sources, format="peft", **weights, **allowed).adapter
    again = gm.load(tmp_path / "m.gguf")
    back = gm.convert(again, format="peft", base_model=base).adapter
    for name, module in other.modules.items():
        assert relative(module.delta(), back.modules[name].delta()) < 1e-5


def test_the_other_verbs(folder: Path, tmp_path: Path) -> None:
    pair, out = [folder / "a.gguf", folder / "b.gguf"], tmp_path / "m.gguf"
    assert gm.inspect(pair[0]).problems == ()
    assert gm.compare(pair).modules
    assert gm.resize(pair[0], rank=2, out=tmp_path / "small").adapter.rank == 2
    gm.merge(pair, method="mean", out=out)
    assert gm.verify(out, rerun=True).holds
    gm.merge(pair, method="mean", rank=3, out=out, force=True)  # it is recognised as ours
    assert gm.load(out).rank == 3
    recipe = tmp_path / "m.gam-merge" / "gam_merge_recipe.yaml"
    gm.merge_recipe(recipe, out=tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == out.read_bytes()


def test_a_translated_merge_is_repeated_from_its_recipe(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    gm.convert(folder / "a", out=out, base_model=str(folder / "base"))
    assert gm.verify(out, rerun=True).holds


def test_another_file_of_the_user_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.gguf"
    write(mine, pair(12, 8, 4))
    before = mine.read_bytes()
    with pytest.raises(gm.GamMergeError, match="--force does not replace it"):
        gm.merge([folder / "a.gguf"], method="mean", out=mine, force=True)
    assert mine.read_bytes() == before


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype: str, folder: Path, tmp_path: Path) -> None:
    gm.convert(folder / "a.gguf", out=tmp_path / "h.gguf", dtype=dtype)
    assert {t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "h.gguf").tensors} == {
        {"float16": "F16", "bfloat16": "BF16"}[dtype]
    }
    half, whole = gm.load(tmp_path / "h.gguf"), gm.load(folder / "a.gguf")
    for name, module in whole.modules.items():
        assert relative(half.modules[name].delta(), module.delta()) < 2**-7


Tensors = dict[str, NDArray[Any]]


def write(path: Path, tensors: Tensors, arch: str = "llama", **changed: Any) -> Path:
    """A file as the library writes it. changed: fields with ``__`` for dots; None leaves one out."""
    values = {"general.type": "adapter", "adapter.type": "lora"}
    values |= {key.replace("__", "."): value for key, value in changed.items()}
    writer = gguf.GGUFWriter(path, arch)
    adders = {str: writer.add_string, float: writer.add_float32, list: writer.add_array}
    for key, value in values.items():
        if value is not None:
            adders[type(value)](key, value)
    for name, tensor in tensors.items():
        q8 = gguf.GGMLQuantizationType.Q8_0 if tensor.dtype == np.uint8 else None
        writer.add_tensor(name, tensor, raw_dtype=q8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pair(m: int, n: int, r: int, name: str = "blk.0.ffn_up.weight") -> Tensors:
    generator = np.random.default_rng(0)
    return {
        f"{name}.lora_a": generator.normal(size=(r, n)).astype(np.float32),
        f"{name}.lora_b": generator.normal(size=(m, r)).astype(np.float32),
    }


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (0.0, 1.0), (8.0, 2.0)])
def test_alpha(alpha: float | None, scale: float, tmp_path: Path) -> None:
    """Of an architecture that is not translated: names and rows do not matter for a merge."""
    file = write(tmp_path / "x.gguf", pair(12, 8, 4), arch="olmo", adapter__lora__alpha=alpha)
    assert gm.load(file).modules["blk.0.ffn_up"].scale == scale
    result = gm.merge([file], method="mean", out=tmp_path / "out")
    assert result.adapter.config["general.architecture"] == "olmo"
    assert (
        relative(
            result.adapter.modules["blk.0.ffn_up"].delta(),
            gm.load(file).modules["blk.0.ffn_up"].delta(),
        )
        < 1e-6
    )


def test_quantised_factors_are_unpacked(tmp_path: Path) -> None:
    q8 = gguf.GGMLQuantizationType.Q8_0
    blocks = {name: gguf.quantize(value, q8) for name, value in pair(96, 64, 32).items()}
    a, b = (gguf.dequantize(value, q8).astype(np.float64) for value in blocks.values())
    adapter = gm.load(write(tmp_path / "q.gguf", blocks))
    assert adapter.dtype == torch.float32
    assert np.array_equal(adapter.modules["blk.0.ffn_up"].delta(), b @ a)
    gm.merge([adapter], method="mean", out=tmp_path / "out")
    assert (
        np.abs(deltas(tmp_path / "out" / "adapter.gguf")["blk.0.ffn_up.weight"] - b @ a).max()
        < 1e-4
    )


def test_norms_are_left_out_as_llama_cpp_does(tmp_path: Path) -> None:
    norm = {"blk.0.attn_norm.weight": np.ones(8, np.float32)}
    adapter = gm.load(write(tmp_path / "n.gguf", {**norm, **pair(12, 8, 4)}))
    assert list(adapter.modules) == ["blk.0.ffn_up"]
    assert adapter.notes == (
        "leaves out 1 norms, which llama.cpp ignores (blk.0.attn_norm.weight)",
    )


# ---- llama.cpp


def expected(kind: str, adapter: Path) -> NDArray[np.float64]:
    """What transformers with PEFT expects after each prompt: (prompts, vocabulary)."""
    adapted = PeftModel.from_pretrained(model(kind), adapter).eval()
    rows = []
    for prompt in PROMPTS:
        with torch.no_grad():
            logits = adapted(torch.tensor([prompt])).logits[0, -1]
        rows.append(logits.double().log_softmax(-1).numpy())
    return np.array(rows)


def in_llama_cpp(kind: str, folder: Path, adapter: Path | None) -> NDArray[np.float64]:
    pytest.importorskip("xllamacpp")
    from llama_cpp import log_probabilities, write_base

    base = folder / "base.gguf"
    if not base.exists():
        write_base(model(kind), KINDS[kind][0], base)
    return log_probabilities(base, PROMPTS, adapter)


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_computes_what_peft_does(kind: str, tmp_path: Path) -> None:
    """All modules that the architecture has. The adapter changes log-probabilities by more than 4.

    In float32 both agree to 1e-5. llama.cpp looks up the GELU of Gemma in a table of half-precision floats, which
    makes up to 3e-3 without any adapter.
    """
    tolerance = 1e-2 if kind.startswith("gemma") else 1e-4
    peft = trained(tmp_path / "peft", kind)
    base = base_config(tmp_path / "base", kind)
    gm.convert(peft, out=tmp_path / "x.gguf", base_model=str(base))
    with_adapter = in_llama_cpp(kind, tmp_path, tmp_path / "x.gguf")
    without = in_llama_cpp(kind, tmp_path, None)
    assert np.abs(with_adapter - expected(kind, peft)).max() < tolerance
    assert np.abs(without - expected(kind, peft)).max() > 1


def test_without_the_permutation_llama_cpp_computes_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = trained(tmp_path / "peft", "llama", target_modules=["q_proj", "k_proj"])
    base = base_config(tmp_path / "base", "llama")
    monkeypatch.setattr(names, "_interleaved", lambda heads, b: b)
    gm.convert(peft, out=tmp_path / "x.gguf", base_model=str(base))
    wrong = in_llama_cpp("llama", tmp_path, tmp_path / "x.gguf")
    assert np.abs(wrong - expected("llama", peft)).max() > 0.1


def test_llama_cpp_runs_a_merge(folder: Path, tmp_path: Path) -> None:
    """The merge of two, as a directory."""
    pair, peft = [folder / "a.gguf", folder / "b.gguf"], [folder / "a", folder / "b"]
    gm.merge(pair, method="mean", rank=6, out=tmp_path / "out")
    gm.merge(peft, method="mean", rank=6, out=tmp_path / "peft")
    result = in_llama_cpp("llama", tmp_path, tmp_path / "out" / "adapter.gguf")
    assert np.abs(result - expected("llama", tmp_path / "peft")).max() < 1e-4


# ---- the base model


def test_the_base_that_the_adapter_names_is_asked(folder: Path, tmp_path: Path) -> None:
    """On the Hub, for its config alone; the recipe names it at its commit if the user named it."""
    config = (folder / "base" / "config.json").read_bytes()
    given = tmp_path / "given"
    trained(given, "llama", target_modules=["q_proj"])
    file = given / "adapter_config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "org/base"})
    )
    with pytest.MonkeyPatch.context() as patch, connected(tmp_path / "cache", patch) as hub:
        commit = hub.add("org/base", {"config.json": config, "model.safetensors": b"huge"})
        result = gm.convert(given, out=tmp_path / "x.gguf")
        assert not hub.asked("model.safetensors")
        assert result.record.base is None
        again = gm.convert(given, out=tmp_path / "y.gguf", base_model="org/base")
        assert str(again.record.base) == f"org/base@{commit}"
    assert gm.load(tmp_path / "x.gguf").base_model == "org/base"
    assert stored(tmp_path / "x.gguf").keys() == stored(tmp_path / "y.gguf").keys()


def changed_base(folder: Path, path: Path, **fields: Any) -> str:
    path.mkdir()
    config = json.loads((folder / "base" / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **fields}))
    return str(path)


CONVERTER = r"llama\.cpp's convert_lora_to_gguf\.py"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["OlmoForCausalLM"]}, f"got 'OlmoForCausalLM'.*{CONVERTER}"),
        ({"architectures": None}, f"got None.*{CONVERTER}"),
        ({"architectures": [["LlamaForCausalLM"]]}, f"got .*{CONVERTER}"),
        ({"num_attention_heads": 7}, r"blk\.0\.attn_q has 128 rows, not 7 heads of an even size"),
        ({"num_attention_heads": "4"}, "num_attention_heads must be an integer from 1 to 1000"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be an integer from 1 to 1000"),
        ({"num_hidden_layers": 1}, r"model\.layers\.1\.mlp\.down_proj \(peft\) has no name"),
        ({"tie_word_embeddings": True}, "one tensor for embedding and head.*leave adapters"),
    ],
)
def test_configs_of_bases(
    fields: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    base = changed_base(folder, tmp_path / "base", **fields)
    with pytest.raises(gm.GamMergeError, match=message):
        gm.convert(folder / "a", out=tmp_path / "x.gguf", base_model=base)
    assert not (tmp_path / "x.gguf").exists()


def test_a_base_of_another_architecture(folder: Path, tmp_path: Path) -> None:
    base = changed_base(folder, tmp_path / "base", architectures=["Qwen2ForCausalLM"])
    with pytest.raises(gm.GamMergeError, match=r"is for the architecture llama, but .* is qwen2"):
        gm.convert(folder / "a.gguf", format="peft", base_model=base)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (None, r"a\.gguf: names and rows .* which the adapter does not name; name it with --base"),
        ("/gone", "/gone: there is no such base model here; .* with --base"),
        (".", r"config\.json: cannot be read: No such file"),
    ],
)
def test_without_a_base(
    base: str | None, message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(gm.GamMergeError, match=message):
        gm.convert(folder / "a.gguf", format="peft", out=tmp_path / "out", base_model=base)
    assert list(tmp_path.iterdir()) == []


def test_unlike_architectures(folder: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "q.gguf", pair(12, 8, 4), arch="qwen2")
    message = r"a\.gguf is for the architecture llama and .*q\.gguf for qwen2; merge"
    with pytest.raises(gm.GamMergeError, match=message):
        gm.plan([folder / "a.gguf", other], method="mean", missing="skip", rank=4)


# ---- what the format cannot hold


def test_dora_is_refused(folder: Path, tmp_path: Path) -> None:
    trained(tmp_path / "dora", "llama", target_modules=["q_proj"], use_dora=True)
    with pytest.raises(gm.GamMergeError, match=r"q_proj is DoRA, which .* gguf .*--flatten-dora"):
        gm.convert(tmp_path / "dora", out=tmp_path / "x.gguf", base_model=str(folder / "base"))
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lora_bias": True}, r"gguf cannot hold .*lora_B\.bias \(lora_bias\)"),
        ({"modules_to_save": ["lm_head"]}, r"gguf cannot hold lm_head.* \(modules_to_save\)"),
    ],
)
@pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")  # about lora_bias
def test_extras_are_refused(
    config: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    trained(tmp_path / "x", "llama", target_modules=["q_proj"], **config)
    with pytest.raises(gm.GamMergeError, match=message):
        gm.convert(tmp_path / "x", out=tmp_path / "x.gguf", base_model=str(folder / "base"))


def test_transposed_layers_are_refused(folder: Path, tmp_path: Path) -> None:
    trained(tmp_path / "x", "llama", target_modules=["q_proj"])
    file = tmp_path / "x" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "fan_in_fan_out": True}))
    with pytest.raises(gm.GamMergeError, match=r"keep their weights as \(in, out\)"):
        gm.convert(tmp_path / "x", out=tmp_path / "x.gguf", base_model=str(folder / "base"))


def test_modules_without_a_name_are_refused(folder: Path, tmp_path: Path) -> None:
    trained(tmp_path / "x", "llama", target_modules=["q_proj"])
    weights = tmp_path / "x" / "adapter_model.safetensors"
    tensors = {
        k.replace("self_attn.q_proj", "mlp.experts"): v for k, v in load_file(weights).items()
    }
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(gm.GamMergeError, match=rf"mlp\.experts .*no name.*{CONVERTER}"):
        gm.convert(tmp_path / "x", out=tmp_path / "x.gguf", base_model=str(folder / "base"))


def test_ranks_by_module_and_float64_are_refused(folder: Path, tmp_path: Path) -> None:
    sources = [folder / "a.gguf", folder / "b.gguf"]
    with pytest.raises(gm.GamMergeError, match=r"llama\.cpp reads one rank for all modules"):
        gm.merge(sources, per_module_rank=True, energy=0.9, out=tmp_path / "out")
    with pytest.raises(gm.GamMergeError, match=r"does not hold float64 .*--dtype float32"):
        gm.plan(sources, dtype="float64")
    assert not (tmp_path / "out").exists()


def test_without_the_library(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Floats are read; what needs the library names the extra, and nothing is written."""
    imported = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "gguf":
            raise ModuleNotFoundError("No module named 'gguf'")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert gm.load(folder / "a.gguf").rank == 4
    with pytest.raises(gm.GamMergeError, match=r"pip install 'gam-merge\[gguf\]'"):
        gm.merge([folder / "a.gguf"], method="mean", out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ---- files that are broken, or of another kind


FILES: dict[str, tuple[Tensors, dict[str, Any], str]] = {
    "a model": ({}, {"general__type": "model"}, "is a GGUF file of a whole llama model, not of an"),
    "an old model": (
        {},
        {"general__type": None, "llama__block_count": "2"},
        "is a GGUF file of a whole llama model",
    ),
    "a tokeniser": ({}, {"general__type": "vocab"}, "general.type must be 'adapter', got 'vocab'"),
    "another adapter": (pair(4, 4, 2), {"adapter__type": "ia3"}, "adapter.type must be 'lora'"),
    "an alora": (
        pair(4, 4, 2),
        {"adapter__alora__invocation_tokens": [1, 2]},
        "is an activated LoRA",
    ),
    "alpha as text": (
        pair(4, 4, 2),
        {"adapter__lora__alpha": "16"},
        "field adapter.lora.alpha is of type 8, not 6",
    ),
    "alpha nan": (
        pair(4, 4, 2),
        {"adapter__lora__alpha": float("nan")},
        "adapter.lora.alpha must be a finite number, got nan",
    ),
    "nothing": ({}, {}, "holds no LoRA factors"),
    "half a pair": (
        {"blk.0.ffn_up.weight.lora_a": np.zeros((2, 4), np.float32)},
        {},
        "module blk.0.ffn_up has no lora_b; the file is incomplete",
    ),
    "experts": (
        {f"blk.0.ffn_up_exps.weight.lora_{x}": np.zeros((3, 2, 2), np.float32) for x in "ab"},
        {},
        "blk.0.ffn_up_exps has a factor per expert",
    ),
    "shapes": (
        {"blk.0.x.weight.lora_a": np.zeros((2, 4), np.float32)}
        | {"blk.0.x.weight.lora_b": np.zeros((4, 3), np.float32)},
        {},
        r"has A \(2, 4\) and B \(4, 3\), not \(r, in\) and \(out, r\)",
    ),
    "another tensor": (
        {**pair(4, 4, 2), "blk.0.bias": np.zeros(4, np.float32)},
        {},
        "tensor blk.0.bias is not part of a LoRA",
    ),
    "float64": (
        {name: value.astype(np.float64) for name, value in pair(4, 4, 2).items()},
        {},
        "is stored in type 28 of ggml; convert the adapter to F32, F16, BF16 or Q8_0",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_files_of_another_kind(case: str, tmp_path: Path) -> None:
    tensors, changed, message = FILES[case]
    file = write(tmp_path / "x.gguf", tensors, **changed)
    with pytest.raises(gm.GamMergeError, match=message) as caught:
        gm.merge([file], out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def header(tensors: int = 0, fields: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def field(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


ADAPTER = field(b"general.type", 8, text(b"adapter"))
HUGE = struct.pack("<Q", 2**62)


def tensor(name: bytes, sides: tuple[int, ...], kind: int, offset: int) -> bytes:
    shape = struct.pack(f"<I{len(sides)}Q", len(sides), *sides)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


BROKEN = {
    "nothing": (b"", "is not a complete GGUF file"),
    "cut off": (b"GG", "is not a complete GGUF file"),
    "empty": (b"GGUF", "its header claims 8 bytes of 4"),
    "version": (header(version=1), "GGUF file of version 1 or of another byte order"),
    "big-endian": (header(version=3 << 24), "of another byte order"),
    "fields": (header(fields=2**62), "its header claims"),
    "tensors": (header(2**62, 1, ADAPTER), "its header claims"),
    "name": (header(fields=1, rest=HUGE), "its header claims"),
    "text": (header(fields=1, rest=field(b"x", 8, HUGE)), "its header claims"),
    "array": (header(fields=1, rest=field(b"x", 9, struct.pack("<I", 0) + HUGE)), "claims"),
    "texts": (header(fields=1, rest=field(b"x", 9, struct.pack("<I", 8) + HUGE)), "claims"),
    "nested": (
        header(fields=1, rest=field(b"x", 9, struct.pack("<IQ", 9, 1)) + bytes(64)),
        "a field of type 9",
    ),
    "type": (header(fields=1, rest=field(b"x", 99, bytes(64))), "it has a field of type 99"),
    "unicode": (header(fields=1, rest=field(b"\xff\xff", 8, text(b""))), "is not UTF-8"),
    "twice": (header(fields=2, rest=ADAPTER * 2), "it has two fields general.type"),
    "alignment": (
        header(0, 2, ADAPTER + field(b"general.alignment", 4, struct.pack("<I", 3))),
        "its alignment is 3, not a power of two",
    ),
    "sides": (header(1, 1, ADAPTER + tensor(b"x", (1,) * 5, 0, 0)), "tensor x has 5 sides"),
    "many sides": (
        header(1, 1, ADAPTER + text(b"x") + struct.pack("<I", 2**32 - 1)),
        "tensor x has 4294967295 sides",
    ),
    "same": (header(2, 1, ADAPTER + tensor(b"x", (1,), 0, 0) * 2), "it has two tensors x"),
    "offset": (
        header(1, 1, ADAPTER + tensor(b"x", (1,), 0, 64)) + bytes(256),
        "tensor x starts at byte 64, not at 0",
    ),
    "size": (header(1, 1, ADAPTER + tensor(b"x", (2**40, 2**40), 0, 0)), "does not fit into it"),
    "blocks": (header(1, 1, ADAPTER + tensor(b"x", (31, 2), 8, 0)), "no rows of 32 entries"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(case: str, tmp_path: Path) -> None:
    content, message = BROKEN[case]
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(gm.GamMergeError, match=message) as caught:
        gm.merge([tmp_path / "x.gguf"], out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_every_cut_is_one_line(tmp_path: Path) -> None:
    """A file that ends early, at any byte of its header and of its data."""
    whole = write(tmp_path / "whole.gguf", pair(4, 4, 2)).read_bytes()
    end = len(whole) - 32  # within the last tensor, before its padding
    for size in range(4, end, 7):
        (tmp_path / "x.gguf").write_bytes(whole[:size])
        with pytest.raises(gm.GamMergeError, match="is not a complete GGUF file"):
            gm.load(tmp_path / "x.gguf")


def test_any_bytes_are_an_adapter_or_one_line(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    whole = write(tmp_path / "whole.gguf", pair(4, 4, 2)).read_bytes()
    for _ in range(500):
        changed = bytearray(whole)
        for place in generator.integers(4, len(whole), 3):
            changed[place] = generator.integers(256)
        (tmp_path / "x.gguf").write_bytes(changed)
        with suppress(gm.GamMergeError):
            assert gm.load(tmp_path / "x.gguf").modules


def test_names_of_outputs(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(gm.GamMergeError, match=r"gguf take a file NAME\.gguf; name one"):
        gm.plan([folder / "a.gguf"], format="gguf", out=tmp_path / "x.safetensors")
    with pytest.raises(gm.GamMergeError, match="readers of the format peft take"):
        gm.plan([folder / "a.gguf"], format="peft", out=tmp_path / "x.gguf")
