"""From the Hub, through huggingface_hub alone: it knows the token, the cache, the endpoint and the offline switch.

Its errors become one line here, by one table. Server text never gets into a message: it may repeat what it was sent.
Takes a third of a second to import: where it is not sure to be needed it is imported inside a function.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
from huggingface_hub import HfApi, constants
from huggingface_hub import errors as hub_errors

from gam_merge._common.errors import GamMergeError
from gam_merge._read.formats import config_names, config_names_next_to, weights_names
from gam_merge._read.hub_id import HubId

_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"

# What a failed request means, the first type that fits. HfHubHTTPError is looked up by its status instead.
_MEANING: tuple[tuple[type[BaseException], str], ...] = (
    (hub_errors.GatedRepoError, f"it is gated: ask for access on its page, then {_LOG_IN}"),
    (hub_errors.DisabledRepoError, "the Hub has disabled it"),
    (
        hub_errors.RepositoryNotFoundError,
        f"there is no such repository, or it is private: check the name, or {_LOG_IN}",
    ),
    (hub_errors.RevisionNotFoundError, "there is no such revision"),
    (hub_errors.EntryNotFoundError, "there is no such file"),
    (
        hub_errors.OfflineModeIsEnabled,
        "it is not in the cache and HF_HUB_OFFLINE forbids to fetch it; unset that once",
    ),
    (
        hub_errors.FileMetadataError,
        "the endpoint does not answer as a Hub does; check HF_ENDPOINT and the proxy",
    ),
    (hub_errors.HFValidationError, "that is no valid repository name"),
)
_STATUS = {
    400: "the Hub refused the request as malformed",
    401: f"the Hub wants a valid token; {_LOG_IN}",
    403: "the token may not do that; use one with the right to it",
    409: "it was changed at the same time; try again",
    413: "it is too large for the Hub",
    429: "the Hub has had too many requests; wait and try again",
}
# The base class of all transport errors of the HTTP client that this version of huggingface_hub is built on.
_TRANSPORT: type[BaseException] = hub_errors.HfHubHTTPError.__bases__[0]


def fetch(hub: HubId) -> tuple[Path, str]:
    """The adapter as a directory or a file of the local cache, and the commit that it is from.

    Its config and its weights are downloaded, both from one commit, and nothing else. Raises GamMergeError.
    """
    with explained(str(hub)):
        if hub.subfolder and hub.subfolder.endswith(".safetensors"):
            return _fetch_file(hub, hub.subfolder)
        folder = PurePosixPath(hub.subfolder or "")
        config = first(hub, [str(folder / name) for name in config_names()])
        if config is None:
            raise _no_adapter(hub)
        commit = config.parents[len(folder.parts)].name  # .../snapshots/<commit>/<folder>/<file>
        pinned = replace(hub, revision=commit)
        if first(pinned, [str(folder / name) for name in weights_names()]) is None:
            raise _no_adapter(hub)
        return config.parent, commit


def _fetch_file(hub: HubId, name: str) -> tuple[Path, str]:
    """One file of weights, and its config where there is one."""
    file = PurePosixPath(name)
    weights = download(hub, name)
    commit = weights.parents[len(file.parts) - 1].name
    configs = [str(file.with_name(config)) for config in config_names_next_to(file)]
    first(replace(hub, revision=commit), configs)
    return weights, commit


def first(hub: HubId, names: Sequence[str]) -> Path | None:
    """The first of these files that there is. One that cannot be asked for is an error: the next might be another's."""
    for name in names:
        try:
            return download(hub, name)
        except hub_errors.EntryNotFoundError as error:
            absent = huggingface_hub.try_to_load_from_cache(hub.repo, name, revision=hub.revision)
            if isinstance(error, hub_errors.LocalEntryNotFoundError) and (
                absent is None or isinstance(absent, str)
            ):
                raise  # not because the cache remembers that the Hub has no such file
    return None


def download(hub: HubId, name: str) -> Path:
    return Path(
        huggingface_hub.hf_hub_download(
            hub.repo, name, revision=hub.revision, library_name="gam-merge"
        )
    )


def _no_adapter(hub: HubId) -> GamMergeError:
    """Why a repository, or its subfolder, is no adapter, from the names of its files."""
    siblings = HfApi().model_info(hub.repo, revision=hub.revision).siblings or ()
    files = {PurePosixPath(sibling.rfilename) for sibling in siblings}
    folder = PurePosixPath(hub.subfolder or "")
    folders = sorted(
        file.parent for file in files if file.name in config_names() and file.parent != folder
    )
    if folders:
        others = (
            replace(hub, subfolder=str(other) if other.parts else None) for other in folders[:5]
        )
        return GamMergeError(
            f"{hub}: holds no adapter, but others do: name one as {', '.join(map(str, others))}"
        )
    return GamMergeError(
        f"{hub}: is no adapter: it does not hold both {config_names()[0]} and {weights_names()[0]}"
    )


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns what huggingface_hub raises into a GamMergeError of one line that begins with ``what``.

    ``from None``: a chained traceback would show request URLs, and the signed ones among them are secrets.
    """
    try:
        yield
    except (_TRANSPORT, OSError, ValueError, RuntimeError, hub_errors.EntryNotFoundError) as error:
        raise GamMergeError(f"{what}: {_meaning(_root(error))}") from None


def _root(error: BaseException) -> BaseException:
    """What huggingface_hub wrapped into a general 'not found in the cache' or 'error while uploading'."""
    wrapped = isinstance(error, hub_errors.LocalEntryNotFoundError) or type(error) is RuntimeError
    return _root(error.__cause__) if wrapped and error.__cause__ is not None else error


def _meaning(error: BaseException) -> str:
    for kind, text in _MEANING:
        if isinstance(error, kind):
            return text
    host = urlsplit(constants.ENDPOINT).hostname
    if isinstance(error, hub_errors.HfHubHTTPError):
        response: Any = error.response
        status = response.status_code if response is not None else 0
        return _STATUS.get(status, f"{host} answers with error {status}; try again later")
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be stored: {error.strerror}"
    if isinstance(error, _TRANSPORT | OSError):
        return f"the connection to {host} failed ({type(error).__name__}); check the network and try again"
    return f"{host} gave an answer that is not understood ({type(error).__name__}); try again later"
