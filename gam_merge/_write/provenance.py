"""The record of a merge as text: a recipe that gives the same bytes again, and what weights say of their origins."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gam_merge._common import yaml
from gam_merge._common.files import FileVersion, sha256
from gam_merge._common.version import VERSION
from gam_merge._read.hub_id import parse_hub_id
from gam_merge._read.record import Record
from gam_merge._recipes.recipe import Recipe
from gam_merge._write.adapter import RECIPE_NAME

METHOD_KEY, ORIGINS_KEY = "gam_merge.method", "gam_merge.sources"  # in the metadata of the weights
_Digest = Callable[[Path, FileVersion | None], str]


def recipe_text(record: Record, home: Path | None, files: Mapping[str, str] | None = None) -> str:
    """The recipe as it stands in the directory ``home``; without one it is for others, and tells no path of this
    machine but its last part. Merges that were sources of this one come before it, each a document. ``files``: the
    sha256 of what it gave, by name. Raises GamMergeError if a source can no longer be read, or has changed."""
    documents = _documents(record, home, sha256)
    if files:
        documents[-1]["output"]["sha256"] = dict(files)
    comment = (
        f"# gam-merge {VERSION}; the same merge again: gam-merge --recipe {RECIPE_NAME} -o OUT\n"
    )
    return comment + yaml.dump(documents)


def origins_text(record: Record, *, known: bool = True) -> str:
    """What the metadata of the weights say of the files that a merge began with, as JSON. As long if the digests are
    not ``known`` yet. Raises GamMergeError as above."""
    return json.dumps(
        origins(_documents(record, None, sha256 if known else lambda file, version: "0" * 64))
    )


def origins(documents: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The files that the merges of a recipe began with, in order: the sha256 of each, and the Hub id at its commit."""
    sources = [
        source for document in documents for source in document["sources"] if source.get("sha256")
    ]
    return [
        {
            "sha256": source["sha256"],
            **({"source": source["path"]} if _is_pinned(source["path"]) else {}),
        }
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


def _add(
    wanted: str, record: Record, home: Path | None, digest: _Digest, documents: list[dict[str, Any]]
) -> str:
    """Add the document of a merge after those of its sources, unless it is there; its name."""
    sources = []
    for source in record.sources:
        name = (
            _add(source.source, source.made_by, home, digest, documents)
            if source.made_by
            else source.name(home)
        )
        given = {
            "base_model": source.given.get("base_model_name_or_path"),
            "alpha": source.given.get("lora_alpha"),
        }
        found = digest(source.file, source.version) if source.file else None
        sources.append({"path": name, "weight": source.weight, **given, "sha256": found})
    document = {
        "method": record.method,
        "params": dict(record.params),
        "sources": sources,
        "anchor": record.anchor,
        "missing": record.missing,
        **({"allow_base_mismatch": True} if record.allow_base_mismatch else {}),
        **({"base_model": base} if (base := record.base_name(home)) else {}),
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
    return next(
        name
        for i in range(1, len(taken) + 2)
        if (name := word if i == 1 else f"{word}-{i}") not in taken
    )
