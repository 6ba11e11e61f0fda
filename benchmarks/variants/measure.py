"""One row of the table: the relative error of the output under each merge, or why there is none."""

import copy
import json
import subprocess
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from helpers import relative
from peft import LoraConfig, PeftModel
from torch import Tensor
from variants import base, dense_mean, forward, fused, load, model, quiet

import gam_merge as gm
from benchmarks.variants.rows import Row

Cell = float | str  # an error, or "refused: why", "crash: why", "unmeasured: why"

WEIGHTS = (0.75, 0.25)
PEFT_TYPES = ("cat", "svd", "linear")
_REFUSALS = (gm.GamMergeError, ValueError, TypeError, NotImplementedError)
_PEER = Path(__file__).with_name("mergekit_peer.py")


class Measured:
    """The adapters of a row on disk, and the change of the output that their merge should make."""

    def __init__(self, row: Row, folder: Path) -> None:
        self.row, self.folder = row, folder
        self.paths = row.save(folder)
        self.before = forward(model(row.kind))
        self.effect = forward(_right(row, self.paths)) - self.before
        if row.rewrite:
            row.rewrite(self.paths[0])

    def error(self, merge: Callable[[], Tensor]) -> Cell:
        """Return the relative error of the change that a merge makes in the output."""
        try:
            with quiet():
                return relative(merge() - self.before, self.effect)
        except Exception as error:
            text = " ".join(str(error).replace(f"{self.folder}/", "").split())
            tool = Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts
            deliberate = isinstance(error, _REFUSALS) and {"peft", "gam_merge"} & set(tool)
            return f"refused: {text}" if deliberate else f"crash: {type(error).__name__}: {text}"

    def by_us(self) -> Tensor:
        """Return the output under our merge."""
        given = {"base_model": base(self.row.kind)} if self.row.needs_base else {}
        out = self.folder / "ours"
        gm.merge(self.paths, method="mean", weights=WEIGHTS, rank=self.row.rank, out=out, **given)
        return forward(load(self.row.kind, out))

    def by_peft(self, combination: str) -> Tensor:
        """Return the output under PEFT's merge, saved and loaded again.

        What PEFT leaves as initialised is random.
        """
        torch.manual_seed(0)
        plain, out = copy.deepcopy(model(self.row.kind)).float(), self.folder / combination
        adapted = PeftModel.from_pretrained(plain, self.paths[0])
        adapted.load_adapter(self.paths[1], "b")
        options: dict[str, Any] = {}
        if isinstance(self.row.configs[0], LoraConfig):
            options["combination_type"] = combination
            if combination == "svd":
                options["svd_rank"] = self.row.rank
        adapted.add_weighted_adapter(["default", "b"], list(WEIGHTS), "merged", **options)
        adapted.save_pretrained(out, selected_adapters=["merged"])
        return forward(load(self.row.kind, out / "merged"))

    def by_mergekit(self) -> Tensor:
        """Return the output of the model that mergekit wrote."""
        plain, out = model(self.row.kind), self.folder / "mergekit"
        # the implementation of experts that has float64
        config = type(plain.config).from_pretrained(out, experts_implementation="eager")
        return forward(type(plain).from_pretrained(out, config=config).double().eval())


@torch.no_grad()
def _right(row: Row, paths: Sequence[Path]) -> torch.nn.Module:
    """Return the model whose every parameter is the weighted mean of what PEFT fuses.

    A head that only one adapter has trained whole is that adapter's.
    """
    with quiet():
        right = dense_mean(row.kind, paths, WEIGHTS)
        if row.trained_head is not None:
            right.lm_head.weight.copy_(fused(row.kind, paths[row.trained_head]).lm_head.weight)
    return right


def by_mergekit(
    python: Path | None, rows: Mapping[str, Measured], folder: Path
) -> tuple[str, dict[str, Cell]]:
    """Return the version of mergekit and the cells of the rows, by name.

    It runs in an environment of its own.
    """
    jobs: dict[str, dict[str, object]] = {}
    for name, row in rows.items():
        if hasattr(model(row.row.kind), "save_pretrained"):
            jobs[name] = _job(row, folder)
    none = dict.fromkeys(rows, "unmeasured: it merges models of transformers")
    if python is None:
        return "", dict.fromkeys(rows, "unmeasured: --mergekit names no environment that has it")
    asked, answered = folder / "jobs.json", folder / "answers.json"
    asked.write_text(json.dumps(jobs))
    subprocess.run(
        [str(python), str(_PEER), str(asked), str(answered)], check=True, capture_output=True
    )
    answers = json.loads(answered.read_text())
    failed = {name: text.replace(f"{folder}/", "") for name, text in answers["failed"].items()}
    cells: dict[str, Cell] = {}
    for name in jobs:
        cells[name] = failed.get(name) or rows[name].error(rows[name].by_mergekit)
    return answers["version"], {**none, **cells}


def _job(measured: Measured, folder: Path) -> dict[str, object]:
    """Return the arguments of a merge for ``mergekit_peer.py``."""
    whole = folder / f"base-{measured.row.kind}"
    if not whole.exists():
        copy.deepcopy(model(measured.row.kind)).float().save_pretrained(whole)
    paths = list(map(str, measured.paths))
    return {
        "base": str(whole),
        "adapters": paths,
        "weights": WEIGHTS,
        "out": str(measured.folder / "mergekit"),
    }
