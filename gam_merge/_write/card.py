"""The model card of a merged adapter: README.md, for people and for the Hub.

Much of it comes from strangers' files: names stand in code spans, whatever they hold, and only what is surely a Hub id
becomes a link or goes into the front matter.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote

import huggingface_hub  # loads its parts when they are asked for
import yaml

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
_FRONT_MATTER = 1 << 16  # characters of a card within which its front matter must end
_TASKS = {  # task_type of PEFT -> pipeline_tag of the Hub, class of transformers
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
    """The whole card. ``adapter`` is the one that it stands beside, ``files`` the sha256 of others."""
    base = _base_model(adapter)
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
        f"`gam-merge --recipe gam_merge_recipe.yaml -o OUT` makes the same bytes again.\n\n{_recipe(record, files)}",
        "## Load it",
        _peft(base or "BASE_MODEL", adapter),
        _vllm(base or "BASE_MODEL", report.rank),
    )
    return (
        f"---\n{_front_matter(base, adapter, record).to_yaml()}\n---\n\n"
        + "\n\n".join(sections)
        + "\n"
    )


def _front_matter(
    base: str | None, adapter: Adapter, record: Record
) -> "huggingface_hub.ModelCardData":
    return huggingface_hub.ModelCardData(
        base_model=[base] if base else None,
        base_model_relation="adapter" if base else None,
        library_name="peft",
        pipeline_tag=_task(adapter)[0],
        license=_license(record),
        tags=["lora", "peft", "merge", "gam-merge"],
        merge_method=record.method,
        merge_sources=[printable(source.name(None)) for source in record.sources],
    )


def _base_model(adapter: Adapter) -> str | None:
    """The Hub id of the base model; None for a path of this machine, which the Hub refuses."""
    name = adapter.base_model
    hub = parse_hub_id(name) if isinstance(name, str) and not os.path.exists(name) else None
    return hub.repo if hub is not None and hub == HubId(hub.repo) else None


def _task(adapter: Adapter) -> tuple[str | None, str]:
    return _TASKS.get(adapter.task or "", (None, "AutoModel"))


def _license(record: Record) -> str | None:
    """The license that all sources have by their cards, if each has one."""
    found = {_license_of(source) for source in record.sources}
    return found.pop() if len(found) == 1 else None


def _license_of(source: RecordedSource) -> str | None:
    if source.made_by is not None:
        return _license(source.made_by)
    if source.file is None:
        return None
    try:  # not huggingface_hub's metadata_load: its import takes a third of a second of each merge
        beginning = read_text(source.file.with_name(CARD_NAME))[:_FRONT_MATTER]
        text = yaml.safe_load(beginning.split("---", 2)[1])["license"]
    except Exception:  # a stranger's card may hold anything, and none is needed
        return None
    return (
        text
        if isinstance(text, str) and re.fullmatch(r"[a-z0-9.-]+", text) and text != "other"
        else None
    )


def _summary(base: str | None, count: int) -> str:
    of = f" of [{code(base)}]({_HUB}/{base})" if base else ""
    what = "one LoRA adapter" if count == 1 else f"{count} LoRA adapters"
    return f"A LoRA adapter{of}: {what} merged with gam-merge {VERSION}."


def _sources(report: MergeReport, record: Record) -> Iterator[str]:
    rows = [
        "| adapter | revision | weight | rank | alpha | survives |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for source, survival in zip(record.sources, report.survival, strict=True):
        weight = f"{source.weight:.4g}" if isinstance(source.weight, int | float) else "by module"
        alpha = "" if source.alpha is None else f"{source.alpha:g}"
        cells = (*_source(source), weight, str(source.rank), alpha, f"{100 * survival:.1f} %")
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    yield "\n".join(rows)
    yield "An adapter survives by its projection on the result: 100 % if all of it is in there."


def _source(source: RecordedSource) -> tuple[str, str]:
    """Name and revision, linked where it is on the Hub."""
    hub = parse_hub_id(source.source) if source.revision else None
    if hub is None:
        return code(source.name(None)), ""
    at = f"{_HUB}/{hub.repo}/tree/{quote(source.revision or '', safe='')}/{quote(hub.subfolder or '')}".rstrip(
        "/"
    )
    where = f"{hub.repo}:{hub.subfolder}" if hub.subfolder else hub.repo
    return f"[{code(where)}]({at})", code((source.revision or "")[:12])


def _method(record: Record) -> str:
    method = get_method(record.method)
    reference = re.sub(
        r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", method.rule.reference
    )
    return f"{code(record.method)}: {method.rule.summary}." + (
        f" Reference: {reference}." if reference else ""
    )


def _outcome(report: MergeReport, record: Record) -> str:
    renamed = {source.source: source.name(None) for source in record.sources}
    lines = [
        f"- Norm of the merged update: {report.norm_ratio:.3f} of the weighted mean of the sources'.",
        f"- Rank {report.rank} keeps {100 * report.energy_kept:.2f} % of the energy (squared norm) of the merge.",
        f"- {len(report.modules)} modules, written in {report.dtype}.",
        *(f"- {code(replace_names(note, renamed))}" for note in report.notes),
    ]
    for text, names in report.warnings.items():
        lines.append(
            f"- {printable(text)} in {len(names)} of {len(report.modules)} modules, first {code(names[0])}"
        )
    return "\n".join(lines)


def _recipe(record: Record, files: Mapping[str, str]) -> str:
    text = recipe_text(record, None, files)
    return f"{(fence := _fence(text, 3))}yaml\n{text}{fence}"


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


def code(text: str) -> str:
    """The text as a code span of Markdown: nothing in it is read as Markdown, HTML or a link."""
    text = printable(text)
    fence = _fence(text, 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}" if text.strip() else "` `"


def replace_names(note: str, names: Mapping[str, str]) -> str:
    """A note of a report with other names of the sources."""
    for old in sorted(names, key=len, reverse=True):
        note = note.replace(old, names[old])
    return note


def _fence(text: str, least: int) -> str:
    """Backticks, more in a row than the text has anywhere."""
    return "`" * max(least, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
