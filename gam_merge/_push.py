"""Uploads a merge to the Hub: the files that gam-merge wrote, and no others, in one commit.

None of them reveals a path of this machine: sources are named by the last part of their paths and
identified by their SHA-256.
"""

import json
import os
import re
import shlex
from collections.abc import Mapping
from os import PathLike
from pathlib import Path, PurePath
from typing import Any

import huggingface_hub  # loads its parts on request

from gam_merge._common import yaml
from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import sha256_of
from gam_merge._read.hub_id import HubId, parse_hub_id
from gam_merge._read.place import Place, place_of
from gam_merge._write.adapter import CARD_NAME, RECIPE_NAME, REPORT_NAME, TEXT_NAMES, as_json
from gam_merge._write.card import FIGURE_PLACEHOLDER, REPO_PLACEHOLDER, replace_names
from gam_merge._write.output import stamped

_FIGURE_NAME = "merge.png"

_Texts = Mapping[str, str]  # name of a file -> its content


def push(
    directory: str | PathLike[str],
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Merged LoRA adapter",
) -> str:
    """Upload a merge to a model repository of the Hub, which is created if it does not exist.

    Token, cache and endpoint are those of huggingface_hub.

    Args:
        directory: the output of a merge, a directory or a file.
        repo: the name of the repository, ``user/name``.
        private: create the repository as private. One that already exists and is public is an
            error.
        revision: the branch, which is created if it does not exist.
        create_pr: open a pull request instead.
        commit_message: the message of the commit.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        GamMergeError: with the command that tries again. The directory stays as it was.

    Example:
        >>> adapters = ["examples/adapters/addition", "examples/adapters/sorting"]
        >>> result = gm.merge(adapters, method="mean", out="merged")
        >>> gm.push("merged", "user/name", private=True)  # doctest: +SKIP
        'https://huggingface.co/user/name/commit/...'

        Only what gam-merge wrote is uploaded:

        >>> gm.push("examples/adapters/addition", "user/name")
        Traceback (most recent call last):
            ...
        gam_merge.GamMergeError: examples/adapters/addition: is not a merge ...
    """
    from gam_merge._read.hub import explained

    hub = parse_hub_id(repo)
    if hub is None or hub != HubId(hub.repo):
        raise GamMergeError(f"{repo}: is not a repository name; give user/name")
    path = Path(directory)
    place = place_of(path)
    if not stamped(place.weights):
        raise GamMergeError(f"{path}: is not a merge that gam-merge wrote; only those are pushed")
    try:
        with explained(repo):
            return _commit(place, repo, private, revision, create_pr, commit_message)
    except GamMergeError as error:
        command = _command(path, repo, private, revision, create_pr)
        raise GamMergeError(f"{error}; {path} is complete, push it again with: {command}") from None


def _command(path: Path, repo: str, private: bool, revision: str | None, create_pr: bool) -> str:
    """Return the command line that pushes with these arguments."""
    words = ["gam-merge", "push", str(path), repo]
    if private:
        words.append("--private")
    if create_pr:
        words.append("--create-pr")
    if revision:
        words += ["--revision", revision]
    return shlex.join(words)


def _commit(
    place: Place, repo: str, private: bool, revision: str | None, create_pr: bool, message: str
) -> str:
    """Make the commit; return its URL. Raises what huggingface_hub raises."""
    api = huggingface_hub.HfApi(library_name="gam-merge")
    api.create_repo(repo, private=private or None, exist_ok=True)
    if private and not api.model_info(repo).private:
        raise GamMergeError(
            f"{repo}: already exists and is public; "
            "make it private on its page or leave out --private"
        )
    if revision is not None and not create_pr:
        api.create_branch(repo, branch=revision, exist_ok=True)
    weights = huggingface_hub.CommitOperationAdd(place.weights.name, place.weights)
    operations = [weights]
    for name, content in _companions(place, repo).items():
        operations.append(huggingface_hub.CommitOperationAdd(name, content))
    # Not upload_folder, which may make several commits.
    commit = api.create_commit(
        repo, operations, commit_message=message, revision=revision, create_pr=create_pr
    )
    return str(commit.pr_url if create_pr else commit.commit_url)


def _companions(place: Place, repo: str) -> dict[str, bytes]:
    """Return the files next to the weights as they are published, and the figure of the card."""
    config_name = place.config_name
    names = TEXT_NAMES if config_name is None else (*TEXT_NAMES, config_name)
    written = [name for name in names if place.file(name).is_file()]
    texts = _published({name: place.file(name).read_text("utf-8") for name in written}, config_name)
    figure = None
    if CARD_NAME in texts:
        figure = _figure(texts)
        image = f"![Share of each adapter that survives, by layer]({_FIGURE_NAME})"
        card = texts[CARD_NAME].replace(REPO_PLACEHOLDER, repo)
        texts[CARD_NAME] = card.replace(FIGURE_PLACEHOLDER, image if figure else "")
    files = {name: text.encode() for name, text in texts.items()}
    if figure is not None:
        files[_FIGURE_NAME] = figure
    return files


def _figure(texts: _Texts) -> bytes | None:
    """Draw the figure of the report, if there is one and matplotlib is installed."""
    try:
        from gam_merge._diagnose.survival import survival_png
    except ImportError:
        return None
    return survival_png(json.loads(texts[REPORT_NAME])) if REPORT_NAME in texts else None


# --- without paths of this machine --------------------------------------------------------------


def _published(texts: _Texts, config_name: str | None) -> dict[str, str]:
    """Return the texts of a merge without paths of this machine.

    Recipe and card record the SHA-256 of the config: they get that of the published one.
    """
    result = dict(texts)
    if config_name is not None and config_name in texts:
        config = _config(texts[config_name])
        old, new = sha256_of(texts[config_name]), sha256_of(config)
        result = {name: text.replace(old, new) for name, text in texts.items()}
        result[config_name] = config
    if REPORT_NAME in result:
        result[REPORT_NAME] = _report(result)
    if RECIPE_NAME in result:
        result[RECIPE_NAME] = _recipe(result)
    return result


def _config(text: str) -> str:
    """Return a config in which every path of this machine is its last part."""
    config = json.loads(text)
    for name, value in config.items():
        if isinstance(value, str):
            config[name] = _public(value)
    return as_json(config, sort=True)


def _recipe(texts: _Texts) -> str:
    lines = texts[RECIPE_NAME].splitlines(keepends=True)
    comments = [line for line in lines if line.startswith("#")]
    return "".join(comments) + yaml.dump(_public_merges(texts))


def _report(texts: _Texts) -> str:
    report = json.loads(texts[REPORT_NAME])
    sources = report["sources"]
    names = []
    if RECIPE_NAME in texts:  # it distinguishes paths from Hub ids; the report has them as typed
        names = [source["path"] for source in _public_merges(texts)[-1]["sources"]]
    if len(names) != len(sources):
        names = [_public(source) for source in sources]
    renamed = dict(zip(sources, names, strict=True))
    report["notes"] = [replace_names(note, renamed) for note in report["notes"]]
    report["sources"] = names
    return as_json(report)


def _public_merges(texts: _Texts) -> list[dict[str, Any]]:
    """Return the merges of the recipe with public names."""
    merges = [document.data for document in yaml.parse(texts[RECIPE_NAME], RECIPE_NAME)]
    for merge in merges:
        for source in merge["sources"]:
            for key in source.keys() & {"path", "base_model"}:
                source[key] = _public(source[key])
    return merges


def _public(name: str) -> str:
    """Return the last part of a path of this machine, and anything else as it is."""
    local = re.match(r"[./~\\]|[A-Za-z]:[/\\]", name) or os.path.exists(name)
    return PurePath(name.replace("\\", "/")).name if local else name
