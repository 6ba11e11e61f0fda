"""The work of one process of the lab. Adapters and rows that exist are not made again."""

import time
from collections.abc import Callable, Iterable
from functools import cached_property, partial
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

_VALIDATION, _TEST = 0, 1  # of the lists of adapters.pairs


class Lab:
    """One process of the lab: the base model, and the places of adapters and rows."""

    def __init__(self, settings: Settings, cache: Path, results: Path) -> None:
        self.settings, self.cache, self.results = settings, cache, results

    @cached_property
    def model(self) -> tuple[Any, Any]:
        """Base and tokenizer, loaded when the first row is missing."""
        import torch

        from examples.smollm import load_base

        return load_base(torch.bfloat16)  # a third of the time of float32

    def run(self, unit: Unit) -> None:
        """Do everything that is missing of one unit."""
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
        self._row(cell, size, "base", "own", "r", self._base)
        for i in range(size):
            source = partial(self._adapter, cell, i, size)
            fill = partial(self._single, make=source)
            self._row(cell, size, f"single {i}", "own", "r", fill)
        self._row(cell, size, "compare", "own", "r", partial(self._compare, cell=cell))
        self._methods(cell, scale_rules=("own", "norm"), labels=self.settings.methods)

    def _joint(self, cell: Cell) -> None:
        size = self.settings.size
        path = partial(adapters.joint, cell, size, *self.model, self.cache, self.settings)
        self._row(cell, size, "joint training", "own", "r", partial(self._single, make=path))

    def _sizes(self, cell: Cell) -> None:
        for size in (2, 6):
            self._row(cell, size, "compare", "own", "r", partial(self._compare, cell=cell))
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
        where = f"{cell.kind}, {cell.regime}, seed {cell.seed}"
        print(f"{where}: {method}, {rule}, rank {rank}", flush=True)

    def _base(self, row: rows.Row) -> None:
        """Measure the base model itself."""
        row.update(self._figures(row, self.model[0], _TEST))

    def _single(self, row: rows.Row, *, make: Callable[[], Path]) -> None:
        """Measure one adapter as it was trained."""
        adapter = gm.load(make())
        with measure.adapted(self.model[0], adapter) as model:
            row.update(self._figures(row, model, _TEST))

    def _compare(self, row: rows.Row, *, cell: Cell) -> None:
        row.update(measure.overlaps(self._set(row, cell)))

    def _merge(self, row: rows.Row, *, cell: Cell) -> None:
        """Merge at the method's own scale, the mean norm per module, or the best of the grid."""
        rule = row["scale_rule"]
        params = {"rescale": "norm"} if rule == "norm" else {}
        result = measure.merged(row["method"], self._set(row, cell), rank=row["rank"], **params)
        row |= {
            "params": measure.short(result.report.params),
            "norm_ratio": result.report.norm_ratio,
            "energy_kept": result.report.energy_kept,
        }
        with measure.adapted(self.model[0], result.adapter) as model:
            if rule == "tuned":
                row |= self._tune(row, model, result.report.norm_ratio)
            if row["method"] in PLANE:
                row["few"] = {most: self._validation_nll(row, model, most) for most in FEW}
            row |= self._figures(row, model, _TEST)

    def _tune(self, row: rows.Row, model: Any, norm_ratio: float) -> rows.Row:
        """Bring a merge to the length of the grid that validation questions choose."""
        tried: dict[float, float] = {}
        for length in GRID:
            measure.scale(model, length / norm_ratio)
            tried[length] = self._validation_nll(row, model)
        best = min(tried, key=lambda length: tried[length])
        measure.scale(model, best / norm_ratio)
        return {"length": best, "validation": tried}

    def _set(self, row: rows.Row, cell: Cell) -> list[Path]:
        return [self._adapter(cell, i, row["size"]) for i in range(row["size"])]

    def _adapter(self, cell: Cell, index: int, size: int) -> Path:
        trained = preferences.trained if cell.kind == "preferences" else adapters.trained
        return trained(cell, index, size, *self.model, self.cache, self.settings)

    def _validation_nll(self, row: rows.Row, model: Any, most: int | None = None) -> float:
        return measure.mean_nll(self._figures(row, model, _VALIDATION, most))

    def _figures(
        self, row: rows.Row, model: Any, part: int, most: int | None = None
    ) -> measure.Figures:
        """Measure a model on a row's questions: the first ``most`` of each family, or all."""
        tokenizer = self.model[1]
        questions: dict[str, adapters.Pairs] = {}
        for family in row["families"]:
            lists = adapters.pairs(tokenizer, family, row["seed"], self.settings)
            questions[family] = lists[part][:most]
        return measure.figures(model, tokenizer, questions)
