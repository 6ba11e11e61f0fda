"""``python -m benchmarks theory``: measure the map, keep it, draw it, and write the tables."""

from time import perf_counter

from benchmarks.measure import save
from benchmarks.theory import measure, report


def main(*, page: bool) -> None:
    """Measure unless only the page is to be written."""
    if not page:
        start = perf_counter()
        rows = list(measure.rows())
        print(save("theory", rows))
        print(f"{len(rows)} settings in {perf_counter() - start:.0f} s")
    report.write()
