"""The config of a base model, for dialects whose names, rows or columns depend on it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gam_merge._common.errors import GamMergeError
from gam_merge._common.files import is_there, read_json
from gam_merge._read.hub_id import HubId, parse_hub_id

_NAME = "config.json"


class BaseConfig:
    """The ``config.json`` of a model, read when it is first asked for, and no other file of it.

    Attributes:
        name: a directory, a file in one, or a Hub id where no path of that name exists.
        place: where it was read; None until then.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.place: Path | HubId | None = None
        self._fields: Mapping[str, Any] = {}

    @property
    def fields(self) -> Mapping[str, Any]:
        """What it says. Raises GamMergeError if it cannot be read."""
        if self.place is None:
            file, place = self._find()
            self._fields = read_json(file, hint="; name the base model with --base (base_model=)")
            self.place = place
        return self._fields

    def _find(self) -> tuple[Path, Path | HubId]:
        """Return the file, and the model that it is of."""
        path = Path(self.name)
        if is_there(path):
            return (path if path.is_dir() else path.parent) / _NAME, path.absolute()
        hub = parse_hub_id(self.name)
        if hub is None:
            raise GamMergeError(
                f"{self.name}: there is no such base model here; name its directory or its Hub id "
                "with --base (base_model=)"
            )
        from gam_merge._read.hub import fetch_config

        try:
            return fetch_config(hub, _NAME)
        except GamMergeError as error:
            raise GamMergeError(
                f"{error}; the base model may be named by a directory with --base (base_model=)"
            ) from None
