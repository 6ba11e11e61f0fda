"""Writes an adapter: whole or not at all."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from gam_merge._common.tensors import LazyTensor, MemoryTensor, read
from gam_merge._read.adapter import Adapter, Extra, LoraModule
from gam_merge._read.container import TensorSpec, TensorWriter
from gam_merge._read.format import adapter_tensors
from gam_merge._read.formats import check_kind, format_of
from gam_merge._read.place import is_file_name
from gam_merge._write.output import OutputWriter

REPORT_NAME, RECIPE_NAME, CARD_NAME = "merge_report.json", "gam_merge_recipe.yaml", "README.md"
EXTRACT_REPORT_NAME, FUSE_REPORT_NAME = "extract_report.json", "fuse_report.json"
TEXT_NAMES = (RECIPE_NAME, REPORT_NAME, EXTRACT_REPORT_NAME, CARD_NAME)


class ModuleWriter:
    """Writes the modules and extras of an adapter under the keys of its format, as they come."""

    def __init__(self, adapter: Adapter, file: TensorWriter) -> None:
        self._adapter, self._form, self._file = adapter, format_of([adapter]), file

    def module(self, module: LoraModule) -> None:
        """Write the tensors of a module, under the keys that the adapter has for it."""
        known = self._adapter.modules[module.name]
        named = replace(known, a=module.a, b=module.b, magnitude=module.magnitude)
        self._write(self._form.module_tensors(named))

    def extra(self, extra: Extra) -> None:
        """Write a tensor that is not a factor."""
        self._write(self._form.extra_tensors(extra, self._adapter.modules))

    def _write(self, tensors: Mapping[str, LazyTensor]) -> None:
        for key, tensor in tensors.items():
            self._file.write(key, _value(tensor))


def _value(tensor: LazyTensor) -> Tensor:
    """Return a tensor without a copy if it is in memory."""
    return tensor.value if isinstance(tensor, MemoryTensor) else read(tensor)


@contextmanager
def adapter_output(out: Path, adapter: Adapter, *, force: bool = False) -> Iterator[OutputWriter]:
    """Open the output for an adapter. Left by an error, nothing stays.

    with adapter_output(out, adapter) as output:
        with adapter_weights(output, out, adapter, metadata) as weights:
            weights.write(key, tensor)  # every tensor of the adapter, in any order
        output.commit(texts)  # the config last: without it no reader takes the rest for whole

    All of it raises GamMergeError: for an output that exists, a disk that takes no more.
    """
    check_kind(format_of([adapter]), out)
    names = [*TEXT_NAMES, *config_files(adapter)]
    with OutputWriter(out, companions=names, force=force, as_file=is_file_name(out)) as output:
        yield output


@contextmanager
def adapter_weights(
    output: OutputWriter, out: Path, adapter: Adapter, metadata: Mapping[str, str]
) -> Iterator[TensorWriter]:
    """Open the file of weights of an adapter, which is complete at the end of the block.

    adapter: its shapes are announced.
    """
    form = format_of([adapter])
    specs: list[TensorSpec] = []
    for key, tensor in adapter_tensors(form, adapter).items():
        specs.append(TensorSpec(key, tensor.shape, tensor.dtype))
    title = out.stem if is_file_name(out) else out.name
    with output.tensors(
        weights_name(out, adapter),
        specs,
        {**form.metadata(adapter, title), **metadata},
        container=form.container,
        data_hash_key=form.data_hash_key,
    ) as weights:
        yield weights


def weights_name(out: Path, adapter: Adapter) -> str:
    """Return what the file of weights of an adapter is called in an output."""
    return out.name if is_file_name(out) else format_of([adapter]).weights_names[0]


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
    with adapter_output(out, adapter, force=force) as output:
        with adapter_weights(output, out, adapter, metadata) as weights:
            writer = ModuleWriter(adapter, weights)
            for module in adapter.modules.values():
                writer.module(module)
            for extra in adapter.extras.values():
                writer.extra(extra)
        output.commit(texts(output.sha256(weights_name(out, adapter))))
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
