"""Cases of hostile files: bytes -> files in a folder, and what is done with them."""

import json
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import yaml
from fuzz_draw import JUNK, RAW_JSON, RAW_YAML, Draw, as_json, mutate, scramble
from helpers import random_factors, write_adapter

import gam_merge as gm
from gam_cli import _present as present
from gam_cli._options import GroupBy
from gam_cli._tables_inspect import of_inspection
from gam_merge._common.tensors import read
from gam_merge._models.checkpoint import open_checkpoint

Action = Callable[[], object]
Kind = Callable[[Draw, Path], Action]
MODULES = ("model.layers.0.q_proj", "model.layers.1.q_proj")
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": "base",
    "task_type": "CAUSAL_LM",
    "r": 2,
    "lora_alpha": 4,
    "use_rslora": False,
    "use_dora": False,
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "rank_pattern": {},
    "alpha_pattern": {"layers.1.*": 3},
    "target_modules": ["q_proj"],
    "target_parameters": None,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "layers_to_transform": None,
    "auto_mapping": None,
    "revision": None,
}
RECIPE: dict[str, Any] = {
    "name": "merged",
    "method": "ties",
    "params": {"density": 0.5},
    "sources": [
        {"path": "good", "weight": [0.5, 1.0]},
        {"path": "evil", "weight": [{"filter": "*.0.*", "value": 2}, {"filter": "*", "value": 1}]},
    ],
    "anchor": 0,
    "missing": "zero",
    "output": {"rank": 2, "dtype": "float32"},
}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer.json")
PLACES = {
    "model.embed_tokens.weight": SHARDS[0],
    **{f"{name}.weight": shard for name, shard in zip(MODULES, SHARDS, strict=False)},
}
MODEL: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "tie_word_embeddings": True,
    "is_encoder_decoder": False,
    "hidden_size": 6,
}
# Keys of PEFT and of the other families of LoRA files.
STEMS = [
    *(
        "base_model.model.",
        "",
        "lora_unet_",
        "lora_te1_",
        "lora_te_text_model_encoder_layers_0_",
        "transformer.",
    ),
    *(
        "diffusion_model.",
        "unet.",
        "base_model.model.base_model.model.",
        "\x1b[31m",
        "../",
        "a" * 400,
    ),
]
NAMES = [
    *(
        *MODULES,
        "layers.2.mlp.experts",
        "lm_head",
        "embed_tokens",
        "score",
        "norm",
        "down_blocks_0_attentions_0_to_q",
    ),
    *(
        "layers.99999999999999999999.q",
        f"layers.{'9' * 5000}.q",
        "x.base_layer",
        "[red]x",
        "\u0661.q",
        "a\nb",
        ".",
        "",
    ),
]
ENDS = [
    *(
        ".lora_A.weight",
        ".lora_B.weight",
        ".lora_A.default.weight",
        ".lora_B.default.weight",
        ".lora_embedding_A",
    ),
    *(
        ".lora_embedding_B",
        ".lora_magnitude_vector",
        ".lora_B.bias",
        ".bias",
        ".base_layer.bias",
        ".weight",
    ),
    *(
        ".base_layer.weight",
        ".token_adapter.trainable_tokens_delta",
        ".lora_down.weight",
        ".lora_up.weight",
        ".alpha",
    ),
    *(
        ".dora_scale",
        ".hada_w1_a",
        ".lokr_w1",
        ".diff",
        ".diff_b",
        ".original_module.weight",
        ".lora_mid.weight",
    ),
    *(
        ".modules_to_save.default.weight",
        ".oft_blocks",
        ".lora_A",
        ".lora_A.weight.lora_A.weight",
        ".lora_C.weight",
    ),
]
SHAPES = [
    *(
        [2, 6],
        [5, 2],
        [2],
        [],
        [0, 6],
        [5, 0],
        [1, 1],
        [4, 6],
        [2, 3, 2, 2],
        [4, 2, 1, 1],
        [4, 5],
        [6, 5],
        [1, 4, 1],
    ),
    *([0, 2**31], [0, 2**62], [0, 2**63], [1] * 70, [2, 2, 2]),
]
DTYPES = ["F32", "F16", "BF16", "F64", "I64", "F8_E4M3", "BOOL", "Q4", "", None, 7]


def good(folder: Path) -> None:
    """What stays the same in all cases."""
    generator = torch.Generator().manual_seed(0)
    write_adapter(
        folder / "good",
        {name: random_factors(generator, 5, 6, 2, torch.float32) for name in MODULES},
    )


def header(draw: Draw, folder: Path) -> Action:
    """A safetensors file that lies about itself."""
    return _adapter(
        draw, folder, _container(draw, _tensors(), lies=True), json.dumps(CONFIG).encode()
    )


def config(draw: Draw, folder: Path) -> Action:
    """An adapter_config.json that says anything."""
    text = as_json(mutate(draw, json.loads(json.dumps(CONFIG)), RAW_JSON), RAW_JSON)
    return _adapter(draw, folder, _container(draw, _tensors()), scramble(draw, text))


def keys(draw: Draw, folder: Path) -> Action:
    """Whole files with tensors of any name, shape and dtype, and a config that hardly knows them."""
    tensors: dict[str, Any] = _tensors() if draw.below(2) else {}
    for _ in range(draw.below(4)):
        key = draw.pick(STEMS) + draw.pick(NAMES) + draw.pick(ENDS)
        tensors[key] = {
            "dtype": "F32" if draw.below(3) else draw.pick(DTYPES),
            "shape": draw.pick(SHAPES),
        }
    known = {
        **CONFIG,
        "bias": draw.pick(["none", "all", "lora_only"]),
        "modules_to_save": draw.pick([None, ["score"], ["norm", "lm_head"]]),
        "target_parameters": draw.pick([None, ["experts.up"], ["experts.up", "mlp.experts.down"]]),
        "trainable_token_indices": draw.pick([None, [1, 2], {"embed_tokens": [0, 1]}]),
        "use_dora": bool(draw.once_in(5)),
        "rank_pattern": draw.pick([{}, {"q": 1}, {".*": 4}]),
    }
    return _adapter(draw, folder, _container(draw, tensors), json.dumps(known).encode())


def recipe(draw: Draw, folder: Path) -> Action:
    """A recipe that asks for anything."""
    documents = [
        mutate(draw, json.loads(json.dumps(RECIPE)), RAW_YAML) for _ in range(1 + draw.below(2))
    ]
    if len(documents) > 1 and draw.below(2) and isinstance(documents[0], dict):
        documents[0]["name"] = "evil"  # used by the second
    dump: Callable[[Any], bytes] = (
        _block if draw.below(2) else lambda document: as_json(document, RAW_YAML)
    )
    text = b"\n---\n".join(map(dump, documents))
    (folder / "recipe.yaml").write_bytes(scramble(draw, text))
    _write(folder / "evil", _container(draw, _tensors()), json.dumps(CONFIG).encode())
    overrides = [
        draw.pick(
            ["output.rank=1", "weights.evil=2", "params.density=0.1", f"anchor={draw.pick(JUNK)}"]
        )
    ]
    asked = overrides if draw.once_in(6) else []
    return lambda: gm.merge_recipe(folder / "recipe.yaml", out=folder / "out", overrides=asked)


def _block(document: Any) -> bytes:
    text = yaml.safe_dump(document, allow_unicode=bool(len(str(document)) % 2))
    for name, instead in RAW_YAML.items():
        text = text.replace(f"'{name}'", instead)
    return text.encode("utf-8", "surrogatepass")


def model(draw: Draw, folder: Path) -> Action:
    """A base model whose index and config say anything; one of its files is in the place of a tokenizer's."""
    base = folder / "model"
    base.mkdir(exist_ok=True)
    places = dict(PLACES)
    for key in draw.pick([[], [], [*PLACES], [MODULES[0] + ".weight"]]):
        places[key] = draw.pick(
            [*SHARDS, "./" + SHARDS[0], "config.json", "fuse_report.json", ".", ""]
        )
    for name in SHARDS:
        held = [key for key in PLACES if name in (PLACES[key], places[key])]
        (base / name).write_bytes(_container(draw, {key: _weight(key) for key in held}))
    index, config = (
        {"metadata": {"total_size": 336}, "weight_map": places},
        json.loads(json.dumps(MODEL)),
    )
    for name, said in (("model.safetensors.index.json", index), ("config.json", config)):
        said = mutate(draw, said, RAW_JSON) if draw.below(2) else said
        (base / name).write_bytes(scramble(draw, as_json(said, RAW_JSON)))
    embedding = {"base_model.model.model.embed_tokens.weight": _weight("embed_tokens")}
    _write(
        folder / "evil", _container(draw, {**_tensors(), **embedding}), json.dumps(CONFIG).encode()
    )
    adapter = folder / draw.pick(["good", "evil"])
    return lambda: fuse(base, adapter, folder / "out")


def _weight(key: str) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [4, 6] if "embed" in key else [5, 6]}


def fuse(base: Path, adapter: Path, out: Path) -> None:
    """Every tensor of the base is in the output, where its index says, and those of the adapter have changed."""
    report = gm.fuse(base, adapter, out)
    before, after = open_checkpoint(base).tensors, open_checkpoint(out).tensors
    assert before.keys() <= after.keys()
    for module in report.modules:
        key = f"{module.name}.weight"
        assert not torch.equal(read(before[key]), read(after[key])), f"{key} was not fused"


KINDS = {kind.__name__: kind for kind in (header, config, keys, recipe, model)}


def _tensors() -> dict[str, Any]:
    shapes = {"lora_A": [2, 6], "lora_B": [5, 2]}
    return {
        f"base_model.model.{name}.{factor}.weight": {"dtype": "F32", "shape": shape}
        for name in MODULES
        for factor, shape in shapes.items()
    }


def _container(draw: Draw, tensors: dict[str, Any], *, lies: bool = False) -> bytes:
    """A file of these tensors, every byte of them 0x3c: 0.0115 in float32, 1.06 in float16."""
    end = 0
    for entry in tensors.values():
        size, begin = (
            {"F64": 8, "F32": 4, "I64": 8, "F16": 2, "BF16": 2}.get(str(entry["dtype"]), 1),
            end,
        )
        for side in entry["shape"]:
            size *= side
        entry["data_offsets"] = [begin, end := begin + size]
    table: Any = {"__metadata__": {"format": "pt"}, **tensors}
    data = b"\x3c" * end
    if not lies:
        text = json.dumps(table).encode()
        return len(text).to_bytes(8, "little") + text + data
    text = scramble(draw, as_json(mutate(draw, table, RAW_JSON), RAW_JSON))
    claims = draw.pick(
        [len(text)] * 8 + [0, 1, len(text) - 1, len(text) + 1, 2**31, 2**60, 2**63, 2**64 - 1]
    )
    return (
        claims.to_bytes(8, "little") + text + draw.pick([data] * 6 + [data[:-1], data + b"\0", b""])
    )


def _write(folder: Path, weights: bytes, config: bytes) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_bytes(config)


def _adapter(draw: Draw, folder: Path, weights: bytes, config: bytes) -> Action:
    """An adapter in the folder ``evil``, and something that a user does with it."""
    evil, sources, out = folder / "evil", [folder / "good", folder / "evil"], folder / "out"
    _write(evil, weights, config)
    return draw.pick(
        [
            lambda: gm.merge(sources, out=out, method="mean"),
            lambda: gm.merge(sources[1:], out=out),
            lambda: gm.merge(sources, out=out, missing="skip", dtype="fp16"),
            lambda: shown(gm.inspect(evil)),
            lambda: gm.compare(sources),
            lambda: gm.plan(sources, method="ties"),
        ]
    )


def shown(found: gm.Inspection) -> None:
    """Printed as the command prints it: no control character reaches the terminal."""
    with redirect_stdout(StringIO()) as printed:
        present.show(None, of_inspection(found, GroupBy.type), as_json=False, quiet=False)
    assert printed.getvalue().replace("\n", "").isprintable()
    json.dumps(found.to_dict())
