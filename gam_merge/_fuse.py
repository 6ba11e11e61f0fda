"""``fuse``: an adapter into its base model, file by file: no more of the model is in memory than one tensor."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
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
from gam_merge._read.safetensors import SafetensorsWriter, TensorSpec
from gam_merge._write.adapter import as_json
from gam_merge._write.directory import DirectoryWriter, check_output

REPORT_NAME, _CONFIG_NAME = "fuse_report.json", "config.json"


@dataclass(frozen=True)
class FuseReport:
    """What was fused into what."""

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

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the total first, then every module."""
        return {"relative_norm": self.relative_norm, **asdict(self)}


def fuse(
    base: str | PathLike[str],
    adapter: Source,
    out: str | PathLike[str],
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> FuseReport:
    """Write the model that ``base`` is with ``adapter`` applied, in the files, dtypes and shards of the base.

    base: a directory that ``save_pretrained`` wrote in safetensors. adapter: what ``load`` takes. out: the directory
    to write; config, tokenizer and the like are carried along. Tied weights stay tied unless the adapter changes one
    of them alone. progress: called with (tensors done, in all).

    Raises GamMergeError, and then nothing is written: for a base that the adapter does not fit, that is quantised, or
    an ``out`` that exists (``force`` replaces it if it is empty or one that we wrote).
    """
    checkpoint, loaded = open_checkpoint(base), load(adapter)
    sources = [checkpoint.path, *([loaded.file] if loaded.file else [])]
    check_output(Path(out), force=force, sources=sources)
    placement = place(checkpoint, loaded)
    texts = dict(_changed_texts(checkpoint, placement))
    companions = [
        file for file in checkpoint.companions() if file.name not in (REPORT_NAME, *texts)
    ]
    names = [*(file.name for file in companions), *texts, REPORT_NAME]
    with DirectoryWriter(Path(out), companions=names, force=force) as directory:
        fused = tuple(_write_shards(checkpoint, placement, directory, progress))
        report = FuseReport(str(checkpoint.path), loaded.source, fused, tuple(placement.notes))
        for file in companions:
            directory.copy(file)
        directory.commit({REPORT_NAME: as_json(report.to_dict()), **texts})
    return report


def _write_shards(
    checkpoint: Checkpoint,
    placement: Placement,
    directory: DirectoryWriter,
    progress: Progress | None,
) -> Iterator[FusedModule]:
    copies = {key: checkpoint.tensors[original] for key, original in placement.copies.items()}
    done, total = 0, len(checkpoint.tensors) + len(copies)
    for name, tensors in checkpoint.shards.items():
        added = {key: tensor for key, tensor in copies.items() if placement.copies[key] in tensors}
        held = sorted({**tensors, **added}.items(), key=lambda item: item[1].offset)
        specs = [TensorSpec(key, tensor.shape, tensor.dtype) for key, tensor in held]
        with directory.safetensors(name, specs, {}) as file:
            for key, tensor in held:
                yield from _carry(file, key, tensor, placement.edits.get(key, ()))
                done += 1
                if progress:
                    progress(done, total)


def _carry(
    file: SafetensorsWriter, key: str, tensor: FileTensor, edits: Sequence[Edit]
) -> list[FusedModule]:
    """One tensor from the base to the output. A function of its own: the tensor is gone before the next is read."""
    value = read(tensor)
    fused = [edit.apply(value) for edit in edits]
    file.write(key, value)
    return [module for module in fused if module is not None]


def _changed_texts(checkpoint: Checkpoint, placement: Placement) -> Iterator[tuple[str, str]]:
    """The index, which a copy goes into, and the config, which then must not tie what has parted."""
    if checkpoint.index is not None:
        index: dict[str, Any] = json.loads((checkpoint.path / checkpoint.index).read_bytes())
        for key, original in placement.copies.items():
            index["weight_map"][key] = next(
                name for name, held in checkpoint.shards.items() if original in held
            )
            metadata = index.get("metadata")
            if isinstance(metadata, dict) and isinstance(size := metadata.get("total_size"), int):
                metadata["total_size"] = size + checkpoint.tensors[original].nbytes
        yield checkpoint.index, as_json(index)
    if placement.copies:
        yield _CONFIG_NAME, as_json({**checkpoint.config, "tie_word_embeddings": False})
