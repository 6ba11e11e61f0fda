"""diffusers' names without the component, as files for one model alone have them."""

from collections.abc import Collection

from gam_merge._translate.dialect import Renaming
from gam_merge._translate.pipeline import full_name


class BareNames(Renaming):
    """``down_blocks.0.resnets.0.conv1``; a component that the path does not tell stays."""

    name = "diffusers' names without components"
    format = "diffusers"

    def recognizes(self, names: Collection[str]) -> bool:
        return all(full_name(name) for name in names)

    def common_name(self, name: str) -> str | None:
        return full_name(name)

    def own_name(self, name: str) -> str | None:
        path = name.partition(".")[2]
        return path if full_name(path) == name else name
