"""The axes: a table of counts, margins and price, and tests of what is said of them."""

from itertools import product
from statistics import fmean

from benchmarks.lab.markdown import NONE, table, text
from benchmarks.lab.report import SCALES, nll
from benchmarks.lab.rows import Row
from benchmarks.lab.statistics import interval, paired
from benchmarks.lab.studies.design import Study
from benchmarks.lab.studies.results import BySeed, Results

TITLES = {"bold": "bold words", "bullets": "points of a list", "opening": "questions"}
TESTED = (("tsvm", "mean"), ("mean", "gam"))  # more margin, less margin
Pairs = dict[str, tuple[list[float], list[float]]]  # by title, two figures by seed


def gained(row: Row, base: BySeed, axis: str) -> float:
    """Return a margin on an axis less that of the student of the same seed, in nats."""
    return float(row["margin"][axis] - base[row["seed"]]["margin"][axis])


def axes(results: Results, study: Study) -> str:
    """Return tests and table of the axes: counts per answer, margins gained, price."""
    titles = [f"margin of {title}, gained" for title in TITLES.values()]
    header = ["", *TITLES.values(), *titles, "NLL of plain text"]
    lines: list[list[str]] = []
    size, base = max(study.sizes), results.pick(study, "base")
    subjects = [("student", "base", "own", 1)]
    subjects += [(f"delta: {axis}", f"single {i}", "own", 1) for i, axis in enumerate(TITLES)]
    subjects += [(f"trained: {way}", way, "own", 1) for way in study.together]
    for label in study.methods:
        for scale in study.scales:
            subjects.append((f"{label}, {SCALES[scale]}", label, scale, size))
    for title, label, scale, of in subjects:
        rows = list(results.pick(study, label, scale, of).values())
        cells = [NONE] * (len(header) - 1)
        if rows:
            cells = [text(interval([row["counts"][axis] for row in rows]), 1) for axis in TITLES]
            for axis in TITLES:
                cells.append(text(interval([gained(row, base, axis) for row in rows]), 1))
            cells.append(text(interval([nll(row) for row in rows])))
        lines.append([title, *cells])
    return "\n\n".join([f"{len(base)} seeds.", *_tests(results, study), table(header, lines)])


def _tests(results: Results, study: Study) -> list[str]:
    """Return what is tested, in lines of a list; nothing before all rows are there."""
    size = max(study.sizes)
    seeds = results.seeds(study, "own", size)
    if len(seeds) < 2:
        return []
    counts: Pairs = {}
    beyond: list[str] = []
    for (axis, title), delta in zip(TITLES.items(), results.singles(study), strict=True):
        rows = [delta[seed] for seed in seeds]
        counts[title] = ([row["counts"][axis] for row in rows], [1.0] * len(rows))
        share = fmean(row["beyond"][axis] for row in rows)
        beyond.append(f"{100 * share:.0f} % ({title})")
    margins: Pairs = {}
    for methods, (axis, title) in product(TESTED, TITLES.items()):
        more, less = (results.pick(study, method, "own", size) for method in methods)
        margins["`{}` less `{}`, {}".format(*methods, title)] = (
            [more[seed]["margin"][axis] for seed in seeds],
            [less[seed]["margin"][axis] for seed in seeds],
        )
    lines = [
        f"- Count of each delta on its own axis, less the 1 of every example: {_tested(counts)}.",
        f"- Answers with more than 1: {', '.join(beyond)}.",
        f"- Margin at own scale: {_tested(margins)}.",
    ]
    return ["\n".join(lines), "p is after Holm's correction over the differences of a line."]


def _tested(pairs: Pairs) -> str:
    parts: list[str] = []
    for title, difference in paired(pairs).items():
        parts.append(f"{title} {text(difference.interval, 1)} (p {difference.p:.2g})")
    return "; ".join(parts)
