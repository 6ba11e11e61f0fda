"""docs/variants.md from the committed results."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, table

PAGE = Path(__file__).parents[2] / "docs" / "variants.md"
FILE = RESULTS / "variants.json"
EXACT = 1e-5  # of the change that the adapters make; the sources are float32

_INTRODUCTION = """\
# Every kind of adapter that PEFT writes, merged or refused by name

Made by `python -m benchmarks variants`; edit nothing here. For each kind PEFT makes two adapters of a tiny random
model, all that is trainable moved by noise, and they are merged with weights 0.75 and 0.25. Right is the model whose
every parameter is the weighted mean of what PEFT fuses each adapter into; a module that one adapter alone has in
`modules_to_save` is that adapter's. The merge is saved, loaded by PEFT and run: ok stands for a relative error of the
change in the output below 1e-5, wrong for the error that it is. PEFT's column is `add_weighted_adapter`, by
`combination_type`, into the rank that holds both adapters; `linear` is meant as an approximation, and is one for plain
adapters too. mergekit merges no adapters, but the models that they make of their base, and writes a whole model; where
one adapter alone has a module in `modules_to_save`, it counts the base's for the other.

Quantised bases play no part: the base is not read, but for DoRA. gam-merge's column is `method="mean"`, and for DoRA
`base_model=`; how other methods treat the same adapters follows, since they merge the same deltas.
"""

_END = """\
## What is merged how

- **Factors**: each with its own scale (alpha / r, rsLoRA, patterns), which the output has folded in: one rank,
  `lora_alpha` = `r`, no patterns, so that PEFT, vLLM, SGLang, llama.cpp and diffusers compute the same.
- **Biases, modules saved whole, trained tokens**: the weighted mean over the adapters that have them, if their shapes
  and tokens agree; else an error names the tensor. `lora_bias` is a delta: zero for an adapter without it.
- **DoRA**: exactly, as DoRA again. Its delta depends on the base weights, so `--base` names them: a directory, a
  `.safetensors` file or a Hub id, of which the files that hold adapted modules are fetched into the cache of
  huggingface_hub. The base is read in blocks of rows. Plain adapters may be among the sources. `--flatten-dora` writes
  the nearest plain LoRA of a given rank, and the report says how much of the change it keeps.
- **Refused**: initialisations that change the base (PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ), whose factors are no delta
  of it: PEFT converts all but LoftQ (`path_initial_model_for_weight_conversion`). Other kinds of adapters: PEFT has
  `convert_to_lora` for many, and of a model that any was fused into `gam-merge extract` makes a LoRA. Settings that
  change what the factors mean (aLoRA, QALoRA, BD-LoRA, KaSA, MonteCLoRA, VeLoRA, Arrow, `layer_replication`, and any
  unknown one). Tensors that are no part of a LoRA.

`gam-merge inspect A` says what an adapter holds and what would be refused; `--for vllm` and `--for llama.cpp` refuse
beforehand what those do not serve. This table is read from their sources and not run:

| | vLLM | llama.cpp |
| --- | --- | --- |
| DoRA, biases, `modules_to_save`, trained tokens, convolutions | no | no |
| ranks of their own (`--per-module-rank`) | yes, but for experts | no |
| experts | gate_up_proj and down_proj, both | no |
| embedding, `lm_head` | some models | yes, `lm_head` if not tied |
| Conv1D of GPT-2 | if the model serves LoRA | no |
| rank | up to 512 (`--max-lora-rank` 1, 8, 16, 32, 64, 128, 256, 320, 512) | any |
"""


def read() -> dict[str, Any]:
    return json.loads(FILE.read_text("utf-8"))


def page(results: Mapping[str, Any]) -> str:
    """The whole page."""
    said: dict[str, int] = {}
    rows = [
        {name: value if name == "adapters" else _cell(value, said) for name, value in row.items()}
        for row in results["rows"]
    ]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    notes = "\n".join(f"{number}. {text}" for text, number in said.items())
    return f"{_INTRODUCTION}\nMeasured with {versions}.\n\n{table(rows)}\n\nWhat they said:\n\n{notes}\n\n{_END}"


def _cell(value: float | str, said: dict[str, int]) -> str:
    """One word; what a tool said is numbered."""
    if isinstance(value, str):
        word, _, text = value.partition(": ")
        return f"{word} [{said.setdefault(text, len(said) + 1)}]"
    return f"ok ({value:.0e})" if value < EXACT else f"**wrong**: {value:.0%}"
