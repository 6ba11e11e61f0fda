"""The name of an adapter on the Hub: ``org/name[@revision][:subfolder]``."""

import re
from dataclasses import dataclass, replace

from gam_merge._common.errors import GamMergeError

# What huggingface_hub accepts; a repository does not end in .git.
_WORD = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"
_ID = re.compile(
    rf"(?P<repo>(?=[^@:]{{3,96}}(?:[@:]|$)){_WORD}/(?![^@:]*\.git(?:[@:]|$)){_WORD})"
    r"(@(?P<revision>[^@:\s]+))?(:(?P<subfolder>[^:]+))?",
    re.ASCII,
)


@dataclass(frozen=True)
class HubId:
    """The name of an adapter on the Hub: as a source it is never a path.

    A text means a path of that name if there is one.

    Attributes:
        repo: ``org/name``.
        revision: a branch, a tag or a commit; the main branch by default.
        subfolder: the folder of the adapter, or a file of weights.
        max_bytes: files that are larger are not downloaded, which is an error.

    Example:
        >>> hub = gm.HubId.parse("user/adapters@main:sorting", max_bytes=10**9)
        >>> hub.repo, hub.revision, hub.subfolder
        ('user/adapters', 'main', 'sorting')
    """

    repo: str
    revision: str | None = None
    subfolder: str | None = None
    max_bytes: int | None = None

    @classmethod
    def parse(cls, text: str, *, max_bytes: int | None = None) -> "HubId":
        """Return the Hub id that a text spells. Raises GamMergeError."""
        hub = parse_hub_id(text)
        if hub is None:
            raise GamMergeError(f"a Hub id must be org/name[@revision][:subfolder], got {text!r}")
        return replace(hub, max_bytes=max_bytes)

    @classmethod
    def parse_repo(cls, text: str) -> "HubId":
        """Return the repository that a text names, to upload to. Raises GamMergeError."""
        if not is_repo(text):
            raise GamMergeError(f"{text}: is not a repository name; give user/name")
        return cls(text)

    def __str__(self) -> str:
        text = self.repo
        if self.revision:
            text += f"@{self.revision}"
        if self.subfolder:
            text += f":{self.subfolder}"
        return text


def parse_hub_id(text: str) -> HubId | None:
    """Return the Hub id that a text spells, or None."""
    match = _ID.fullmatch(text)
    if match is None or re.search(r"--|\.\.", match["repo"]):
        return None
    return HubId(match["repo"], match["revision"], match["subfolder"])


def is_repo(text: str) -> bool:
    """Tell whether a text may be the name of a repository, without a revision or a subfolder."""
    hub = parse_hub_id(text)
    return hub is not None and hub == HubId(hub.repo)
