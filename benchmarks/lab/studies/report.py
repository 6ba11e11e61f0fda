"""Tables of the studies, into results.md between their markers."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.lab.markdown import NONE, between, judged, table, text
from benchmarks.lab.report import SCALES, accuracy, nll
from benchmarks.lab.rows import Row
from benchmarks.lab.statistics import Difference, differences, interval, paired
from benchmarks.lab.studies.design import GAM, METHODS, STUDIES, Study

PAGE = Path(__file__).parents[1] / "results.md"
EXAMPLE = Path(__file__).parents[3] / "examples" / "pda" / "README.md"
AXES = {"bold": "bold words", "bullets": "points of a list", "opening": "questions"}
CONSENSUS = tuple(
    label for label in METHODS if label.startswith("consensus(") and "(0)" not in label
)
Figure = Callable[[Row], float]
BySeed = dict[int, Row]


def margin(row: Row) -> float:
    return fmean(row["margin"].values())


def gained(row: Row, base: BySeed, axis: str) -> float:
    """Return a margin on an axis less that of the student of the same seed, in nats."""
    return float(row["margin"][axis] - base[row["seed"]]["margin"][axis])


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


def _values(seeds: Sequence[int], rows: BySeed, figure: Figure) -> list[float]:
    """Return a figure of the rows, seed by seed."""
    return [figure(rows[seed]) for seed in seeds]


def best_single(results: Results, study: Study, seeds: Sequence[int], size: int) -> list[float]:
    """Return the least NLL of the single adapters of a set, by seed."""
    singles = results.singles(study)[:size]
    return [min(nll(rows[seed]) for rows in singles) for seed in seeds]


def verdict(results: Results, study: Study, size: int) -> str:
    """Return what helps, by the rules that design.py fixed before the rows."""
    if study.regimen:
        return copies_help(results, study, size)
    return gam_helps(results, study, size)


def copies_help(results: Results, study: Study, size: int) -> str:
    """Return whether the deltas of the student's damaged copies help, alone or merged."""
    seeds = results.seeds(study, "own", size)
    student = _values(seeds, results.pick(study, "base"), nll)
    singles = results.singles(study)
    values = {"one adapter": [fmean(nll(rows[seed]) for rows in singles) for seed in seeds]}
    for label in study.methods:
        values[label] = _values(seeds, results.pick(study, label, "own", size), nll)
    against = paired({label: (nlls, student) for label, nlls in values.items()})
    winners = [label for label in values if _less(against[label])]
    answer = f"yes, {', '.join(winners)}" if winners else "open"
    parts = [f"{label}: {judged(difference, 3)}" for label, difference in against.items()]
    return f"Deltas of damaged copies help: {answer}; less the student: {'; '.join(parts)}"


def gam_helps(results: Results, study: Study, size: int) -> str:
    """Return whether a reading of GAM has less NLL than its rivals, and the mean than one delta."""
    seeds = results.seeds(study, "norm", size)
    if len(seeds) < 2:
        return NONE
    values: dict[str, list[float]] = {}
    for label in study.methods:
        values[label] = _values(seeds, results.pick(study, label, "norm", size), nll)
    rivals = [label for label in CONSENSUS if label in values]
    best = min(rivals, key=lambda label: fmean(values[label]))
    readings = [label for label in GAM if label in values]
    against_mean = paired({label: (values[label], values["mean"]) for label in readings})
    against_best = paired({label: (values[label], values[best]) for label in readings})
    own = _values(seeds, results.pick(study, "mean", "own", size), nll)
    single = best_single(results, study, seeds, size)
    gains = fmean(own) < fmean(single)
    less = {label: _less(against_mean[label]) and _less(against_best[label]) for label in readings}
    winners = [label for label in readings if less[label]]
    premise = "below" if gains else "not below"
    about = f"the mean at its own scale is {premise} the best single adapter"
    about += f" ({fmean(own):.3f}, {fmean(single):.3f}); the best consensus is {best}"
    answer = f"yes, {', '.join(winners)}" if winners and gains else "no"
    parts = [f"{label}: {judged(against_mean[label])}" for label in readings]
    return f"GAM helps: {answer}; {about}; less the mean at equal norm: {'; '.join(parts)}"


def _less(difference: Difference) -> bool:
    return difference.interval.mean < 0 and difference.p < 0.05


def of_study(results: Results, study: Study, size: int) -> str:
    """Return the table of one study and number of adapters."""
    seeds = results.seeds(study, "own", size)
    if not seeds:
        return NONE
    held_out = "margin" in results.pick(study, "base")[seeds[0]]
    header = ["", *(f"NLL, {SCALES[scale]}" for scale in study.scales), "accuracy, own"]
    header += ["margin, own", "margin, norm"] * held_out
    header += [f"against mean, {scale}" for scale in study.scales]
    width = len(header)
    lines = [_alone(results, study, seeds, "base", [results.pick(study, "base")], held_out, width)]
    singles = results.singles(study)[:size]
    lines.append(_alone(results, study, seeds, "one adapter", singles, held_out, width))
    best = text(interval(best_single(results, study, seeds, size)), 3)
    lines.append(["the best adapter", best, *["-"] * (width - 2)])
    against: dict[str, dict[str, Difference]] = {}
    for scale in study.scales:
        against[scale] = _against_mean(results, study, scale, size)
    for label in study.methods:
        cells = [label]
        for scale in study.scales:
            cells.append(_mean(results, study, label, scale, size, nll))
        cells.append(_mean(results, study, label, "own", size, accuracy, digits=2))
        if held_out:
            for scale in ("own", "norm"):
                cells.append(_mean(results, study, label, scale, size, margin, digits=1))
        for scale in study.scales:
            difference = against[scale].get(label)
            cells.append(judged(difference, 3) if difference else "-")
        lines.append(cells)
    title = f"Seeds: {', '.join(map(str, seeds))}. {verdict(results, study, size)}."
    return f"{title}\n\n{table(header, lines)}"


def _alone(
    results: Results,
    study: Study,
    seeds: Sequence[int],
    title: str,
    picked: Sequence[BySeed],
    held_out: bool,
    width: int,
) -> list[str]:
    """Return the line of what is not a merge: the mean over adapters, by seed."""
    figures: list[tuple[Figure, int]] = [(nll, 3), (accuracy, 2)]
    figures += [(margin, 1)] * held_out
    cells: list[str] = []
    for figure, digits in figures:
        means = [fmean(figure(rows[seed]) for rows in picked) for seed in seeds]
        cells.append(text(interval(means), digits))
    rest = ["-"] * (len(study.scales) - 1)
    line = [title, cells[0], *rest, *cells[1:]]
    return line + ["-"] * (width - len(line))


def _mean(
    results: Results,
    study: Study,
    label: str,
    scale: str,
    size: int,
    figure: Figure,
    digits: int = 3,
) -> str:
    seeds = results.seeds(study, scale, size)
    if not seeds:
        return NONE
    rows = results.pick(study, label, scale, size)
    return text(interval(_values(seeds, rows, figure)), digits)


def _against_mean(results: Results, study: Study, scale: str, size: int) -> dict[str, Difference]:
    seeds = results.seeds(study, scale, size)
    if len(seeds) < 2:
        return {}
    values: dict[str, list[float]] = {}
    for label in study.methods:
        values[label] = _values(seeds, results.pick(study, label, scale, size), nll)
    return differences(values, "mean")


def axes(results: Results, study: Study) -> str:
    """Return the table of the axes: counts per answer, margins gained, price."""
    titles = [f"margin of {title}, gained" for title in AXES.values()]
    header = ["", *AXES.values(), *titles, "NLL of plain text"]
    lines: list[list[str]] = []
    size, base = max(study.sizes), results.pick(study, "base")
    subjects = [("student", "base", "own", 1)]
    subjects += [(f"delta: {axis}", f"single {i}", "own", 1) for i, axis in enumerate(AXES)]
    subjects += [(f"trained: {way}", way, "own", 1) for way in study.together]
    for label in study.methods:
        for scale in study.scales:
            subjects.append((f"{label}, {SCALES[scale]}", label, scale, size))
    for title, label, scale, of in subjects:
        rows = list(results.pick(study, label, scale, of).values())
        cells = [NONE] * (len(header) - 1)
        if rows:
            cells = [text(interval([row["counts"][axis] for row in rows]), 1) for axis in AXES]
            for axis in AXES:
                cells.append(text(interval([gained(row, base, axis) for row in rows]), 1))
            cells.append(text(interval([nll(row) for row in rows])))
        lines.append([title, *cells])
    return f"{len(base)} seeds.\n\n{table(header, lines)}"


def search(results: Results, studies: Sequence[Study]) -> str:
    """Return the regimens of the student's copies: what single deltas gain on validation."""
    lines: list[list[str]] = []
    for study in studies:
        singles = results.singles(study)
        base = results.pick(study, "base")
        seeds = sorted(set(base).intersection(*map(set, singles)))
        cells = [NONE] * 4
        if seeds:
            gains: list[float] = []
            exact: list[float] = []
            for seed in seeds:
                gains += [nll(base[seed]) - nll(rows[seed]) for rows in singles]
                exact += [accuracy(rows[seed]) - accuracy(base[seed]) for rows in singles]
            better = [gain for gain in gains if gain > 0]
            cells = [
                f"{fmean(gains):+.3f}",
                f"{len(better)} of {len(gains)}",
                f"{fmean(exact):+.3f}",
                ", ".join(map(str, seeds)),
            ]
        lines.append([study.name.removeprefix("copies: "), *cells])
    titles = ["NLL gained over the student", "deltas that gain", "accuracy gained"]
    return table(["regimen", *titles, "seeds"], lines)


def tables(rows: Iterable[Row]) -> str:
    """Return everything between the markers."""
    results = Results(rows)
    parts: list[str] = []
    for study in STUDIES:
        if study.part == "validation":
            continue
        title = study.name[0].upper() + study.name[1:]
        if study.axes:
            parts += [f"### {title}", axes(results, study)]
            continue
        for size in study.sizes:
            parts += [f"### {title}, {size} adapters", of_study(results, study, size)]
    searched = [study for study in STUDIES if study.part == "validation"]
    parts += ["### Copies of the student: the search", search(results, searched)]
    return "\n\n".join(parts)


def write(rows: Iterable[Row]) -> None:
    """Replace the tables in their pages."""
    measured = list(rows)
    between(PAGE, "studies", tables(measured))
    (study,) = (study for study in STUDIES if study.axes)
    between(EXAMPLE, "axes", axes(Results(measured), study))
