"""The name of an adapter on the Hub: ``org/name[@revision][:subfolder]``."""

import re
from dataclasses import dataclass

# What huggingface_hub accepts; a repository does not end in .git.
_WORD = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"
_ID = re.compile(
    rf"(?P<repo>(?=[^@:]{{3,96}}(?:[@:]|$)){_WORD}/(?![^@:]*\.git(?:[@:]|$)){_WORD})"
    r"(@(?P<revision>[^@:\s]+))?(:(?P<subfolder>[^:]+))?",
    re.ASCII,
)


@dataclass(frozen=True)
class HubId:
    """A repository, its revision, and a subfolder, which may also be a ``.safetensors`` file."""

    repo: str
    revision: str | None = None
    subfolder: str | None = None

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
