"""The base model that a user names, by path or by Hub id."""

from os import PathLike
from pathlib import Path

from gam_merge._common.files import is_there
from gam_merge._models.checkpoint import Model, open_checkpoint
from gam_merge._read.hub_id import parse_hub_id


def resolve_base(source: str | PathLike[str]) -> Model:
    """Open the base model that a user names.

    source: a directory of safetensors files, one such file, or a Hub id where no path of that name
    exists. Raises GamMergeError.
    """
    path = Path(source)
    if not is_there(path) and isinstance(source, str) and (hub := parse_hub_id(source)):
        from gam_merge._models.hub import open_hub_model

        return open_hub_model(hub)
    if path.is_file():
        return open_checkpoint(path.parent, only=path.name)
    return open_checkpoint(path)
