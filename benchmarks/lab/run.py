"""The work of the lab, over processes. What exists already, adapter or row, is not made again."""

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gam_merge as gm
from benchmarks.lab import adapters, measure, preferences, rows
from benchmarks.lab.design import (
    AT_SIZES,
    BY_OVERLAP,
    CUT,
    FEW,
    GRID,
    OTHERS,
    PLANE,
    PLANE_AT_OWN,
    Cell,
    Settings,
    Unit,
)


class Lab:
    """One process of the lab: the base model, and where adapters and rows are kept."""

    def __init__(self, settings: Settings, cache: Path, results: Path) -> None:
        self.settings, self.cache, self.results = settings, cache, results

    @cached_property
    def model(self) -> tuple[Any, Any]:
        """Base and tokenizer, loaded when the first row is missing."""
        import torch

        from examples.smollm import load_base

        return load_base(torch.bfloat16)  # a third of the time of float32

    def run(self, unit: Unit) -> None:
        """Everything that is missing of one unit."""
        passes: dict[str, Callable[[Cell], None]] = {
            "main": self._main,
            "others": partial(self._methods, scale_rules=("own", "norm"), labels=OTHERS),
            "plane": self._plane,
            "overlap": partial(self._methods, scale_rules=("own", "norm"), labels=BY_OVERLAP),
            "tuned": partial(self._methods, scale_rules=("tuned",), labels=self.settings.methods),
            "rank": partial(self._methods, scale_rules=("own", "norm"), labels=CUT, rank="r"),
            "joint": self._joint,
            "sizes": self._sizes,
        }
        passes[unit.what](unit.cell)

    def _main(self, cell: Cell) -> None:
        size = self.settings.size
        self._row(cell, size, "base", "own", "r", lambda row: self._plain(row, None))
        for i in range(size):
            source = partial(self._adapter, cell, i, size)
            self._row(
                cell, size, f"single {i}", "own", "r", lambda row, s=source: self._plain(row, s())
            )  # type: ignore[misc]
        self._row(
            cell,
            size,
            "compare",
            "own",
            "r",
            lambda row: row.update(measure.overlaps(self._set(row, cell))),
        )
        self._methods(cell, scale_rules=("own", "norm"), labels=self.settings.methods)

    def _joint(self, cell: Cell) -> None:
        size = self.settings.size
        path = partial(adapters.joint, cell, size, *self.model, self.cache, self.settings)
        self._row(cell, size, "joint training", "own", "r", lambda row: self._plain(row, path()))

    def _sizes(self, cell: Cell) -> None:
        for size in (2, 6):
            self._row(
                cell,
                size,
                "compare",
                "own",
                "r",
                lambda row: row.update(measure.overlaps(self._set(row, cell))),
            )
            self._methods(cell, scale_rules=("own", "norm"), labels=AT_SIZES, size=size)

    def _plane(self, cell: Cell) -> None:
        self._methods(cell, scale_rules=("norm",), labels=PLANE)
        self._methods(cell, scale_rules=("own",), labels=PLANE_AT_OWN)

    def _methods(
        self,
        cell: Cell,
        *,
        scale_rules: tuple[str, ...],
        labels: Iterable[str],
        rank: str = "R",
        size: int = 0,
    ) -> None:
        for label in labels:
            for rule in scale_rules:
                work = partial(self._merge, cell=cell)
                self._row(cell, size or self.settings.size, label, rule, rank, work)

    def _row(
        self,
        cell: Cell,
        size: int,
        method: str,
        rule: str,
        rank: str,
        fill: Callable[[rows.Row], object],
    ) -> None:
        row: rows.Row = {
            "kind": cell.kind,
            "regime": cell.regime,
            "seed": cell.seed,
            "size": size,
            "families": cell.families(size),
            "method": method,
            "scale_rule": rule,
            "rank": rank,
        }
        if rows.key(row) in {rows.key(r) for r in rows.read(self.results)}:
            return
        start = time.process_time()
        fill(row)
        rows.append(self.results, row | {"seconds": round(time.process_time() - start, 1)})
        print(
            f"{cell.kind}, {cell.regime}, seed {cell.seed}: {method}, {rule}, rank {rank}",
            flush=True,
        )

    def _plain(self, row: rows.Row, source: Path | None) -> None:
        """The base model itself, or one adapter as it was trained."""
        base, tokenizer = self.model
        if source is None:
            row.update(measure.figures(base, tokenizer, self._questions(row, 1)))
            return
        alone = gm.load(source)
        with measure.adapted(base, alone) as model:
            row.update(measure.figures(model, tokenizer, self._questions(row, 1)))

    def _merge(self, row: rows.Row, *, cell: Cell) -> None:
        """Merge at the method's own scale, at the mean norm module by module, or at the best of the grid."""
        base, tokenizer = self.model
        rule, params = row["scale_rule"], {}
        if rule == "norm":
            params["rescale"] = "norm"
        result = measure.merged(row["method"], self._set(row, cell), rank=row["rank"], **params)
        row |= {
            "params": measure.short(result.report.params),
            "norm_ratio": result.report.norm_ratio,
            "energy_kept": result.report.energy_kept,
        }
        with measure.adapted(base, result.adapter) as model:
            if rule == "tuned":
                tried = {}
                for length in GRID:
                    measure.scale(model, length / result.report.norm_ratio)
                    tried[length] = measure.mean_nll(
                        measure.figures(model, tokenizer, self._questions(row, 0))
                    )
                best = min(tried, key=lambda length: tried[length])
                measure.scale(model, best / result.report.norm_ratio)
                row |= {"length": best, "validation": tried}
            if row["method"] in PLANE:
                row["few"] = {
                    most: measure.mean_nll(
                        measure.figures(model, tokenizer, self._questions(row, 0, most))
                    )
                    for most in FEW
                }
            row |= measure.figures(model, tokenizer, self._questions(row, 1))

    def _set(self, row: rows.Row, cell: Cell) -> list[Path]:
        return [self._adapter(cell, i, row["size"]) for i in range(row["size"])]

    def _adapter(self, cell: Cell, index: int, size: int) -> Path:
        trained = preferences.trained if cell.kind == "preferences" else adapters.trained
        return trained(cell, index, size, *self.model, self.cache, self.settings)

    def _questions(self, row: rows.Row, part: int, most: int | None = None) -> measure.Questions:
        """Validation (0) or test (1) questions of the families of a row: the first ``most`` of each, or all."""
        tokenizer = self.model[1]
        return {
            f: adapters.pairs(tokenizer, f, row["seed"], self.settings)[part][:most]
            for f in row["families"]
        }


_lab: Lab


def _start(settings: Settings, cache: Path, results: Path) -> None:
    global _lab
    import torch

    torch.set_num_threads(1)
    _lab = Lab(settings, cache, results)


def _run(unit: Unit) -> None:
    _lab.run(unit)


def run(units: list[Unit], settings: Settings, cache: Path, results: Path, *, jobs: int) -> None:
    """All units in order, ``jobs`` at a time; the first failure ends the run."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(
        jobs, get_context("spawn"), _start, (settings, cache, results)
    ) as pool:
        futures = [pool.submit(_run, unit) for unit in units]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
