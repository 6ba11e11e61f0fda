"""Writes an adapter directory: whole or not at all."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from gam_merge._common.tensors import LazyTensor, MemoryTensor, read
from gam_merge._read.adapter import Adapter, Extra, LoraModule
from gam_merge._read.format import Format, adapter_tensors
from gam_merge._read.formats import format_of
from gam_merge._read.safetensors import SafetensorsWriter, TensorSpec
from gam_merge._write.directory import DirectoryWriter

REPORT_NAME, RECIPE_NAME, CARD_NAME = "merge_report.json", "gam_merge_recipe.yaml", "README.md"
EXTRACT_REPORT_NAME = "extract_report.json"
TEXT_NAMES = (RECIPE_NAME, REPORT_NAME, EXTRACT_REPORT_NAME, CARD_NAME)


class ModuleWriter:
    """Writes modules and extras under the keys of a format, as they become known."""

    def __init__(self, form: Format, modules: Collection[str], file: SafetensorsWriter) -> None:
        self._form, self._modules, self._file = form, modules, file

    def module(self, module: LoraModule) -> None:
        """Write the tensors of a module."""
        self._write(self._form.module_tensors(module))

    def extra(self, extra: Extra) -> None:
        """Write a tensor that is not a factor."""
        self._write(self._form.extra_tensors(extra, self._modules))

    def _write(self, tensors: Mapping[str, LazyTensor]) -> None:
        for key, tensor in tensors.items():
            self._file.write(key, _value(tensor))


def _value(tensor: LazyTensor) -> Tensor:
    """Return a tensor without a copy if it is in memory."""
    return tensor.value if isinstance(tensor, MemoryTensor) else read(tensor)


@contextmanager
def adapter_directory(
    out: Path, adapter: Adapter, metadata: Mapping[str, str], *, force: bool = False
) -> Iterator[tuple[DirectoryWriter, SafetensorsWriter]]:
    """Open the directory of an adapter and its file of weights. Left by an error, nothing stays.

    with adapter_directory(out, adapter, metadata) as (directory, weights):
        weights.write(key, tensor)  # every tensor of the adapter, in any order
        weights.finish()
        directory.commit(texts)  # the config last: without it no reader takes the rest for whole

    adapter: its shapes are announced. All of it raises GamMergeError: for an output that exists, a
    disk that takes no more.
    """
    form = format_of([adapter])
    specs: list[TensorSpec] = []
    for key, tensor in adapter_tensors(form, adapter).items():
        specs.append(TensorSpec(key, tensor.shape, tensor.dtype))
    names = [*TEXT_NAMES, *config_files(adapter)]
    with (
        DirectoryWriter(out, companions=names, force=force) as directory,
        directory.safetensors(form.weights_names[0], specs, metadata) as weights,
    ):
        yield directory, weights


def save_adapter(
    out: Path,
    adapter: Adapter,
    metadata: Mapping[str, str],
    texts: Callable[[str], Mapping[str, str]],
    *,
    force: bool = False,
) -> Path:
    """Write an adapter that is in memory.

    texts: gives the files next to the weights, the config among them, by name, for the sha256 of
    the weights. Raises GamMergeError.
    """
    form = format_of([adapter])
    with adapter_directory(out, adapter, metadata, force=force) as (directory, weights):
        writer = ModuleWriter(form, adapter.modules, weights)
        for module in adapter.modules.values():
            writer.module(module)
        for extra in adapter.extras.values():
            writer.extra(extra)
        weights.finish()
        directory.commit(texts(directory.sha256(form.weights_names[0])))
    return out


def config_files(adapter: Adapter) -> dict[str, str]:
    """Return the file of the config of an adapter by name; none for a format without one."""
    name = format_of([adapter]).config_name
    return {} if name is None else {name: as_json(adapter.config, sort=True)}


def as_json(content: Mapping[str, Any], *, sort: bool = False) -> str:
    """Return the text of a JSON file: one line per field, and per entry of a list of objects.

    So thousands of modules are written and read at a glance. In ASCII: it holds any path.
    """
    fields = sorted(content.items()) if sort else content.items()
    lines = [f"  {json.dumps(name)}: {_field(value)}" for name, value in fields]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _field(value: Any) -> str:
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        return "[\n    " + ",\n    ".join(map(json.dumps, value)) + "\n  ]"
    return json.dumps(value, indent=2).replace("\n", "\n  ")
