"""The model card of a merged adapter: README.md, for people and for the Hub.

Much of it comes from strangers' files. Names are put into code spans, whatever they contain, and
only what is certainly a Hub id becomes a link or enters the front matter.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from gam_merge._common import yaml
from gam_merge._common.errors import printable
from gam_merge._common.files import read_text
from gam_merge._common.version import VERSION
from gam_merge._lineup.serving import max_lora_rank
from gam_merge._methods import get_method
from gam_merge._read.adapter import Adapter
from gam_merge._read.hub_id import HubId, parse_hub_id
from gam_merge._read.record import Record, RecordedSource
from gam_merge._run.report import MergeReport
from gam_merge._write.adapter import CARD_NAME
from gam_merge._write.provenance import recipe_text

REPO_PLACEHOLDER = "REPOSITORY_OR_DIRECTORY"  # in the card until it is pushed
FIGURE_PLACEHOLDER = "<!-- figure -->"

_HUB = "https://huggingface.co"
_MOST_FRONT_MATTER = 1 << 16  # the front matter of a card must end within so many characters
_ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")
_ARXIV_LINK = r"[arXiv \1](https://arxiv.org/abs/\1)"
_LIBRARIES = {"kohya": "diffusers"}  # format -> the Hub's library, where their names differ
# A word that is a path for certain: /a/b, ~/a, ./a, ../a, C:\a.
_PATH = re.compile(r"(?<![\w/\\.~:-])(?:[A-Za-z]:[/\\]|~?/|\.{1,2}[/\\])[^\s:;,()'\"`]+")
_TASKS = {  # PEFT's task_type -> the Hub's pipeline_tag, the class of transformers
    "CAUSAL_LM": ("text-generation", "AutoModelForCausalLM"),
    "SEQ_2_SEQ_LM": (None, "AutoModelForSeq2SeqLM"),
    "SEQ_CLS": ("text-classification", "AutoModelForSequenceClassification"),
    "TOKEN_CLS": ("token-classification", "AutoModelForTokenClassification"),
    "QUESTION_ANS": ("question-answering", "AutoModelForQuestionAnswering"),
    "FEATURE_EXTRACTION": ("feature-extraction", "AutoModel"),
}


def card_text(
    adapter: Adapter, report: MergeReport, record: Record, files: Mapping[str, str]
) -> str:
    """Return the card of an adapter. files: the SHA-256 of those next to it, by name."""
    base = _base_model(adapter)
    metadata = yaml.dump([_front_matter(base, adapter, record)])
    sections = (
        "# Merged LoRA adapter",
        _summary(base, len(record.sources)),
        "## Sources",
        *_sources(report, record),
        "## Method",
        _method(record),
        "## What the merge did",
        _outcome(report, record),
        FIGURE_PLACEHOLDER,
        "## Recipe",
        "`gam-merge --recipe gam_merge_recipe.yaml -o OUT` reproduces this adapter byte for byte.",
        _recipe(record, files),
        "## How to load it",
        *_uses(base or "BASE_MODEL", adapter),
    )
    return f"---\n{metadata}---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(base: str | None, adapter: Adapter, record: Record) -> dict[str, Any]:
    """Return the fields of the card that the Hub reads."""
    fields = {
        "base_model": [base] if base else None,
        "library_name": _LIBRARIES.get(adapter.format, adapter.format),
        "license": _license(record),
        "pipeline_tag": _task(adapter)[0],
        "tags": ["lora", adapter.format, "merge", "gam-merge"],
        "base_model_relation": "adapter" if base else None,
        "merge_method": record.method,
        "merge_sources": [printable(source.name(None)) for source in record.sources],
    }
    return {name: value for name, value in fields.items() if value is not None}


def _base_model(adapter: Adapter) -> str | None:
    """Return the Hub id of the base model; None for a path of this machine: the Hub refuses it."""
    name = adapter.base_model
    if name is None or os.path.exists(name):
        return None
    hub = parse_hub_id(name)
    return hub.repo if hub is not None and hub == HubId(hub.repo) else None


def _task(adapter: Adapter) -> tuple[str | None, str]:
    return _TASKS.get(adapter.task or "", (None, "AutoModel"))


def _license(record: Record) -> str | None:
    """Return the license that the cards of all sources agree on, if they do."""
    licenses = {_license_of(source) for source in record.sources}
    return licenses.pop() if len(licenses) == 1 else None


def _license_of(source: RecordedSource) -> str | None:
    if source.made_by is not None:
        return _license(source.made_by)
    if source.file is None:
        return None
    try:  # not metadata_load of huggingface_hub, which reads aliases that unfold to any size
        beginning = read_text(source.file.with_name(CARD_NAME))[:_MOST_FRONT_MATTER]
        (metadata,) = yaml.parse(beginning.split("---", 2)[1], CARD_NAME)
        text = metadata.data["license"]
    except Exception:  # a stranger's card may contain anything, and need not exist
        return None
    known = isinstance(text, str) and re.fullmatch(r"[a-z0-9.-]+", text) and text != "other"
    return text if known else None


def _summary(base: str | None, count: int) -> str:
    adapter = "A LoRA adapter"
    if base is not None:
        adapter += f" for [{code(base)}]({_HUB}/{base})"
    sources = "one LoRA adapter" if count == 1 else f"{count} LoRA adapters"
    return f"{adapter}: {sources} merged with gam-merge {VERSION}."


def _sources(report: MergeReport, record: Record) -> Iterator[str]:
    rows = [
        "| adapter | revision | weight | rank | alpha | survives |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for source, survival in zip(record.sources, report.survival, strict=True):
        alpha = "" if source.alpha is None else f"{source.alpha:g}"
        numbers = (_weight(source), str(source.rank), alpha, f"{100 * survival:.1f} %")
        cells = (*_source(source), *numbers)
        escaped = [cell.replace("|", r"\|") for cell in cells]
        rows.append(f"| {' | '.join(escaped)} |")
    yield "\n".join(rows)
    yield (
        "*survives* is the share of an adapter's update that is in the result, by projection: "
        "100 % if nothing of it is lost."
    )


def _source(source: RecordedSource) -> tuple[str, str]:
    """Return name and revision, with a link if the source is on the Hub."""
    revision = source.revision
    hub = parse_hub_id(source.source) if revision else None
    if hub is None or not revision:
        return code(source.name(None)), ""
    url = f"{_HUB}/{hub.repo}/tree/{quote(revision, safe='')}"
    if hub.subfolder:
        url += f"/{quote(hub.subfolder)}"
    name = str(HubId(hub.repo, subfolder=hub.subfolder))
    return f"[{code(name)}]({url.rstrip('/')})", code(revision[:12])


def _weight(source: RecordedSource) -> str:
    return f"{source.weight:.4g}" if isinstance(source.weight, int | float) else "by module"


def _method(record: Record) -> str:
    method = get_method(record.method)
    rule = method.rule
    plain = method.validate({})
    changed = [f"{name}={value}" for name, value in record.params.items() if value != plain[name]]
    settings = f" with {', '.join(map(code, changed))}" if changed else ""
    text = f"{code(record.method)}{settings}: {rule.summary}."
    if rule.reference:
        text += f" Reference: {_ARXIV.sub(_ARXIV_LINK, rule.reference)}."
    return text


def _outcome(report: MergeReport, record: Record) -> str:
    renamed = {source.source: source.name(None) for source in record.sources}
    lines = [
        "- The norm of the merged update is "
        f"{report.norm_ratio:.3f} times the weighted mean of the sources' norms.",
        f"- Rank {report.rank} keeps "
        f"{100 * report.energy_kept:.2f} % of the energy (squared norm) of the merged update.",
        f"- {len(report.modules)} modules, written in {report.dtype}.",
        *(f"- {code(public_note(note, renamed))}" for note in report.notes),
    ]
    if report.choice:
        lines.insert(0, f"- The method was chosen by {printable(str(report.choice))}.")
    for text, names in report.warnings.items():
        lines.append(
            f"- {printable(text)} in {len(names)} of {len(report.modules)} modules, "
            f"first in {code(names[0])}"
        )
    return "\n".join(lines)


def _recipe(record: Record, files: Mapping[str, str]) -> str:
    text = recipe_text(record, None, files)
    fence = _fence(text, 3)
    return f"{fence}yaml\n{text}{fence}"


def _peft(base: str, adapter: Adapter) -> str:
    auto = _task(adapter)[1]
    return f"""```python
from peft import PeftModel
from transformers import {auto}

model = {auto}.from_pretrained({json.dumps(base)})
model = PeftModel.from_pretrained(model, "{REPO_PLACEHOLDER}")
```"""


def _vllm(base: str, rank: int) -> str:
    return f"""```python
from vllm import LLM
from vllm.lora.request import LoRARequest

llm = LLM({json.dumps(base)}, enable_lora=True, max_lora_rank={max_lora_rank(rank)})
llm.generate("...", lora_request=LoRARequest("merged", 1, "{REPO_PLACEHOLDER}"))
```"""


def _uses_of_peft(base: str, adapter: Adapter) -> list[str]:
    return [_peft(base, adapter), _vllm(base, adapter.rank)]


def _uses_of_mlx(base: str, adapter: Adapter) -> list[str]:
    return [
        f"""```python
from mlx_lm import generate, load

model, tokenizer = load({json.dumps(base)}, adapter_path="{REPO_PLACEHOLDER}")
print(generate(model, tokenizer, prompt="..."))
```"""
    ]


def _uses_of_pipelines(base: str, adapter: Adapter) -> list[str]:
    return [
        f"""```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({json.dumps(base)})
pipeline.load_lora_weights("{REPO_PLACEHOLDER}")
```""",
        "In ComfyUI put the file of weights into `models/loras`, in A1111 into `models/Lora`.",
    ]


def _uses_of_gguf(base: str, adapter: Adapter) -> list[str]:
    return [
        """```bash
llama-server -m BASE.gguf --lora ADAPTER.gguf
```"""
    ]


_USES = {  # by format
    "peft": _uses_of_peft,
    "mlx": _uses_of_mlx,
    "kohya": _uses_of_pipelines,
    "diffusers": _uses_of_pipelines,
    "gguf": _uses_of_gguf,
}


def _uses(base: str, adapter: Adapter) -> list[str]:
    """Return code that loads an adapter; a sentence for a format that has none here."""
    if adapter.format not in _USES:
        return [f"With any reader of the format {adapter.format}."]
    return _USES[adapter.format](base, adapter)


def code(text: str) -> str:
    """Return a code span of Markdown, in which nothing is read as Markdown, HTML or a link."""
    text = printable(text)
    if not text.strip():
        return "` `"
    fence = _fence(text, 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def public_note(note: str, names: Mapping[str, str]) -> str:
    """Return a note of a report with other names of the sources, and the last part of paths."""
    for old in sorted(names, key=len, reverse=True):
        note = note.replace(old, names[old])
    return _PATH.sub(lambda path: PurePath(path[0].replace("\\", "/")).name, note)


def _fence(text: str, least: int) -> str:
    """Return more backticks in a row than the text has anywhere, and not fewer than ``least``."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * max(least, longest + 1)
