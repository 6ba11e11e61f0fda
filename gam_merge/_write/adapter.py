"""Writes an adapter directory: whole or not at all."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from gam_merge._common.tensors import read
from gam_merge._read.adapter import Adapter
from gam_merge._read.peft import CONFIG_NAME, WEIGHTS_NAME, adapter_tensors
from gam_merge._read.safetensors import TensorSpec
from gam_merge._write.directory import DirectoryWriter

REPORT_NAME, RECIPE_NAME, CARD_NAME = "merge_report.json", "gam_merge_recipe.yaml", "README.md"
EXTRACT_REPORT_NAME = "extract_report.json"
COMPANIONS = (RECIPE_NAME, REPORT_NAME, EXTRACT_REPORT_NAME, CARD_NAME, CONFIG_NAME)


class AdapterWriter:
    """The directory of a merged adapter while it is being written. A context: left by an error, nothing stays.

    with AdapterWriter(out, specs, metadata, force=False) as writer:
        writer.write(key, tensor)  # every announced tensor, in any order
        digest = writer.finish()
        writer.commit(texts)

    All of it raises GamMergeError: for an output that exists, a disk that takes no more.
    """

    def __init__(
        self,
        out: Path,
        specs: Sequence[TensorSpec],
        metadata: Mapping[str, str],
        *,
        force: bool = False,
    ) -> None:
        self._directory = DirectoryWriter(out, companions=COMPANIONS, force=force)
        self._specs, self._metadata = specs, metadata

    def __enter__(self) -> "AdapterWriter":
        with ExitStack() as stack:
            stack.enter_context(self._directory)
            weights = self._directory.safetensors(WEIGHTS_NAME, self._specs, self._metadata)
            self._weights = stack.enter_context(weights)
            self._stack = stack.pop_all()
        return self

    def write(self, key: str, value: Tensor) -> None:
        """One tensor of the adapter."""
        self._weights.write(key, value)

    def finish(self, metadata: Mapping[str, str] | None = None) -> str:
        """No more tensors come: the sha256 of the weights. metadata: what was not known before, of the same length."""
        if metadata:
            self._weights.amend(metadata)
        self._weights.finish()
        return self._directory.sha256(WEIGHTS_NAME)

    def commit(self, texts: Mapping[str, str]) -> None:
        """From here on the adapter is there, with the files ``texts`` (name -> content) beside the weights.

        The config should be the last of them: without it no reader takes the rest for whole.
        """
        self._directory.commit(texts)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def save_adapter(
    out: Path,
    adapter: Adapter,
    metadata: Mapping[str, str],
    texts: Callable[[str], Mapping[str, str]],
    *,
    force: bool = False,
) -> Path:
    """Write an adapter with files (name -> content) beside it, its config among them, which ``texts`` gives for the
    sha256 of the weights. Raises GamMergeError."""
    tensors = adapter_tensors(adapter)
    specs = [TensorSpec(key, tensor.shape, tensor.dtype) for key, tensor in tensors.items()]
    with AdapterWriter(out, specs, metadata, force=force) as writer:
        for key, tensor in tensors.items():
            writer.write(key, read(tensor))
        writer.commit(texts(writer.finish()))
    return out


def as_json(content: Mapping[str, Any], *, sort: bool = False) -> str:
    """A text file, a line for each field, and for each entry of a list of tables: thousands of modules are written
    and read at a glance. In ASCII: it holds any path."""
    fields = sorted(content.items()) if sort else content.items()
    return (
        "{\n"
        + ",\n".join(f"  {json.dumps(name)}: {_field(value)}" for name, value in fields)
        + "\n}\n"
    )


def _field(value: Any) -> str:
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        return "[\n    " + ",\n    ".join(map(json.dumps, value)) + "\n  ]"
    return json.dumps(value, indent=2).replace("\n", "\n  ")
