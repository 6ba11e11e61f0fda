"""``fuse``: an adapter into its base model, file by file: no more of the model is in memory than one tensor."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import hypot
from os import PathLike
from pathlib import Path
from typing import Any

from gam_merge._adapter import Adapter, LoraModule
from gam_merge._checkpoint import Checkpoint, common_prefix, is_conv1d, open_checkpoint, rename
from gam_merge._directory import DirectoryWriter, check_output
from gam_merge._edit import AddDelta, Edit, FusedModule
from gam_merge._engine import Progress
from gam_merge._errors import GamMergeError
from gam_merge._export import as_json
from gam_merge._safetensors import SafetensorsWriter, TensorSpec
from gam_merge._sources import Source, load
from gam_merge._tensors import FileTensor, read

REPORT_NAME = "fuse_report.json"


@dataclass(frozen=True)
class FuseReport:
    """What was fused into what."""

    base: str
    adapter: str
    modules: tuple[FusedModule, ...]

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
    to write; config, tokenizer and the like are carried along. progress: called with (tensors done, in all).

    Raises GamMergeError, and then nothing is written: for a base that the adapter does not fit, that is quantised, or
    an ``out`` that exists (``force`` replaces it if it is empty or one that we wrote).
    """
    checkpoint, loaded = open_checkpoint(base), load(adapter)
    sources = [checkpoint.path] + ([loaded.file] if loaded.file else [])
    check_output(Path(out), force=force, sources=sources)
    edits = plan_edits(checkpoint, loaded)
    return _write(checkpoint, edits, Path(out), loaded.source, force=force, progress=progress)


def plan_edits(checkpoint: Checkpoint, adapter: Adapter) -> dict[str, Edit]:
    """What becomes of each tensor of the base that does not stay as it is, by its key. Raises GamMergeError."""
    drop, start = common_prefix(checkpoint, [f"{name}.weight" for name in adapter.modules])
    edits: dict[str, Edit] = {}
    for name, module in adapter.modules.items():
        key = rename(f"{name}.weight", drop, start)
        weight = checkpoint.tensors[key]
        edits[key] = AddDelta(module, _is_transposed(checkpoint, adapter, module, weight))
    return edits


def _is_transposed(checkpoint: Checkpoint, adapter: Adapter, module: LoraModule, weight: FileTensor) -> bool:
    """Whether the weight is kept as (in, out). Its shape says so, unless it is square."""
    if not weight.is_plain:
        raise GamMergeError(f"{weight.path}: {weight.key} is {weight}; fuse into a base model that is not quantised")
    m, n = module.shape
    if weight.shape not in ((m, n), (n, m)):
        raise GamMergeError(
            f"module {module.name} is {module.shape} in {adapter.source} and {weight.shape} in {checkpoint.path}; "
            "the adapter is of another base model"
        )
    if m != n:
        return weight.shape == (n, m)
    return is_conv1d(checkpoint, module.name) or bool(
        adapter.config.get("fan_in_fan_out") and "model_type" not in checkpoint.config
    )


def _write(
    checkpoint: Checkpoint,
    edits: Mapping[str, Edit],
    out: Path,
    adapter: str,
    *,
    force: bool,
    progress: Progress | None,
) -> FuseReport:
    companions = [file for file in checkpoint.companions() if file.name != REPORT_NAME]
    names = [*(file.name for file in companions), REPORT_NAME, *([checkpoint.index] if checkpoint.index else [])]
    fused: list[FusedModule] = []
    done = 0
    with DirectoryWriter(out, companions=names, force=force) as directory:
        for name, tensors in checkpoint.shards.items():
            specs = [TensorSpec(key, tensor.shape, tensor.dtype) for key, tensor in tensors.items()]
            with directory.safetensors(name, specs, {}) as file:
                for key, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
                    fused += _carry(file, tensor, edits.get(key))
                    done += 1
                    if progress:
                        progress(done, len(checkpoint.tensors))
        for path in companions:
            directory.copy(path)
        if checkpoint.index:
            directory.copy(checkpoint.path / checkpoint.index)
        report = FuseReport(str(checkpoint.path), adapter, tuple(fused))
        directory.commit({REPORT_NAME: as_json(report.to_dict())})
    return report


def _carry(file: SafetensorsWriter, tensor: FileTensor, edit: Edit | None) -> list[FusedModule]:
    """One tensor from the base to the output. A function of its own: the tensor is gone before the next is read."""
    value = read(tensor)
    fused = edit.apply(value) if edit else None
    file.write(tensor.key, value)
    return [fused] if fused else []
