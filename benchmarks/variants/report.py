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

Made by `python -m benchmarks variants`; do not edit this page. For each kind PEFT makes two
adapters of a tiny random model, with noise on everything that is trainable, and they are merged
with weights 0.75 and 0.25. The correct result is the model whose every parameter is the weighted
mean of what PEFT fuses each adapter into; a module that only one adapter has in `modules_to_save`
is that adapter's. The merge is saved, loaded by PEFT and run. *ok* means that the relative error of
the change in the output is below 1e-5, *wrong* gives the error.

PEFT's columns are `add_weighted_adapter` by `combination_type`, at the rank that holds both
adapters; `linear` is meant as an approximation, for plain adapters, too. mergekit does not merge
adapters, but the models that they make of their base, and writes a whole model; if only one adapter
has a module in `modules_to_save`, it takes the base's for the other. gam-merge's column is
`method="mean"`, with `base_model=` for DoRA; other methods treat these adapters the same
way, since they merge the same deltas. Quantised bases play no part: the base is read for DoRA only.
"""

_END = """\
## How each kind is merged

- **Factors**: each with its own scale (alpha / r, rsLoRA, patterns), which is folded into the
  output: one rank, `lora_alpha` = `r`, no patterns, so that PEFT, vLLM, SGLang, llama.cpp and
  diffusers compute the same.
- **Biases, modules saved whole, trained tokens**: the weighted mean over the adapters that have
  them, if their shapes and tokens agree; otherwise an error names the tensor. `lora_bias` is a
  delta: zero for an adapter without it.
- **DoRA**: exactly, as DoRA again. Its delta depends on the base weights, so `--base` names them: a
  directory, a `.safetensors` file or a Hub id, of which only the files with adapted modules are
  fetched into the cache of huggingface_hub. The base is read in blocks of rows. Plain adapters may
  be among the sources. `--flatten-dora` writes the nearest plain LoRA of a given rank, and the
  report says how much of the change it keeps.
- **Refused**: initialisations that change the base (PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ), whose
  factors are not a delta of it; PEFT converts all but LoftQ
  (`path_initial_model_for_weight_conversion`). Other kinds of adapters: PEFT has `convert_to_lora`
  for many, and `gam-merge extract` makes a LoRA of a model that any kind was fused into. Settings
  that change what the factors mean (aLoRA, QALoRA, BD-LoRA, KaSA, MonteCLoRA, VeLoRA, Arrow,
  `layer_replication`, and any unknown one). Tensors that are not part of a LoRA.

`gam-merge inspect A` says what an adapter holds and what would be refused; `--for vllm`, `sglang`,
`llama.cpp` and `ollama` refuse beforehand what these servers do not support. This table was read
from their sources and not run; none of them serves DoRA, biases, `modules_to_save`, trained tokens,
convolutions or experts (`target_parameters`). [formats.md](formats.md) has the readers of other
formats.
"""

_SERVERS = (
    {
        "": "a rank per module (`--per-module-rank`)",
        "vLLM": "yes",
        "SGLang": "no",
        "llama.cpp": "no",
        "Ollama": "no",
    },
    {
        "": "embedding, `lm_head`",
        "vLLM": "some models",
        "SGLang": "some models",
        "llama.cpp": "yes, `lm_head` if not tied",
        "Ollama": "no",
    },
    {
        "": "Conv1D of GPT-2",
        "vLLM": "if the model serves LoRA",
        "SGLang": "unknown",
        "llama.cpp": "no",
        "Ollama": "no",
    },
    {
        "": "rank",
        "vLLM": "up to 512 (`--max-lora-rank` 1, 8, 16, 32, 64, 128, 256, 320, 512)",
        "SGLang": "any (`--max-lora-rank`)",
        "llama.cpp": "any",
        "Ollama": "up to the shorter side of each layer",
    },
    {
        "": "models",
        "vLLM": "those with LoRA",
        "SGLang": "those with LoRA",
        "llama.cpp": "those of its converter",
        "Ollama": "llama and gemma2; made by a version before 0.34.1",
    },
)


def read() -> dict[str, Any]:
    return json.loads(FILE.read_text("utf-8"))


def page(results: Mapping[str, Any]) -> str:
    """Return the whole page."""
    messages: dict[str, int] = {}  # what tools said, numbered
    rows: list[dict[str, Any]] = []
    for row in results["rows"]:
        cells = {name: _cell(value, messages) for name, value in row.items() if name != "adapters"}
        rows.append({"adapters": row["adapters"], **cells})
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    notes = "\n".join(f"{number}. {text}" for text, number in messages.items())
    parts = [_INTRODUCTION, f"Measured with {versions}.\n", f"{table(rows)}\n"]
    parts += ["Messages of the tools:\n", f"{notes}\n", _END, f"{table(list(_SERVERS))}\n"]
    return "\n".join(parts)


def _cell(value: float | str, messages: dict[str, int]) -> str:
    """Return one word, and the number of a message."""
    if isinstance(value, str):
        word, _, text = value.partition(": ")
        return f"{word} [{messages.setdefault(text, len(messages) + 1)}]"
    return f"ok ({value:.0e})" if value < EXACT else f"**wrong**: {value:.0%}"
