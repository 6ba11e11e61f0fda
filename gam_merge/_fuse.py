"""``fuse``: an adapter into its base model, file by file, with one tensor in memory at a time."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import hypot
from os import PathLike
from pathlib import Path
from typing import Any

from gam_merge._common.tensors import FileTensor, read
from gam_merge._common.types import Progress
from gam_merge._load import Source, load
from gam_merge._models.checkpoint import Checkpoint, open_checkpoint
from gam_merge._models.edit import Edit, FusedModule
from gam_merge._models.placement import Placement, place
from gam_merge._read.adapter import Adapter
from gam_merge._read.container import TensorSpec, TensorWriter
from gam_merge._read.formats import format_named
from gam_merge._read.peft import Peft
from gam_merge._translate.translate import together
from gam_merge._write.adapter import FUSE_REPORT_NAME, as_json
from gam_merge._write.output import OutputWriter, check_output

_CONFIG_NAME = "config.json"
_ENOUGH = 0.9  # share of the deltas below which rounding is worth a note


@dataclass(frozen=True)
class FuseReport:
    """The modules that were fused, and what the user should know.

    Example:
        >>> module = gm.FusedModule("q_proj", (4, 4), delta_norm=1.0, weight_norm=2.0, kept=0.8)
        >>> report = gm.FuseReport("base", "adapter", (module,))
        >>> report.relative_norm, report.survival
        (0.5, 0.8)
    """

    base: str
    adapter: str
    modules: tuple[FusedModule, ...]
    notes: tuple[str, ...] = ()

    @property
    def relative_norm(self) -> float:
        """|delta| / |weight| over all modules."""
        delta = hypot(*(module.delta_norm for module in self.modules))
        weight = hypot(*(module.weight_norm for module in self.modules))
        return delta / weight if weight else 0.0

    @property
    def survival(self) -> float:
        """The share <R, D> / |D|^2 of the deltas D that is in the change R of rounded weights."""
        energy = sum(module.delta_norm**2 for module in self.modules)
        return sum(module.kept for module in self.modules) / energy if energy else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: the total first, then every module."""
        modules = [{**asdict(module), "survival": module.survival} for module in self.modules]
        total = {"relative_norm": self.relative_norm, "survival": self.survival}
        return {**total, **asdict(self), "modules": modules}


def fuse(
    base: str | PathLike[str],
    adapter: Source,
    out: str | PathLike[str],
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> FuseReport:
    """Write a model with an adapter applied to it, in the files, dtypes and shards of the base.

    Config, tokenizer and similar files are copied. Tied weights stay tied unless the adapter
    changes only one of them. A small delta may round away in the dtype of the base; a note says so
    if less than 90 % of it survives.

    Args:
        base: a directory that ``save_pretrained`` wrote in safetensors.
        adapter: a directory, a file, a Hub id or an adapter in memory; see ``load``.
        out: the directory to write.
        force: replace an ``out`` that is empty or was written by gam-merge.
        progress: called with (tensors done, tensors in all).

    Returns:
        FuseReport: norms of the deltas and of the weights they were added to, the share of the
            deltas that survives the rounding to the dtypes of the base, and notes.

    Raises:
        GamMergeError: for a base that is quantised or does not fit the adapter, NaN or Inf in a
            tensor that is changed, or an ``out`` that exists, among others; and then nothing is
            written.

    Example:
        >>> import os, torch
        >>> from safetensors.torch import save_file
        >>> os.mkdir("base")
        >>> save_file({"layers.0.q_proj.weight": torch.eye(4)}, "base/model.safetensors")
        >>> prefix = "base_model.model.layers.0.q_proj.lora"
        >>> a, b = torch.ones(1, 4), torch.ones(4, 1)
        >>> factors = {f"{prefix}_A.weight": a, f"{prefix}_B.weight": b}
        >>> adapter = gm.from_state_dict(factors, {"r": 1, "lora_alpha": 1})
        >>> report = gm.fuse("base", adapter, "fused")
        >>> report.relative_norm  # |delta| / |weight|
        2.0
        >>> sorted(os.listdir("fused"))
        ['fuse_report.json', 'model.safetensors']
    """
    checkpoint = open_checkpoint(base)
    (loaded,) = together([load(adapter)], format_named(Peft.name))  # names as in the model
    sources = [checkpoint.path, *([loaded.file] if loaded.file else [])]
    check_output(Path(out), force=force, sources=sources)
    placement = place(checkpoint, loaded)
    texts = dict(_changed_texts(checkpoint, placement))
    written = {FUSE_REPORT_NAME, *texts}
    companions = [file for file in checkpoint.companions() if file.name not in written]
    names = [*(file.name for file in companions), *texts, FUSE_REPORT_NAME]
    with OutputWriter(Path(out), companions=names, force=force) as directory:
        fused = tuple(_write_shards(checkpoint, placement, directory, progress))
        report = _report(checkpoint, loaded, placement, fused)
        for file in companions:
            directory.copy(file)
        directory.commit({FUSE_REPORT_NAME: as_json(report.to_dict()), **texts})
    return report


def _report(
    checkpoint: Checkpoint, adapter: Adapter, placement: Placement, fused: tuple[FusedModule, ...]
) -> FuseReport:
    report = FuseReport(str(checkpoint.path), adapter.source, fused, tuple(placement.notes))
    if report.survival >= _ENOUGH:
        return report
    note = (
        f"{100 * report.survival:.1f} % of the delta survives the rounding to the dtype of the "
        "base; fuse into a float32 copy of it to keep more"
    )
    return replace(report, notes=(*report.notes, note))


def _write_shards(
    checkpoint: Checkpoint,
    placement: Placement,
    directory: OutputWriter,
    progress: Progress | None,
) -> Iterator[FusedModule]:
    """Write every file of the model. Yields the modules as they are fused."""
    done, total = 0, len(checkpoint.tensors) + len(placement.copies)
    for name, tensors in checkpoint.shards.items():
        contents = {**tensors, **_copies_of(placement, tensors)}
        in_order = sorted(contents.items(), key=lambda item: item[1].offset)
        specs = [TensorSpec(key, tensor.shape, tensor.dtype) for key, tensor in in_order]
        with directory.tensors(name, specs, {}) as file:
            for key, tensor in in_order:
                yield from _write_tensor(file, key, tensor, placement.edits.get(key, ()))
                done += 1
                if progress:
                    progress(done, total)


def _copies_of(placement: Placement, tensors: Mapping[str, FileTensor]) -> dict[str, FileTensor]:
    """Return the tensors to add to a file: the copies of those in it."""
    copies: dict[str, FileTensor] = {}
    for key, original in placement.copies.items():
        if original in tensors:
            copies[key] = tensors[original]
    return copies


def _write_tensor(
    file: TensorWriter, key: str, tensor: FileTensor, edits: Sequence[Edit]
) -> list[FusedModule]:
    """Edit and write one tensor. Its memory is free again before the next one is read."""
    value = read(tensor)
    fused = [edit.apply(value) for edit in edits]
    file.write(key, value)
    return [module for module in fused if module is not None]


def _changed_texts(checkpoint: Checkpoint, placement: Placement) -> Iterator[tuple[str, str]]:
    """Yield the index, which lists the copies, and the config, if weights are no longer tied."""
    if checkpoint.index is not None:
        index: dict[str, Any] = json.loads((checkpoint.path / checkpoint.index).read_bytes())
        for key, original in placement.copies.items():
            _add_to_index(index, key, checkpoint, original)
        yield checkpoint.index, as_json(index)
    if placement.copies:
        yield _CONFIG_NAME, as_json({**checkpoint.config, "tie_word_embeddings": False})


def _add_to_index(index: dict[str, Any], key: str, checkpoint: Checkpoint, original: str) -> None:
    """List a copy of a tensor, which is in the same file, and count its bytes."""
    shards = checkpoint.shards.items()
    index["weight_map"][key] = next(name for name, tensors in shards if original in tensors)
    metadata = index.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("total_size"), int):
        metadata["total_size"] += checkpoint.tensors[original].nbytes
