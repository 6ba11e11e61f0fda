"""The rows of the studies, looked up by study, method, scale and number of adapters."""

from collections.abc import Callable, Iterable, Sequence

from benchmarks.lab.report import nll
from benchmarks.lab.rows import Row
from benchmarks.lab.studies.design import Study

Figure = Callable[[Row], float]
BySeed = dict[int, Row]


class Results:
    """Rows by study, method, scale and number of adapters."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows: dict[tuple[str, str, str, int], BySeed] = {}
        for row in rows:
            key = (row["study"], row["method"], row["scale"], row["size"])
            self._rows.setdefault(key, {})[row["seed"]] = row

    def pick(self, study: Study, method: str, scale: str = "own", size: int = 1) -> BySeed:
        """Return the rows of one method, by seed; size 1 for all that is not a merge."""
        return self._rows.get((study.name, method, scale, size), {})

    def singles(self, study: Study) -> list[BySeed]:
        """Return the rows of every single adapter of the largest set."""
        return [self.pick(study, f"single {i}") for i in range(max(study.sizes))]

    def seeds(self, study: Study, scale: str, size: int) -> list[int]:
        """Return the seeds that have base, adapters and all merges of a scale and size."""
        merges = [self.pick(study, method, scale, size) for method in study.methods]
        alone = [self.pick(study, "base"), *self.singles(study)]
        common = set.intersection(*(set(rows) for rows in [*alone, *merges]))
        return sorted(common)

    def best_single(self, study: Study, seeds: Sequence[int], size: int) -> list[float]:
        """Return the least NLL of the single adapters of a set, by seed."""
        singles = self.singles(study)[:size]
        return [min(nll(rows[seed]) for rows in singles) for seed in seeds]


def values(seeds: Sequence[int], rows: BySeed, figure: Figure) -> list[float]:
    """Return a figure of the rows, seed by seed."""
    return [figure(rows[seed]) for seed in seeds]
