"""What ``verify`` found: each thing that a merge recorded, and whether it still holds."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["output", "record", "source", "rerun"]
State = Literal["holds", "differs", "missing", "unknown"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    ``kind``: a file of the output, a record that the recipe is compared with, a source, or the output of the same
    merge done again. It is "missing" if it cannot be read, "unknown" if nothing was recorded that it could differ from;
    ``note`` says more.
    """

    kind: Kind
    name: str
    state: State
    note: str = ""


@dataclass(frozen=True)
class Verification:
    """What holds of a merge on disk."""

    path: Path
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """What differs or is missing."""
        return tuple(check for check in self.checks if check.state in ("differs", "missing"))

    @property
    def holds(self) -> bool:
        """Whether nothing differs and nothing is missing."""
        return not self.failed

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"path": str(self.path), "holds": self.holds, "checks": [asdict(check) for check in self.checks]}
