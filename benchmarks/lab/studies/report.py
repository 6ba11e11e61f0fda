"""Tables of the studies, into results.md between their markers."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.lab.markdown import NONE, between, judged, table, text
from benchmarks.lab.report import SCALES, accuracy, nll
from benchmarks.lab.rows import Row
from benchmarks.lab.statistics import Difference, differences, interval
from benchmarks.lab.studies.axes_report import axes
from benchmarks.lab.studies.design import STUDIES, Study
from benchmarks.lab.studies.results import BySeed, Figure, Results, values
from benchmarks.lab.studies.verdict import verdict

PAGE = Path(__file__).parents[1] / "results.md"
EXAMPLE = Path(__file__).parents[3] / "examples" / "pda" / "README.md"


def margin(row: Row) -> float:
    return fmean(row["margin"].values())


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
    best = text(interval(results.best_single(study, seeds, size)), 3)
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
    return text(interval(values(seeds, rows, figure)), digits)


def _against_mean(results: Results, study: Study, scale: str, size: int) -> dict[str, Difference]:
    seeds = results.seeds(study, scale, size)
    if len(seeds) < 2:
        return {}
    nlls: dict[str, list[float]] = {}
    for label in study.methods:
        nlls[label] = values(seeds, results.pick(study, label, scale, size), nll)
    return differences(nlls, "mean")


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
