"""How an adapter on the Hub is named: ``org/name[@revision][:subfolder]``."""

import re
from dataclasses import dataclass

_WORD = r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?"  # what huggingface_hub lets pass, without .git at the end
_ID = re.compile(
    rf"(?P<repo>(?=[^@:]{{3,96}}(?:[@:]|$)){_WORD}/(?![^@:]*\.git(?:[@:]|$)){_WORD})"
    r"(@(?P<revision>[^@:\s]+))?(:(?P<subfolder>[^:]+))?",
    re.ASCII,
)


@dataclass(frozen=True)
class HubId:
    """The subfolder may also be a ``.safetensors`` file."""

    repo: str
    revision: str | None = None
    subfolder: str | None = None

    def __str__(self) -> str:
        at, colon = (
            f"{mark}{text}" if text else ""
            for mark, text in (("@", self.revision), (":", self.subfolder))
        )
        return f"{self.repo}{at}{colon}"


def parse_hub_id(text: str) -> HubId | None:
    """The Hub id that a text spells, or None."""
    match = _ID.fullmatch(text)
    if match is None or re.search(r"--|\.\.", match["repo"]):
        return None
    return HubId(match["repo"], match["revision"], match["subfolder"])
