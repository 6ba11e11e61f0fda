"""docs/formats.md from the committed results."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.formats.measure import ONE, SEEN, TWO
from benchmarks.formats.rows import is_supported
from benchmarks.measure import RESULTS, table

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
FILE = RESULTS / "formats.json"
EXACT = 1e-5  # of each change; readers compute in float32

_INTRODUCTION = """\
# Every format that is read and written

Made by `python -m benchmarks formats`; do not edit this page. A merge of files of one format is a
file, or a directory, of that format: `gam-merge a.safetensors b.safetensors -o merged.safetensors`.
`--format NAME` chooses another one, and `gam-merge convert A --format NAME -o OUT` translates one
adapter. All verbs, methods and options work on all formats.
"""

# The module of gam-merge that reads a format, and the cells of its row.
_FORMATS = (
    ("peft", {
        "format": "`peft`",
        "files": "`adapter_model.safetensors` (or `.bin`) and `adapter_config.json`; a file alone "
        "needs `--base` and `--alpha`",
        "recognised by": "`peft_type` in the config; else what no other format claims",
        "scale": "alpha / r; rsLoRA alpha / sqrt(r); `rank_pattern`, `alpha_pattern`",
        "written with": "`lora_alpha` = r, no patterns",
    }),
    ("kohya", {
        "format": "`kohya`",
        "files": "any `NAME.safetensors`",
        "recognised by": "keys `STEM.lora_down.weight`, whose stem has no dot",
        "scale": "alpha / r per module; 1 without an alpha",
        "written with": "`alpha` = r per module, in float32; tags and trigger words of all sources",
    }),
    ("diffusers", {
        "format": "`diffusers`",
        "files": "`pytorch_lora_weights.safetensors`, or any `NAME.safetensors`",
        "recognised by": "`lora_adapter_metadata`; or dotted names of a pipeline's modules before "
        "`lora_A.weight`, `lora.down.weight`, `lora_down.weight` and four other spellings",
        "scale": "that of the metadata; else alpha / r per module; else 1",
        "written with": "neither metadata nor alpha: a scale of 1; names and spelling as they were",
    }),
    ("mlx", {
        "format": "`mlx`",
        "files": "`adapters.safetensors` and `adapter_config.json`",
        "recognised by": "keys that end in `.lora_a` and `.lora_b`",
        "scale": "`scale` of the config, not divided by r",
        "written with": "`scale` 1, one rank, `keys` with the full names",
    }),
    ("lycoris", {
        "format": "LyCORIS",
        "files": "as `kohya` or `diffusers`",
        "recognised by": "`lora_mid`, `hada_` or `lokr_` in keys",
        "scale": "alpha / r",
        "written with": "the plain LoRA that it is, as `kohya` or `diffusers`",
    }),
    ("gguf", {
        "format": "`gguf`",
        "files": "any `NAME.gguf`",
        "recognised by": "`GGUF`, its first four bytes",
        "scale": "alpha / r of each tensor; 1 without an alpha or with 0",
        "written with": "alpha = r",
    }),
)  # fmt: skip

_REFUSED = """\
The base model of an image model is in no file but kohya's (`ss_base_model_version`); files that
name unlike ones are refused. A module is known by the name that the file gives it, so new
architectures need no table here. Tables are needed only where files of unlike formats meet, or are
converted.

## What is refused

In one line that names file, module and remedy, and before anything is written:

- two grammars in one file, such as text encoders in kohya's and a UNet in diffusers' keys; two
  tensors of one role;
- a factor without its partner, factors whose shapes do not fit, factors stored as integers;
- an alpha that is not one finite number other than 0, of which readers make unlike things; in keys
  of PEFT's style also an integer, which diffusers does not read;
- an alpha next to `lora_adapter_metadata`, of which readers take one;
- `--alpha` for a file that has its own;
- DoRA outside of PEFT's format (`dora_scale`, `lora_magnitude_vector`, MLX-LM's `m`);
- full differences and norms (`diff`, `diff_b`, `w_norm`, `b_norm`), which are not a LoRA;
- in MLX-LM's format a rank per module, and factors per expert;
- adapters of unlike formats without `--format`, and modules that the other format has no name for.

## Measured

Two sources of unlike ranks and alphas, as their usual writer saves them, with random factors, on
toy models. The reader reads both, and what it makes of them is summed with weights 0.3 and 0.7.
Then it reads the merge (`method="mean"`, at a rank that holds both). *ok* gives the largest
relative error over all weights; the readers compute in float32. `changed` counts the weights that
the reader changes for the merge, of those for the sources.
"""

_END = """\
## What readers take

`--for NAME` refuses beforehand what a reader does not take. This was read from the sources of
diffusers 0.42 (`loaders/`), ComfyUI (`comfy/lora.py`, `comfy/weight_adapter/`) and MLX-LM 0.32
(`tuner/utils.py`); ComfyUI was not run. [variants.md](variants.md) has the servers of language
models.
"""

_READERS = (
    {"": "formats", "diffusers": "diffusers, kohya", "comfyui": "diffusers, kohya", "mlx": "mlx"},
    {"": "convolutions", "diffusers": "yes", "comfyui": "yes", "mlx": "no"},
    {
        "": "a rank per module",
        "diffusers": "yes; without alphas since diffusers#14409 (August 2026)",
        "comfyui": "yes",
        "mlx": "no",
    },
    {
        "": "stems of kohya's files begin with",
        "diffusers": "`lora_unet_`, `lora_te_`, `lora_te1_`, `lora_te2_`, `lora_transformer_`",
        "comfyui": "what its models have",
        "mlx": "",
    },
    {
        "": "a key that the reader does not know",
        "diffusers": "nothing of a kohya file of Stable Diffusion is loaded, without an error",
        "comfyui": "is skipped, with a line in the log",
        "mlx": "is an error",
    },
)


def read() -> dict[str, Any]:
    return json.loads(FILE.read_text("utf-8"))


def page(results: Mapping[str, Any]) -> str:
    """Return the whole page."""
    formats = [cells for module, cells in _FORMATS if is_supported(module)]
    rows: list[dict[str, Any]] = []
    for row in results["rows"]:
        rows.append({**row, ONE: _cell(row[ONE]), TWO: _cell(row[TWO]), SEEN: row[SEEN]})
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    measured = f"{table(rows)}\n\nMeasured with {versions}.\n"
    parts = [_INTRODUCTION, f"{table(formats)}\n", _REFUSED, measured, _END]
    return "\n".join([*parts, f"{table(list(_READERS))}\n"])


def _cell(error: float) -> str:
    return f"ok ({error:.0e})" if error < EXACT else f"**wrong**: {error:.0%}"
