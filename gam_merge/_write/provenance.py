"""The record of a merge as text: a recipe that gives the same bytes again, and its origins."""

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
from gam_merge._write.adapter import RECIPE_NAME

METHOD_KEY, ORIGINS_KEY = "gam_merge.method", "gam_merge.sources"  # in the metadata of the weights
_Digest = Callable[[Path, FileVersion | None], str]


def recipe_text(record: Record, home: Path | None, files: Mapping[str, str] | None = None) -> str:
    """Return the recipe as it stands in the directory ``home``.

    Without ``home`` it is for others, and holds no more of a path of this machine than its last
    part. Merges that were sources of this one come before it, each a document. files: the sha256
    of what it gave, by name.

    Raises GamMergeError if a source can no longer be read, or has changed.
    """
    documents = _documents(record, home, sha256)
    if files:
        documents[-1]["output"]["sha256"] = dict(files)
    comment = (
        f"# gam-merge {VERSION}; the same merge again: gam-merge --recipe {RECIPE_NAME} -o OUT\n"
    )
    return comment + yaml.dump(documents)


def origins_text(record: Record, *, known: bool = True) -> str:
    """Return the files that a merge began with as JSON, for the metadata of the weights.

    If the digests are not ``known`` yet, a text of the same length. Raises GamMergeError as above.
    """
    digest = sha256 if known else _unknown_digest
    return json.dumps(origins(_documents(record, None, digest)))


def _unknown_digest(file: Path, version: FileVersion | None) -> str:
    return "0" * 64


def origins(documents: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the files that the merges of a recipe began with, in order.

    Each with its sha256, that of its config, and the Hub id at its commit if it has one.
    """
    files: list[dict[str, str]] = []
    for document in documents:
        for source in document["sources"]:
            if source.get("sha256"):
                origin = {"sha256": source["sha256"]}
                if source.get("config_sha256"):
                    origin["config_sha256"] = source["config_sha256"]
                if _is_pinned(source["path"]):
                    origin["source"] = source["path"]
                files.append(origin)
    return files


def _is_pinned(path: str) -> bool:
    """Tell whether a source names a commit on the Hub."""
    hub = parse_hub_id(path)
    return hub is not None and re.fullmatch(r"[0-9a-f]{40}", hub.revision or "") is not None


def _documents(record: Record, home: Path | None, digest: _Digest) -> list[dict[str, Any]]:
    """Return the merges of a recipe; the last one is the one that is written."""
    documents: list[dict[str, Any]] = []
    _add("merged", record, home, digest, documents)
    if len(documents) == 1:
        del documents[0]["name"]
    return documents


def _add(
    wanted: str, record: Record, home: Path | None, digest: _Digest, documents: list[dict[str, Any]]
) -> str:
    """Add the document of a merge after those of its sources, unless it is there.

    Returns its name.
    """
    sources: list[dict[str, Any]] = []
    for source in record.sources:
        if source.made_by:
            path = _add(source.source, source.made_by, home, digest, documents)
        else:
            path = source.name(home)
        entry = {"path": path, "weight": source.weight, **source.given}
        if source.file:
            entry["sha256"] = digest(source.file, source.version)
        if source.config_file:
            entry["config_sha256"] = digest(source.config_file, source.config_version)
        sources.append(entry)
    document: dict[str, Any] = {
        "method": record.method,
        "params": dict(record.params),
        "sources": sources,
        "anchor": record.anchor,
        "missing": record.missing,
    }
    if record.allow_base_mismatch:
        document["allow_base_mismatch"] = True
    base = record.base_name(home)
    if base:
        document["base_model"] = base
    document["output"] = dict(record.output)
    plain = json.loads(json.dumps(document))  # in the types of YAML
    for known in documents:
        if {**plain, "name": known["name"]} == known:
            return str(known["name"])
    name = _free(wanted, [known["name"] for known in documents])
    documents.append({"name": name, **plain})
    return name


def _free(wanted: str, taken: Sequence[str]) -> str:
    """Return a name of a merge that no other has."""
    word = re.sub(r"[^\w.-]+", "-", wanted)
    name, number = word, 1
    while name in taken:
        number += 1
        name = f"{word}-{number}"
    return name
