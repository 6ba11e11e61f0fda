"""The texts of an output as they are published: without paths of this machine.

Of a path only the last part remains. Sources are identified by their SHA-256, or by a Hub id.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from gam_merge._common import yaml
from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import sha256_of
from gam_merge._recipes.file import parse_recipes
from gam_merge._write.adapter import (
    EXTRACT_REPORT_NAME,
    FUSE_REPORT_NAME,
    RECIPE_NAME,
    REPORT_NAME,
    as_json,
)
from gam_merge._write.card import public_note

_Texts = Mapping[str, str]  # name of a file -> its content

_REPORTS = (REPORT_NAME, EXTRACT_REPORT_NAME, FUSE_REPORT_NAME)
_NAME_OF_A_MODEL = "name_or_path"  # how the keys end under which transformers keeps one


def published(texts: _Texts, folder: Path, config_name: str | None) -> dict[str, str]:
    """Return the texts of an output of gam-merge without paths of this machine.

    folder: where they are, for errors. config_name: the config of an adapter; recipe and card
    record its SHA-256, and get that of the published one.

    Raises GamMergeError for a text that was edited so that it cannot be read any more.
    """
    result = dict(texts)
    for name in sorted(texts, key=lambda name: name != config_name):  # the config first
        with as_written(folder / name):
            if name == config_name:
                result = _with_config(result, name)
            elif name in _REPORTS:
                result[name] = _report(texts[name], _names_of_sources(texts, folder))
            elif name == RECIPE_NAME:
                result[name] = _recipe(result[name], folder)
            elif name.endswith(".json") and _NAME_OF_A_MODEL in texts[name]:
                result[name] = as_json(_without_paths(json.loads(texts[name]), _NAME_OF_A_MODEL))
    return result


@contextmanager
def as_written(file: Path) -> Iterator[None]:
    """Turn what an edited file causes into a GamMergeError."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        raise GamMergeError(
            f"{file}: is not as gam-merge wrote it; write the output again"
        ) from None


def _with_config(texts: _Texts, name: str) -> dict[str, str]:
    """Return the texts with the published config, and its SHA-256 in place of the old one."""
    config = as_json(_without_paths(json.loads(texts[name]), ""), sort=True)
    old, new = sha256_of(texts[name]), sha256_of(config)
    return {**{other: text.replace(old, new) for other, text in texts.items()}, name: config}


def _without_paths(config: Mapping[str, Any], end: str) -> dict[str, Any]:
    """Return a config in which texts are public whose keys end so, also in the configs within."""
    result = dict(config)
    for key, value in config.items():
        if isinstance(value, dict):
            result[key] = _without_paths(value, _NAME_OF_A_MODEL)
        elif isinstance(value, str) and key.endswith(end):
            result[key] = _public(value)
    return result


def _recipe(text: str, folder: Path) -> str:
    comments = [line for line in text.splitlines(keepends=True) if line.startswith("#")]
    return "".join(comments) + yaml.dump(_public_merges(text, folder))


def _public_merges(text: str, folder: Path) -> list[dict[str, Any]]:
    """Return the merges of a recipe with public names. Raises GamMergeError."""
    parse_recipes(text, folder / RECIPE_NAME)  # checks all of it
    merges = [document.data for document in yaml.parse(text, RECIPE_NAME)]
    for merge in merges:
        for part in (merge, *merge["sources"]):
            for key in part.keys() & {"path", "base_model"}:
                part[key] = _public(part[key])
    return merges


def _names_of_sources(texts: _Texts, folder: Path) -> list[str]:
    """Return the public names of the sources of a merge by its recipe, if there is one.

    It distinguishes paths from Hub ids; the report has them as typed.
    """
    if RECIPE_NAME not in texts:
        return []
    return [source["path"] for source in _public_merges(texts[RECIPE_NAME], folder)[-1]["sources"]]


def _report(text: str, names: list[str]) -> str:
    """Return a report with public names. names: of its sources, if they are known."""
    report = json.loads(text)
    renamed: dict[str, str] = {}
    for key in ("base", "tuned", "adapter"):  # of an extracted adapter, of a fused model
        if key in report:
            renamed[report[key]] = _public(report[key])
            report[key] = renamed[report[key]]
    if "sources" in report:
        public = names if len(names) == len(report["sources"]) else map(_public, report["sources"])
        renamed |= dict(zip(report["sources"], public, strict=True))
        report["sources"] = [renamed[source] for source in report["sources"]]
    if "notes" in report:
        report["notes"] = [public_note(note, renamed) for note in report["notes"]]
    return as_json(report)


def _public(name: str) -> str:
    """Return the last part of a path of this machine, and anything else as it is."""
    local = re.match(r"[./~\\]|[A-Za-z]:[/\\]", name) or os.path.exists(name)
    return PurePath(name.replace("\\", "/")).name if local else name
