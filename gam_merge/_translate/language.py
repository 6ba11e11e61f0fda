"""Language models: PEFT and MLX-LM name their modules alike."""

import re
from collections.abc import Collection

from gam_merge._common.errors import GamMergeError
from gam_merge._read.adapter import Adapter, LoraModule
from gam_merge._read.diffusers import component_of
from gam_merge._translate.dialect import Dialect, Modules, no_name, renamed
from gam_merge._translate.pipeline import full_name

# A module of one expert of several, as transformers 4 has them.
EXPERT = re.compile(r"(?P<owner>(?:.+\.)?experts)\.(?P<expert>\d+)\.(?P<projection>.+)")


class PeftNames(Dialect):
    """The names of a model's modules, without the component of a pipeline."""

    name = "PEFT's format"
    format = "peft"

    def recognizes(self, names: Collection[str]) -> bool:
        return True

    def is_default(self, names: Collection[str]) -> bool:
        return True

    def to_common(self, adapter: Adapter) -> dict[str, LoraModule]:
        in_pipeline = all(full_name(name) for name in adapter.modules)
        named: dict[str, LoraModule] = {}
        for name, module in adapter.modules.items():
            full = full_name(name) if in_pipeline else None
            common = full or name
            named[common] = renamed(module, common)
        return named

    def from_common(self, modules: Modules, adapter: Adapter) -> dict[str, LoraModule]:
        components = {component_of(name) for name in modules}
        if len(components) > 1:
            listed = " and ".join(sorted(filter(None, components)))
            raise GamMergeError(
                f"{adapter.source}: has modules of {listed}, and an adapter of PEFT is for one "
                "model; keep the format, or leave the modules of the others out"
            )
        component = components.pop()
        named: dict[str, LoraModule] = {}
        for name, module in modules.items():
            path = name.removeprefix(f"{component}.") if component else name
            named[path] = renamed(module, path)
        return named


class MlxNames(Dialect):
    """The names of MLX-LM: those of the Hub's language models."""

    name = "MLX-LM's format"
    format = "mlx"

    def recognizes(self, names: Collection[str]) -> bool:
        return True

    def is_default(self, names: Collection[str]) -> bool:
        return True

    def to_common(self, adapter: Adapter) -> dict[str, LoraModule]:
        return {name: renamed(module, name) for name, module in adapter.modules.items()}

    def from_common(self, modules: Modules, adapter: Adapter) -> dict[str, LoraModule]:
        for name in modules:
            if component_of(name):
                raise no_name(adapter, name, self.name, "MLX-LM runs language models")
            if EXPERT.fullmatch(name):
                raise no_name(
                    adapter, name, self.name, "MLX-LM stacks experts; leave adapters of them out"
                )
        return {name: renamed(module, name) for name, module in modules.items()}
