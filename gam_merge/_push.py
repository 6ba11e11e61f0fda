"""Uploads an output to the Hub: the files that gam-merge wrote, and no others, in one commit.

None of them is a link, and none reveals a path of this machine.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import huggingface_hub  # loads its parts on request

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import is_there, read_text
from gam_merge._read.hub_id import HubId
from gam_merge._read.place import place_of
from gam_merge._write.adapter import CARD_NAME, REPORT_NAME
from gam_merge._write.card import FIGURE_PLACEHOLDER, REPO_PLACEHOLDER
from gam_merge._write.output import written_files
from gam_merge._write.published import as_written, published

_FIGURE_NAME = "merge.png"
_TEXTS = (".json", ".yaml", ".md")  # suffixes of files that may name a path of this machine

_Texts = Mapping[str, str]  # name of a file -> its content


def push(
    directory: str | PathLike[str],
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Merged LoRA adapter",
    token: str | None = None,
) -> str:
    """Upload a merge to a model repository of the Hub, which is created if it does not exist.

    Cache and endpoint are those of huggingface_hub, and so is the token unless one is given.

    Args:
        directory: the output of a merge, a directory or a file, or of ``extract`` or ``fuse``.
        repo: the name of the repository, ``user/name``.
        private: create the repository as private. One that already exists and is public is an
            error.
        revision: the branch, which is created if it does not exist.
        create_pr: open a pull request instead.
        commit_message: the message of the commit.
        token: a token of the Hub that may write to the repository.

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

    HubId.parse_repo(repo)
    path = place_of(Path(directory)).path
    operations = _operations(path, repo)
    api = huggingface_hub.HfApi(library_name="gam-merge", token=token)
    try:
        with explained(repo):
            return _commit(api, operations, repo, private, revision, create_pr, commit_message)
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
    api: "huggingface_hub.HfApi",
    operations: Sequence["huggingface_hub.CommitOperationAdd"],
    repo: str,
    private: bool,
    revision: str | None,
    create_pr: bool,
    message: str,
) -> str:
    """Make the commit; return its URL. Raises what huggingface_hub raises."""
    api.create_repo(repo, private=private or None, exist_ok=True)
    if private and not api.model_info(repo).private:
        raise GamMergeError(
            f"{repo}: already exists and is public; "
            "make it private on its page or leave out --private"
        )
    if revision is not None and not create_pr:
        api.create_branch(repo, branch=revision, exist_ok=True)
    # Not upload_folder, which may make several commits.
    commit = api.create_commit(
        repo, operations, commit_message=message, revision=revision, create_pr=create_pr
    )
    return str(commit.pr_url if create_pr else commit.commit_url)


def _operations(path: Path, repo: str) -> list["huggingface_hub.CommitOperationAdd"]:
    """Return the files of a commit: those that gam-merge wrote, and the figure of the card.

    Raises GamMergeError.
    """
    add = huggingface_hub.CommitOperationAdd
    files = written_files(path)
    if not files:
        if not is_there(path):
            raise GamMergeError(f"{path}: no such file or directory")
        raise GamMergeError(f"{path}: is not a merge that gam-merge wrote; only those are pushed")
    texts: dict[str, str] = {}
    operations: list[huggingface_hub.CommitOperationAdd] = []
    for name, file in files.items():
        if file.suffix in _TEXTS:
            texts[name] = read_text(file)
        else:
            operations.append(add(name, file))
    place = place_of(path)
    texts = published(texts, place.home, place.config_name)
    figure = None
    if CARD_NAME in texts:
        figure = _figure(place.home, texts)
        image = f"![Share of each adapter that survives, by layer]({_FIGURE_NAME})"
        card = texts[CARD_NAME].replace(REPO_PLACEHOLDER, repo)
        texts[CARD_NAME] = card.replace(FIGURE_PLACEHOLDER, image if figure else "")
    operations += [add(name, text.encode()) for name, text in texts.items()]
    if figure is not None:
        operations.append(add(_FIGURE_NAME, figure))
    return operations


def _figure(home: Path, texts: _Texts) -> bytes | None:
    """Draw the figure of the report, if there is one and matplotlib is installed."""
    try:
        from gam_merge._diagnose.survival import survival_png
    except ImportError:
        return None
    if REPORT_NAME not in texts:
        return None
    with as_written(home / REPORT_NAME):
        return survival_png(json.loads(texts[REPORT_NAME]))
