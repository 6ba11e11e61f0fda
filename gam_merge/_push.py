"""To the Hub: the files of a merge, those and no others, in one commit.

What goes there tells no path of this machine: sources are named by their last part, and known by their sha256.
"""

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path, PurePath

import huggingface_hub  # loads its parts when they are asked for

from gam_merge._common import yaml
from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import sha256_of
from gam_merge._read.hub_id import HubId, parse_hub_id
from gam_merge._read.peft import CONFIG_NAME, WEIGHTS_NAME
from gam_merge._write.adapter import CARD_NAME, RECIPE_NAME, REPORT_NAME, TEXT_NAMES, as_json
from gam_merge._write.card import FIGURE_PLACEHOLDER, REPO_PLACEHOLDER, replace_names
from gam_merge._write.directory import stamped

_FIGURE_NAME = "merge.png"
_NAMES = (*TEXT_NAMES, CONFIG_NAME)


def push(
    directory: str | PathLike[str],
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Merged LoRA adapter",
) -> str:
    """Upload a merge to a model repository of the Hub, which is made if it is not there; the URL of the commit.

    directory: what a merge wrote. repo: ``user/name``. private: the repository that is made is private; one that is
    public already is an error. revision: the branch, made if it is not there. create_pr: open a pull request instead,
    and give its URL. Token, cache and endpoint are huggingface_hub's.

    Raises GamMergeError with the command that tries again; the directory is as it was.
    """
    from gam_merge._read.hub import explained

    hub = parse_hub_id(repo)
    if hub is None or hub != HubId(hub.repo):
        raise GamMergeError(f"{repo}: is no name of a repository; give user/name")
    path = Path(directory)
    if not stamped(path / WEIGHTS_NAME):
        raise GamMergeError(f"{path}: is not a merge that we wrote; only those are pushed")
    api = huggingface_hub.HfApi(library_name="gam-merge")
    try:
        with explained(repo):
            return _commit(api, path, repo, private, revision, create_pr, commit_message)
    except GamMergeError as error:
        flags = (["--private"] if private else []) + (["--create-pr"] if create_pr else [])
        flags += ["--revision", revision] if revision else []
        again = shlex.join(["gam-merge", "push", str(path), repo, *flags])
        raise GamMergeError(f"{error}; {path} is whole, push it again with: {again}") from None


def _commit(
    api: "huggingface_hub.HfApi",
    path: Path,
    repo: str,
    private: bool,
    revision: str | None,
    create_pr: bool,
    message: str,
) -> str:
    api.create_repo(repo, private=private or None, exist_ok=True)
    if private and not api.model_info(repo).private:
        raise GamMergeError(
            f"{repo}: is there already, and public; make it private on its page or leave out --private"
        )
    if revision is not None and not create_pr:
        api.create_branch(repo, branch=revision, exist_ok=True)
    # Not upload_folder: that may commit several times.
    commit = api.create_commit(
        repo,
        list(_operations(path, repo)),
        commit_message=message,
        revision=revision,
        create_pr=create_pr,
    )
    return str(commit.pr_url if create_pr else commit.commit_url)


def _operations(path: Path, repo: str) -> "Iterator[huggingface_hub.CommitOperationAdd]":
    """One a file that a merge writes and that is there, and the figure of the card."""
    texts = {
        name: (path / name).read_text("utf-8")
        for name in (*TEXT_NAMES, CONFIG_NAME)
        if (path / name).is_file()
    }
    texts = _published(texts)
    figure = _figure(texts) if CARD_NAME in texts else None
    if CARD_NAME in texts:
        shown = f"![What survives of each adapter in each layer]({_FIGURE_NAME})" if figure else ""
        texts[CARD_NAME] = (
            texts[CARD_NAME].replace(REPO_PLACEHOLDER, repo).replace(FIGURE_PLACEHOLDER, shown)
        )
    contents = {name: text.encode() for name, text in texts.items()} | (
        {_FIGURE_NAME: figure} if figure else {}
    )
    yield huggingface_hub.CommitOperationAdd(WEIGHTS_NAME, path / WEIGHTS_NAME)
    for name, content in contents.items():
        yield huggingface_hub.CommitOperationAdd(name, content)


def _published(texts: Mapping[str, str]) -> dict[str, str]:
    """The texts of a merge without paths of this machine."""
    result, names = dict(texts), list[str]()
    if CONFIG_NAME in result:
        config = json.loads(result[CONFIG_NAME])
        if base := config.get("base_model_name_or_path"):
            config["base_model_name_or_path"] = _public(base)
        result[CONFIG_NAME] = as_json(config, sort=True)
    for name in (RECIPE_NAME, CARD_NAME):  # both know the config as it was by its sha256
        if name in result and CONFIG_NAME in result:
            old, new = sha256_of(texts[CONFIG_NAME]), sha256_of(result[CONFIG_NAME])
            result[name] = result[name].replace(old, new)
    if RECIPE_NAME in result:
        documents = [document.data for document in yaml.parse(result[RECIPE_NAME], RECIPE_NAME)]
        for source in (source for document in documents for source in document["sources"]):
            source.update(
                {key: _public(source[key]) for key in ("path", "base_model") if key in source}
            )
        names = [source["path"] for source in documents[-1]["sources"]]
        comments = [
            line for line in result[RECIPE_NAME].splitlines(keepends=True) if line.startswith("#")
        ]
        result[RECIPE_NAME] = "".join(comments) + yaml.dump(documents)
    if REPORT_NAME in result:
        report = json.loads(result[REPORT_NAME])
        # The recipe knows paths from Hub ids, which the report names as they were typed.
        names = (
            names
            if len(names) == len(report["sources"])
            else [_public(name) for name in report["sources"]]
        )
        report["notes"] = [
            replace_names(note, dict(zip(report["sources"], names, strict=True)))
            for note in report["notes"]
        ]
        report["sources"] = names
        result[REPORT_NAME] = as_json(report)
    return result


def _figure(texts: Mapping[str, str]) -> bytes | None:
    """Of the report, where matplotlib is installed."""
    try:
        from gam_merge._diagnose.survival import survival_png
    except ImportError:
        return None
    return survival_png(json.loads(texts[REPORT_NAME])) if REPORT_NAME in texts else None


def _public(name: str) -> str:
    """The last part of a path of this machine; anything else as it is."""
    local = re.match(r"[./~\\]|[A-Za-z]:[/\\]", name) or os.path.exists(name)
    return PurePath(name.replace("\\", "/")).name if local else name
