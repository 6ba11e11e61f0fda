"""Tables and plots from the result rows, into results.md between its markers."""

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.lab import chosen
from benchmarks.lab.choose import POINTS
from benchmarks.lab.design import AT_SIZES, CUT, METHODS, OTHERS, PLANE, Settings
from benchmarks.lab.markdown import NONE, between, judged, table, text
from benchmarks.lab.rows import Row
from benchmarks.lab.statistics import differences, interval

PAGE = Path(__file__).parent / "results.md"
FRONT = PAGE.with_name("README.md")
REFERENCE = "mean"
CELLS = list(product(("specialists", "same goal", "preferences"), ("shared", "separate")))
SCALES = {"own": "own scale", "norm": "norm of the adapters", "tuned": "tuned scale"}
# of the front page
_SHORT = (
    ("gam", "own"),
    ("gam", "norm"),
    ("mean", "norm"),
    ("consensus(-0.25)", "own"),
    ("tsvm", "norm"),
    ("ties@knots", "norm"),
    ("iso_c", "norm"),
)
# of the plot, scale by scale
_COLOURS, _SHIFTS = ("tab:blue", "tab:orange", "tab:green"), (-0.22, 0.0, 0.22)
_ABOUT = ("kind", "regime", "method", "scale_rule", "rank", "size")
Figure = Callable[[Row], float]


def nll(row: Row) -> float:
    return fmean(row["nll"].values())


def accuracy(row: Row) -> float:
    return fmean(row["accuracy"].values())


def worst(row: Row) -> float:
    return max(row["nll"].values())


class Results:
    """Rows by kind, regime, method, scale, rank and size."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self._by_subject: dict[tuple[Any, ...], dict[int, Row]] = {}
        for row in self.rows:
            self._by_subject.setdefault(tuple(row[name] for name in _ABOUT), {})[row["seed"]] = row

    def pick(
        self, kind: str, regime: str, method: str, rule: str = "own", rank: str = "R", size: int = 4
    ) -> dict[int, Row]:
        """Return the rows of one method in one kind and regime, by seed."""
        return self._by_subject.get((kind, regime, method, rule, rank, size), {})

    def seeds(
        self,
        kind: str,
        regime: str,
        rule: str,
        *,
        labels: Sequence[str] = tuple(METHODS),
        rank: str = "R",
        size: int = 4,
    ) -> list[int]:
        """Return the seeds that have every method: others would make the comparison lopsided."""
        seeds = [set(self.pick(kind, regime, label, rule, rank, size)) for label in labels]
        return sorted(set.intersection(*seeds))

    def over_seeds(self, figure: Figure, seeds: Sequence[int], *where: str) -> str:
        """Return the cell of a table."""
        rows = self.pick(*where)
        if not seeds or not set(seeds) <= set(rows):
            return NONE
        return text(interval([figure(rows[seed]) for seed in seeds]))


def coverage(results: Results) -> str:
    """Return a table of what has been run, in seeds."""
    planned = len(Settings().seeds)

    def count(
        kind: str, regime: str, rule: str, labels: Sequence[str] = tuple(METHODS), rank: str = "R"
    ) -> str:
        seeds = results.seeds(kind, regime, rule, labels=labels, rank=rank)
        return f"{len(seeds)} of {planned}" if seeds else NONE

    lines = []
    for kind, regime in CELLS:
        cells = [count(kind, regime, rule) for rule in SCALES]
        lines.append([f"{kind}, {regime}", *cells, count(kind, regime, "own", CUT, "r")])
    return table(["set, initialisation", *SCALES.values(), "cut to rank r"], lines)


def overlap(results: Results) -> str:
    """Return a table of what is measured without data."""
    figures = ("overlap_u", "chance_u", "overlap_v", "chance_v", "cosine")
    lines: list[list[str]] = []
    for kind, regime in CELLS:
        rows = list(results.pick(kind, regime, "compare", rank="r").values())
        means = [NONE] * len(figures)
        if rows:
            means = [text(interval([row[name] for row in rows]), 3) for name in figures]
        lines.append([f"{kind}, {regime}", *means, str(len(rows))])
    header = ["overlap U", "chance", "overlap V", "chance", "cosine", "seeds"]
    return table(["set, initialisation", *header], lines)


def cell(results: Results, kind: str, regime: str) -> str:
    """Return a table of all methods in one kind and regime."""
    seeds = results.seeds(kind, regime, "own")
    if not seeds:
        return _alone(results, kind, regime)
    header = [
        "",
        "NLL, own scale",
        "NLL, norm of the adapters",
        "NLL, tuned scale",
        "NLL, cut to r",
        "accuracy, tuned (own)",
    ]
    header += [
        "worst family, own",
        "gain kept, own",
        "against mean, own",
        "against mean, norm",
        "against mean, tuned",
    ]
    lines = [
        _plain(results, kind, regime, seeds, "base", "base"),
        _plain(results, kind, regime, seeds, "single", "one adapter"),
    ]
    if kind != "preferences":  # it is trained on answers
        lines.append(
            _plain(results, "specialists", "shared", seeds, "joint training", "joint training")
        )
    against = {rule: _against(results, kind, regime, rule) for rule in SCALES}
    for label in METHODS:
        verdicts = [judgements.get(label, "-") for judgements in against.values()]
        lines.append(_method(results, kind, regime, label) + verdicts)
    return f"Seeds: {', '.join(map(str, seeds))}.\n\n" + table(header, lines)


def _method(results: Results, kind: str, regime: str, label: str) -> list[str]:
    seeds = {rule: results.seeds(kind, regime, rule) for rule in SCALES}
    every = seeds["own"]
    cells: list[str] = []
    for rule, at_rule in seeds.items():
        mean = results.over_seeds(nll, at_rule, kind, regime, label, rule)
        cells.append(_of(mean, at_rule, every))
    cut = results.seeds(kind, regime, "own", labels=CUT, rank="r") if label in CUT else []
    if cut:
        mean = results.over_seeds(nll, cut, kind, regime, label, "own", "r")
        cells.append(_of(mean, cut, every))
    else:
        cells.append("as own" if label in ("gam", "gam, mean anchor", "ctm") else NONE)
    best = "tuned" if seeds["tuned"] == every else "own"
    shown = results.over_seeds(accuracy, seeds[best], kind, regime, label, best)
    rows = results.pick(kind, regime, label)
    kept = interval([_gain_kept(results, rows[s]) for s in every])
    return [
        label,
        *cells,
        shown if best == "tuned" else f"({shown})",
        text(interval([worst(rows[s]) for s in every])),
        text(kept),
    ]


def _plain(
    results: Results, kind: str, regime: str, seeds: Sequence[int], who: str, title: str
) -> list[str]:
    """Return a line of the base, of the single adapters or of joint training.

    They have one scale and one rank.
    """
    labels = [f"single {i}" for i in range(4)] if who == "single" else [who]
    picked = [results.pick(kind, regime, label, rank="r") for label in labels]
    by_seed: dict[int, list[Row]] = {}
    for seed in seeds:
        if all(seed in rows for rows in picked):
            by_seed[seed] = [rows[seed] for rows in picked]
    if not by_seed:
        return [title, *[NONE] * 6, *["-"] * 4]
    cells: list[str] = []
    for figure in (nll, accuracy, worst):
        means = [fmean(map(figure, rows)) for rows in by_seed.values()]
        cells.append(_of(text(interval(means)), list(by_seed), seeds))
    alone, exact, least = cells
    return [title, alone, "-", "-", "-", f"({exact})", least, "-", "-", "-", "-"]


def _of(cell: str, seeds: Sequence[int], all_seeds: Sequence[int]) -> str:
    """Return a cell that names its seeds, unless they are all of the table's."""
    if not seeds or list(seeds) == list(all_seeds):
        return cell
    return f"{cell}, of seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _alone(results: Results, kind: str, regime: str) -> str:
    """Return a table of the single adapters, if no seed has the merges of all methods."""
    lines: list[list[str]] = []
    for label in ["base", *(f"single {i}" for i in range(Settings().size))]:
        rows = list(results.pick(kind, regime, label, rank="r").values())
        cells = [NONE, NONE]
        if rows:
            cells = [text(interval([f(row) for row in rows])) for f in (nll, accuracy)]
        lines.append([label, *cells, str(len(rows))])
    if all(line[-1] == "0" for line in lines):
        return NONE
    return "Merges are unmeasured.\n\n" + table(["", "NLL", "accuracy", "seeds"], lines)


def _gain_kept(results: Results, row: Row) -> float:
    """Return the gain over the base as a share of what single adapters gain.

    Specialists gain on their own family, other adapters on all of them.
    """
    where, seed = (row["kind"], row["regime"]), row["seed"]
    base = results.pick(*where, "base", rank="r")[seed]
    singles: list[Row] = []
    for i in range(row["size"]):
        singles.append(results.pick(*where, f"single {i}", rank="r")[seed])
    if row["kind"] == "specialists":
        best = fmean(single["nll"][f] for single, f in zip(singles, row["families"], strict=True))
    else:
        best = fmean(map(nll, singles))
    return (nll(base) - nll(row)) / (nll(base) - best)


def _against(
    results: Results, kind: str, regime: str, rule: str, labels: Sequence[str] = tuple(METHODS)
) -> dict[str, str]:
    """Return each method against the mean at the same scale rule."""
    seeds = results.seeds(kind, regime, rule, labels=labels)
    if len(seeds) < 2:
        reason = "one seed" if seeds else NONE
        return {label: reason for label in labels if label != REFERENCE}
    values: dict[str, list[float]] = {}
    for label in labels:
        rows = results.pick(kind, regime, label, rule)
        values[label] = [nll(rows[seed]) for seed in seeds]
    return {label: judged(d) for label, d in differences(values, REFERENCE).items()}


def by_set(results: Results, rule: str) -> str:
    """Return a table of each method less the mean at the same scale rule, over the sets."""
    lines: list[list[str]] = []
    for label in METHODS:
        if label != REFERENCE:
            lines.append([label, *(_range(results, where, label, rule) for where in CELLS)])
    return table([SCALES[rule], *map(", ".join, CELLS)], lines)


def _range(results: Results, where: tuple[str, str], label: str, rule: str) -> str:
    """Return the least and the largest difference to the mean, and how many are below it."""
    rows = results.pick(*where, label, rule)
    references = results.pick(*where, REFERENCE, rule)
    less = [nll(rows[seed]) - nll(references[seed]) for seed in results.seeds(*where, rule)]
    if not less:
        return NONE
    below = sum(d < 0 for d in less)
    return f"{min(less):+.2f} to {max(less):+.2f}, {below} of {len(less)} below"


def sizes(results: Results) -> str:
    """Return a table of sets of 2, 4 and 6."""
    lines: list[list[str]] = []
    for label in AT_SIZES:
        cells = []
        for size in (2, 4, 6):
            seeds = results.seeds("specialists", "separate", "own", labels=AT_SIZES, size=size)
            rows = results.pick("specialists", "separate", label, size=size)
            if seeds:
                mean = text(interval([nll(rows[seed]) for seed in seeds]))
                cells.append(f"{mean} ({len(seeds)})")
            else:
                cells.append(NONE)
        lines.append([label, *cells])
    return table(["specialists, separate: NLL, own scale (seeds)", "2 adapters", "4", "6"], lines)


def others(results: Results) -> str:
    """Return a table of further methods, at the seeds that have them and the mean."""
    labels = (REFERENCE, *OTHERS)
    lines: list[list[str]] = []
    for kind, regime in CELLS:
        seeds = {rule: results.seeds(kind, regime, rule, labels=labels) for rule in ("own", "norm")}
        if not seeds["own"]:
            lines.append([f"{kind}, {regime}", NONE, *["-"] * 4, "0"])
            continue
        against = {rule: _against(results, kind, regime, rule, labels) for rule in seeds}
        for label in labels:
            cells: list[str] = []
            for rule, at_rule in seeds.items():
                cells.append(results.over_seeds(nll, at_rule, kind, regime, label, rule))
            cells += [judgements.get(label, "-") for judgements in against.values()]
            title = f"{kind}, {regime}" if label == REFERENCE else ""
            lines.append([title, label, *cells, str(len(seeds["own"]))])
    columns = (
        "NLL, own scale",
        "NLL, norm of the adapters",
        "against mean, own",
        "against mean, norm",
        "seeds",
    )
    return table(["set, initialisation", "", *columns], lines)


def plane(results: Results) -> str:
    """Return a table of the NLL at the points of the (p, q) plane."""
    seeds = {where: results.seeds(*where, "norm", labels=tuple(PLANE)) for where in CELLS}
    lines: list[list[str]] = []
    for point in POINTS:
        cells = [results.over_seeds(nll, seeds[where], *where, *point) for where in CELLS]
        lines.append([", ".join(point), *cells])
    header = [f"{kind}, {regime} ({len(seeds[kind, regime])})" for kind, regime in CELLS]
    return table(["NLL (seeds)", *header], lines)


def tables(rows: Iterable[Row]) -> str:
    """Return everything between the markers."""
    results = Results(rows)
    parts = [
        "### What has been run",
        coverage(results),
        "### Overlap of the adapters",
        overlap(results),
    ]
    for kind, regime in CELLS:
        parts += [f"### {kind.capitalize()}, {regime} initialisation", cell(results, kind, regime)]
    parts += ["### Less the mean, set by set", *(by_set(results, rule) for rule in SCALES)]
    parts += ["### Number of adapters", sizes(results)]
    parts += [
        "### Other methods",
        others(results),
        "### The (p, q) plane of consensus",
        plane(results),
    ]
    parts += ["### A method chosen without data", *chosen.without_data(results.rows)]
    parts += ["### One point of the plane for all", *chosen.one_for_all(results.rows)]
    parts += ["### p from the overlaps", *chosen.by_overlap(results.rows)]
    parts += [
        "### A point of the plane, chosen without data or by a few questions",
        *chosen.in_the_plane(results.rows),
    ]
    return "\n\n".join(parts)


def summary(rows: Iterable[Row]) -> str:
    """Return the one table of the front page: the mean over seeds of the NLL, less the mean's."""
    results = Results(rows)
    lines: list[list[str]] = []
    for label, rule in _SHORT:
        cells = [_less_the_mean(results, where, label, rule) for where in CELLS]
        lines.append([f"{label}, {SCALES[rule]}", *cells])
    return table(["NLL less that of the mean at its own scale", *map(", ".join, CELLS)], lines)


def _less_the_mean(results: Results, where: tuple[str, str], label: str, rule: str) -> str:
    rows, references = results.pick(*where, label, rule), results.pick(*where, REFERENCE)
    seeds = sorted(rows.keys() & references.keys())
    if not seeds:
        return NONE
    less = interval([nll(rows[seed]) - nll(references[seed]) for seed in seeds])
    return f"{less.mean:+.3f} ± {less.half:.3f}"


def write(rows: Iterable[Row]) -> None:
    """Replace the tables in their pages."""
    measured = list(rows)
    between(PAGE, "tables", tables(measured))
    between(FRONT, "summary", summary(measured))


def plot(rows: Iterable[Row], path: Path) -> None:
    """Draw the NLL of every method less that of the mean at its own scale.

    There is a panel per kind and regime, and a dot per seed.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "gam-merge"
    from matplotlib import pyplot

    results = Results(rows)
    cells = [c for c in CELLS if results.seeds(*c, "own")]
    size = (3.4 * len(cells), 3.6)
    figure, axes = pyplot.subplots(
        1, len(cells), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, where in zip(axes[0], cells, strict=True):
        reference = results.pick(*where, REFERENCE)
        axis.axvline(0, color="0.8")
        for (rule, title), colour, shift in zip(SCALES.items(), _COLOURS, _SHIFTS, strict=True):
            for y, label in enumerate(METHODS):
                rows_of_method = results.pick(*where, label, rule)
                seeds = sorted(rows_of_method.keys() & reference.keys())
                x = [nll(rows_of_method[seed]) - nll(reference[seed]) for seed in seeds]
                axis.plot(
                    x,
                    [y + shift] * len(x),
                    "o",
                    color=colour,
                    alpha=0.6,
                    label=None if y else title,
                )
        axis.set(
            title=", ".join(where), xlabel="NLL less that of the mean", yticks=range(len(METHODS))
        )
        axis.set_yticklabels(METHODS)
    axes[0][0].invert_yaxis()
    figure.legend(
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(SCALES)
    )
    figure.savefig(path, metadata={"Date": None})
