"""Downloads from the Hub, through huggingface_hub alone: token, cache, endpoint, offline switch.

Its errors become one line here, by one table. Text of the server never enters a message: it may
repeat what was sent to it. The import takes a third of a second, so it happens inside functions
wherever the module may not be needed.
"""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
from huggingface_hub import HfApi, constants
from huggingface_hub import errors as hub_errors

from gam_merge._common.errors import GamMergeError
from gam_merge._read.formats import (
    config_names,
    config_names_next_to,
    file_suffixes,
    weights_names,
    weights_names_without_config,
)
from gam_merge._read.hub_id import HubId

_SECONDS = 5.0  # for a host to answer
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"

# The meaning of a failed request; the first type that fits decides. HfHubHTTPError is looked up by
# its status instead.
_MEANING: tuple[tuple[type[BaseException], str], ...] = (
    (hub_errors.GatedRepoError, f"it is gated: request access on its page, then {_LOG_IN}"),
    (hub_errors.DisabledRepoError, "the Hub has disabled it"),
    (
        hub_errors.RepositoryNotFoundError,
        f"there is no such repository, or it is private: check the name, or {_LOG_IN}",
    ),
    (hub_errors.RevisionNotFoundError, "there is no such revision"),
    (
        hub_errors.LocalEntryNotFoundError,
        "no such directory here; taken as a Hub id, and the Hub cannot be reached, nor does the "
        "cache hold it",
    ),
    (hub_errors.EntryNotFoundError, "there is no such file"),
    (
        hub_errors.OfflineModeIsEnabled,
        "it is not in the cache and HF_HUB_OFFLINE forbids downloads; unset it once",
    ),
    (
        hub_errors.FileMetadataError,
        "the endpoint does not answer like a Hub; check HF_ENDPOINT and the proxy",
    ),
    (hub_errors.HFValidationError, "it is not a valid repository name"),
)
_STATUS = {
    400: "the Hub refused the request as malformed",
    401: f"the Hub requires a valid token; {_LOG_IN}",
    403: "the token does not permit this; use one that does",
    409: "it was changed by another request; try again",
    413: "it is too large for the Hub",
    429: "the Hub received too many requests; wait and try again",
}
# The base class of all transport errors of the HTTP client that huggingface_hub is built on.
_TRANSPORT: type[BaseException] = hub_errors.HfHubHTTPError.__bases__[0]


def fetch(hub: HubId) -> tuple[Path, str]:
    """Download an adapter; return its directory or file in the local cache, and its commit.

    Only its config and its weights are downloaded, both from the same commit. Raises GamMergeError.
    """
    with explained(str(hub)):
        if hub.subfolder and PurePosixPath(hub.subfolder).suffix in file_suffixes():
            return _fetch_file(hub, hub.subfolder)
        folder = PurePosixPath(hub.subfolder or "")
        config = first(hub, [str(folder / name) for name in config_names()])
        if config is None:
            return _fetch_without_config(hub)
        commit = _commit_of(config, folder)
        pinned = replace(hub, revision=commit)
        if first(pinned, [str(folder / name) for name in weights_names()]) is None:
            raise _no_adapter(hub)
        return config.parent, commit


def _fetch_without_config(hub: HubId) -> tuple[Path, str]:
    """Download the weights of an adapter in a format without a config."""
    folder = PurePosixPath(hub.subfolder or "")
    weights = first(hub, [str(folder / name) for name in weights_names_without_config()])
    if weights is not None:
        return weights, _commit_of(weights, folder)
    names = _files_of_weights(hub)
    if len(names) == 1:
        return _fetch_file(hub, names[0])
    if names:
        listed = ", ".join(f"{hub.repo}:{name}" for name in names[:5])
        raise GamMergeError(f"{hub}: holds {len(names)} files of weights; name one: {listed}")
    raise _no_adapter(hub)


def _commit_of(file: Path, folder: PurePosixPath) -> str:
    """Read the commit off the path of a cached file: .../snapshots/<commit>/<folder>/<file>."""
    return file.parents[len(folder.parts)].name


def _files_of_weights(hub: HubId) -> list[str]:
    """List the files of weights in the folder of a repository that need no config."""
    siblings = HfApi().model_info(hub.repo, revision=hub.revision).siblings or ()
    files = [PurePosixPath(sibling.rfilename) for sibling in siblings]
    folder = PurePosixPath(hub.subfolder or "")
    others = weights_names()
    names: list[str] = []
    for file in files:
        bare = file.suffix in file_suffixes() and file.name not in others
        if bare and file.parent == folder:
            names.append(str(file))
    return sorted(names)


def _fetch_file(hub: HubId, name: str) -> tuple[Path, str]:
    """Download one file of weights, and its config if it has one."""
    file = PurePosixPath(name)
    weights = download(hub, name)
    commit = _commit_of(weights, file.parent)
    configs = [str(file.with_name(config)) for config in config_names_next_to(file)]
    first(replace(hub, revision=commit), configs)
    return weights, commit


def fetch_config(hub: HubId, name: str) -> tuple[Path, HubId]:
    """Download the config of a model, and no other file; return it, and the model at its commit.

    Raises GamMergeError.
    """
    folder = PurePosixPath(hub.subfolder or "")
    with explained(f"{hub}: {name}"):
        file = download(hub, str(folder / name))
    return file, replace(hub, revision=_commit_of(file, folder))


def first(hub: HubId, names: Sequence[str]) -> Path | None:
    """Download the first of these files that exists, or return None.

    A file whose existence is unknown is an error: the next one might belong to something else.
    """
    for name in names:
        try:
            return download(hub, name)
        except hub_errors.LocalEntryNotFoundError:
            if not _known_absent(hub, name):
                raise
        except hub_errors.EntryNotFoundError:
            pass
    return None


def _known_absent(hub: HubId, name: str) -> bool:
    """Return whether the cache remembers that the Hub does not have a file."""
    cached = huggingface_hub.try_to_load_from_cache(hub.repo, name, revision=hub.revision)
    return cached is not None and not isinstance(cached, str)


def download(hub: HubId, name: str) -> Path:
    """Download a file; return its path in the local cache.

    Without a connection to the Hub the cache has to hold it.
    """
    if hub.max_bytes is not None:
        _check_size(hub, name, hub.max_bytes)
    path = huggingface_hub.hf_hub_download(
        hub.repo,
        name,
        revision=hub.revision,
        library_name="gam-merge",
        local_files_only=not (constants.HF_HUB_OFFLINE or _reachable(constants.ENDPOINT)),
    )
    return Path(path)


def _check_size(hub: HubId, name: str, most: int) -> None:
    """Raise GamMergeError for a file that is too large, or of a size that the Hub does not say."""
    url = huggingface_hub.hf_hub_url(hub.repo, name, revision=hub.revision)
    size = huggingface_hub.get_hf_file_metadata(url).size
    if size is None or size > most:
        raise GamMergeError(f"{hub}: {name} must have at most {most} bytes, got {size}")


def _reachable(endpoint: str) -> bool:
    """Tell whether a host answers. Behind a proxy it need not: then whoever asks finds out.

    huggingface_hub would try a host without an address five times, for half a minute.
    """
    url = urlsplit(endpoint)
    if url.hostname is None or url.scheme in getproxies() or "all" in getproxies():
        return True
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        socket.create_connection((url.hostname, port), _SECONDS).close()
    except OSError:
        return False
    return True


def _no_adapter(hub: HubId) -> GamMergeError:
    """Explain why a repository or its subfolder is not an adapter, from the names of its files."""
    siblings = HfApi().model_info(hub.repo, revision=hub.revision).siblings or ()
    files = {PurePosixPath(sibling.rfilename) for sibling in siblings}
    folder = PurePosixPath(hub.subfolder or "")
    folders = {file.parent for file in files if file.name in config_names()} - {folder}
    if folders:
        names = ", ".join(str(_in_folder(hub, path)) for path in sorted(folders)[:5])
        return GamMergeError(
            f"{hub}: is not an adapter; name one that the repository contains: {names}"
        )
    return GamMergeError(
        f"{hub}: is not an adapter: it does not contain both {config_names()[0]} and "
        f"{weights_names()[0]}"
    )


def _in_folder(hub: HubId, folder: PurePosixPath) -> HubId:
    return replace(hub, subfolder=str(folder) if folder.parts else None)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn errors of huggingface_hub into a GamMergeError of one line that begins with ``what``.

    ``from None``: a chained traceback would show request URLs, and the signed ones are secrets.
    """
    try:
        yield
    except (_TRANSPORT, OSError, ValueError, RuntimeError, hub_errors.EntryNotFoundError) as error:
        raise GamMergeError(f"{what}: {_meaning(_root(error))}") from None


def _root(error: BaseException) -> BaseException:
    """Unwrap the cause of a general 'not found in the cache' or 'error while uploading'."""
    wrapper = isinstance(error, hub_errors.LocalEntryNotFoundError) or type(error) is RuntimeError
    if wrapper and error.__cause__ is not None:
        return _root(error.__cause__)
    return error


def _meaning(error: BaseException) -> str:
    """Explain an error of huggingface_hub in words that hold nothing of the server's."""
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
        return (
            f"the connection to {host} failed ({type(error).__name__}); "
            "check the network and try again"
        )
    return f"{host} gave an unexpected answer ({type(error).__name__}); try again later"
