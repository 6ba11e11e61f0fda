"""Means over seeds with 95 % intervals, and paired tests with Holm's correction."""

from collections.abc import Mapping, Sequence
from math import nan, sqrt
from statistics import fmean, stdev
from typing import NamedTuple

from scipy.stats import t as student

MARGIN = 0.01  # nats: smaller differences do not matter
LEVEL = 0.05


class Interval(NamedTuple):
    """A mean over n seeds and half the width of its 95 % interval, nan for a single seed."""

    mean: float
    half: float
    n: int


class Difference(NamedTuple):
    """A paired difference over seeds, its corrected two-sided p, and the verdict."""

    interval: Interval
    p: float
    verdict: str  # better, worse, same, open


def interval(values: Sequence[float]) -> Interval:
    """Return the mean with Student's interval."""
    n = len(values)
    half = float(student.ppf(1 - LEVEL / 2, n - 1)) * stdev(values) / sqrt(n) if n > 1 else nan
    return Interval(fmean(values), half, n)


def differences(values: Mapping[str, Sequence[float]], reference: str) -> dict[str, Difference]:
    """Return every entry against the reference, seed by seed; less is better.

    All are one family for the correction.
    """
    against = values[reference]
    return paired({name: (x, against) for name, x in values.items() if name != reference})


def paired(pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> dict[str, Difference]:
    """Return the first of each pair against the second, seed by seed; less is better.

    All are one family for the correction.
    """
    less: dict[str, list[float]] = {}
    for name, (first, second) in pairs.items():
        less[name] = [a - b for a, b in zip(first, second, strict=True)]
    corrected = holm({name: _p(d) for name, d in less.items()})
    return {name: _judge(interval(d), corrected[name]) for name, d in less.items()}


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Return corrected p values (Holm, Scand. J. Statist. 6, 1979)."""
    corrected, largest = {}, 0.0
    for i, name in enumerate(sorted(p, key=lambda name: p[name])):
        largest = max(largest, min(1.0, (len(p) - i) * p[name]))
        corrected[name] = largest
    return corrected


def _p(d: Sequence[float]) -> float:
    """Return p of the paired t test; 1 for a single seed, which tests nothing."""
    if len(d) < 2:
        return 1.0
    spread = stdev(d)
    if spread == 0:
        return 1.0 if fmean(d) == 0 else 0.0
    return float(2 * student.sf(abs(fmean(d)) / spread * sqrt(len(d)), len(d) - 1))


def _judge(less: Interval, p: float) -> Difference:
    if less.n > 1 and abs(less.mean) + less.half < MARGIN:
        verdict = "same"
    elif p < LEVEL and abs(less.mean) > MARGIN:
        verdict = "better" if less.mean < 0 else "worse"
    else:
        verdict = "open"
    return Difference(less, p, verdict)
