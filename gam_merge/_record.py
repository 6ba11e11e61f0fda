"""What a merge was made of, written as a recipe from which the same bytes come again."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gam_merge import _yaml
from gam_merge._adapter import Adapter
from gam_merge._export import RECIPE_NAME
from gam_merge._files import FileVersion, sha256
from gam_merge._hub_id import HubId, parse_hub_id
from gam_merge._recipe import Recipe
from gam_merge._request import MergePlan
from gam_merge._settings import Setting
from gam_merge._version import VERSION

METHOD_KEY, ORIGINS_KEY = "gam_merge.method", "gam_merge.sources"  # in the metadata of the weights
_Digest = Callable[[Path, FileVersion | None], str]


@dataclass(frozen=True)
class RecordedSource:
    """One adapter of a merge, without its tensors: it may be kept for long."""

    source: str
    weight: Setting
    rank: int
    alpha: float | None  # lora_alpha of the config
    given: Mapping[str, Any]
    file: Path | None
    version: FileVersion | None
    revision: str | None
    made_by: "Record | None"

    def name(self, home: Path | None) -> str:
        """A Hub id at its commit; or a path, relative to ``home``, and the last part of it without one."""
        if self.revision is not None:
            hub = parse_hub_id(self.source)
            assert hub is not None, self.source
            return str(replace(hub, revision=self.revision))
        if self.file is None:
            return self.source
        return _seen_from(home, self.file if Path(self.source).name == self.file.name else self.file.parent)


def _seen_from(home: Path | None, path: Path) -> str:
    """A path relative to ``home``, and the last part of it without one."""
    if home is None:
        return path.name
    relative = Path(os.path.relpath(path, home.absolute())).as_posix()
    return relative if relative.startswith("..") else f"./{relative}"  # never to be taken for a name or a Hub id


def _absolute(place: Path | HubId) -> Path | HubId:
    return place.absolute() if isinstance(place, Path) else place


def _base_name(home: Path | None, base: Path | HubId) -> str:
    return str(base) if isinstance(base, HubId) else _seen_from(home, base)


@dataclass(frozen=True)
class Record:
    """A merge as it was done, every default filled in."""

    method: str
    params: Mapping[str, Setting]
    sources: tuple[RecordedSource, ...]
    anchor: int
    missing: str
    allow_base_mismatch: bool
    base: Path | HubId | None  # where the weights of the base model were read, for DoRA
    output: Mapping[str, Any]  # as a recipe has it

    @property
    def repeatable(self) -> bool:
        """Whether all of it began with files."""
        return all(s.file is not None or s.made_by is not None for s in self.sources)


def record(planned: MergePlan) -> Record:
    """What a planned merge will have been made of."""
    job, plan = planned.job, planned.plan
    return Record(
        method=job.method.name,
        params=job.method.validate({}) | dict(job.settings.params),
        sources=tuple(map(_recorded, plan.adapters, job.settings.weights)),
        anchor=job.anchor,
        missing=job.missing,
        allow_base_mismatch=len({adapter.base_model for adapter in plan.adapters} - {None}) > 1,
        base=_absolute(planned.base.place) if planned.base else None,
        output=_output(planned),
    )


def _output(planned: MergePlan) -> dict[str, Any]:
    policy, job = planned.policy, planned.job
    ranks: dict[str, Any] = {"rank": planned.plan.rank}
    if policy.looks:
        ranks = {"rank": policy.rank, "energy": policy.energy, "max_rank": policy.max_rank}
        ranks["per_module_rank"] = policy.per_module
    flatten = {"flatten_dora": True} if job.flatten else {}
    return {**ranks, **flatten, "dtype": str(job.dtype).removeprefix("torch.")}


def _recorded(adapter: Adapter, weight: Setting) -> RecordedSource:
    return RecordedSource(
        source=adapter.source,
        weight=weight,
        rank=adapter.rank,
        alpha=adapter.config.get("lora_alpha"),
        given=adapter.given,
        file=adapter.file,
        version=adapter.version,
        revision=adapter.revision,
        made_by=adapter.made_by,
    )


def recipe_text(record: Record, home: Path | None, files: Mapping[str, str] | None = None) -> str:
    """The recipe as it stands in the directory ``home``; without one it is for others, and tells no path of this
    machine but its last part. Merges that were sources of this one come before it, each a document. ``files``: the
    sha256 of what it gave, by name. Raises GamMergeError if a source can no longer be read, or has changed."""
    documents = _documents(record, home, sha256)
    if files:
        documents[-1]["output"]["sha256"] = dict(files)
    comment = f"# gam-merge {VERSION}; the same merge again: gam-merge --recipe {RECIPE_NAME} -o OUT\n"
    return comment + _yaml.dump(documents)


def origins_text(record: Record, *, known: bool = True) -> str:
    """What the metadata of the weights say of the files that a merge began with, as JSON. As long if the digests are
    not ``known`` yet. Raises GamMergeError as above."""
    return json.dumps(origins(_documents(record, None, sha256 if known else lambda file, version: "0" * 64)))


def origins(documents: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The files that the merges of a recipe began with, in order: the sha256 of each, and the Hub id at its commit."""
    sources = [source for document in documents for source in document["sources"] if source.get("sha256")]
    return [
        {"sha256": source["sha256"], **({"source": source["path"]} if _is_pinned(source["path"]) else {})}
        for source in sources
    ]


def _is_pinned(path: str) -> bool:
    """Whether it names a commit on the Hub."""
    hub = parse_hub_id(path)
    return hub is not None and re.fullmatch(r"[0-9a-f]{40}", hub.revision or "") is not None


def _documents(record: Record, home: Path | None, digest: _Digest) -> list[dict[str, Any]]:
    """The merges of a recipe, the one that is written last."""
    documents: list[dict[str, Any]] = []
    _add("merged", record, home, digest, documents)
    if len(documents) == 1:
        del documents[0]["name"]
    return documents


def _add(wanted: str, record: Record, home: Path | None, digest: _Digest, documents: list[dict[str, Any]]) -> str:
    """Add the document of a merge after those of its sources, unless it is there; its name."""
    sources = []
    for source in record.sources:
        name = _add(source.source, source.made_by, home, digest, documents) if source.made_by else source.name(home)
        given = {"base_model": source.given.get("base_model_name_or_path"), "alpha": source.given.get("lora_alpha")}
        found = digest(source.file, source.version) if source.file else None
        sources.append({"path": name, "weight": source.weight, **given, "sha256": found})
    document = {
        "method": record.method,
        "params": dict(record.params),
        "sources": sources,
        "anchor": record.anchor,
        "missing": record.missing,
        **({"allow_base_mismatch": True} if record.allow_base_mismatch else {}),
        **({"base_model": _base_name(home, record.base)} if record.base else {}),
        "output": dict(record.output),
    }
    plain = _plain(document)
    for known in documents:
        if {**plain, "name": known["name"]} == known:
            return str(known["name"])
    document = {"name": _free(wanted, [known["name"] for known in documents]), **plain}
    documents.append(document)
    return str(document["name"])


def _plain(document: Mapping[str, Any]) -> dict[str, Any]:
    """Checked, and in the types of YAML."""
    checked = Recipe.model_validate(json.loads(json.dumps(document)))
    return checked.model_dump(exclude_none=True, exclude_unset=True)


def _free(wanted: str, taken: Sequence[str]) -> str:
    """A name of a merge that no other has."""
    word = re.sub(r"[^\w.-]+", "-", wanted)
    return next(name for i in range(1, len(taken) + 2) if (name := word if i == 1 else f"{word}-{i}") not in taken)
