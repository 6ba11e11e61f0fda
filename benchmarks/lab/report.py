"""Tables and plots from the result rows, into README.md between its markers. No figure is typed."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.lab import chosen
from benchmarks.lab.choose import POINTS
from benchmarks.lab.design import AT_SIZES, CUT, METHODS, OTHERS, PLANE, Settings
from benchmarks.lab.markdown import NONE, judged, table, text
from benchmarks.lab.rows import Row
from benchmarks.lab.statistics import differences, interval

README = Path(__file__).parent / "README.md"
REFERENCE = "mean"
CELLS = [
    (kind, regime)
    for kind in ("specialists", "same goal", "preferences")
    for regime in ("shared", "separate")
]
_SCALES = {"own": "own scale", "norm": "norm of the adapters", "tuned": "tuned scale"}
_COLOURS, _SHIFTS = (
    ("tab:blue", "tab:orange", "tab:green"),
    (-0.22, 0.0, 0.22),
)  # of the plot, scale by scale
_ABOUT = ("kind", "regime", "method", "scale_rule", "rank", "size")
Figure = Callable[[Row], float]


def nll(row: Row) -> float:
    return fmean(row["nll"].values())


def accuracy(row: Row) -> float:
    return fmean(row["accuracy"].values())


def worst(row: Row) -> float:
    return max(row["nll"].values())


class Results:
    """Rows by what they are about."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self._found: dict[tuple[Any, ...], dict[int, Row]] = {}
        for row in self.rows:
            self._found.setdefault(tuple(row[name] for name in _ABOUT), {})[row["seed"]] = row

    def pick(
        self, kind: str, regime: str, method: str, rule: str = "own", rank: str = "R", size: int = 4
    ) -> dict[int, Row]:
        """The rows of one method in one kind and regime, by seed."""
        return self._found.get((kind, regime, method, rule, rank, size), {})

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
        """The seeds for which every method is there: others would make the comparison lopsided."""
        found = [set(self.pick(kind, regime, m, rule, rank, size)) for m in labels]
        return sorted(set.intersection(*found))

    def over_seeds(self, figure: Figure, seeds: Sequence[int], *where: str) -> str:
        """A table cell."""
        rows = self.pick(*where)
        return (
            text(interval([figure(rows[s]) for s in seeds]))
            if seeds and set(seeds) <= set(rows)
            else NONE
        )


def coverage(results: Results) -> str:
    """What has been run, in seeds."""
    planned = len(Settings().seeds)

    def count(
        kind: str, regime: str, rule: str, labels: Sequence[str] = tuple(METHODS), rank: str = "R"
    ) -> str:
        seeds = results.seeds(kind, regime, rule, labels=labels, rank=rank)
        return f"{len(seeds)} of {planned}" if seeds else NONE

    lines = []
    for kind, regime in CELLS:
        cells = [count(kind, regime, rule) for rule in _SCALES]
        lines.append([f"{kind}, {regime}", *cells, count(kind, regime, "own", CUT, "r")])
    return table(["set, initialisation", *_SCALES.values(), "cut to rank r"], lines)


def overlap(results: Results) -> str:
    """What is measured without data."""
    lines = []
    for kind, regime in CELLS:
        rows = list(results.pick(kind, regime, "compare", rank="r").values())

        def mean(name: str, rows: list[Row] = rows) -> str:
            return text(interval([row[name] for row in rows]), 3) if rows else NONE

        lines.append(
            [
                f"{kind}, {regime}",
                *map(mean, ("overlap_u", "chance_u", "overlap_v", "chance_v", "cosine")),
                str(len(rows)),
            ]
        )
    return table(
        ["set, initialisation", "overlap U", "chance", "overlap V", "chance", "cosine", "seeds"],
        lines,
    )


def cell(results: Results, kind: str, regime: str) -> str:
    """All methods in one kind and regime."""
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
        _plain(results, kind, regime, seeds, *who)
        for who in (("base", "base"), ("single", "one adapter"))
    ]
    if kind != "preferences":  # it is trained on answers
        lines.append(
            _plain(results, "specialists", "shared", seeds, "joint training", "joint training")
        )
    against = {rule: _against(results, kind, regime, rule) for rule in _SCALES}
    lines += [
        _method(results, kind, regime, label) + [against[rule].get(label, "-") for rule in against]
        for label in METHODS
    ]
    return f"Seeds: {', '.join(map(str, seeds))}.\n\n" + table(header, lines)


def _method(results: Results, kind: str, regime: str, label: str) -> list[str]:
    seeds = {rule: results.seeds(kind, regime, rule) for rule in _SCALES}
    every = seeds["own"]
    cells = [
        _of(results.over_seeds(nll, found, kind, regime, label, rule), found, every)
        for rule, found in seeds.items()
    ]
    cut = results.seeds(kind, regime, "own", labels=CUT, rank="r") if label in CUT else []
    same = "as own" if label in ("gam", "gam, mean anchor", "ctm") else NONE
    cells.append(
        _of(results.over_seeds(nll, cut, kind, regime, label, "own", "r"), cut, every)
        if cut
        else same
    )
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
    """A line of the base, of the adapters one by one, or of joint training: they have one scale and one rank."""
    if who == "single":
        found = {
            s: [results.pick(kind, regime, f"single {i}", rank="r")[s] for i in range(4)]
            for s in seeds
        }
    else:
        rows = results.pick(kind, regime, who, rank="r")
        found = {s: [rows[s]] for s in seeds if s in rows}
    if not found:
        return [title, *[NONE] * 6, *["-"] * 4]
    means = (
        text(interval([fmean(map(f, rows)) for rows in found.values()]))
        for f in (nll, accuracy, worst)
    )
    alone, exact, least = (_of(mean, list(found), seeds) for mean in means)
    return [title, alone, "-", "-", "-", f"({exact})", least, "-", "-", "-", "-"]


def _of(cell: str, found: Sequence[int], seeds: Sequence[int]) -> str:
    """A cell that says of which seeds it is, where those are not all of the table's."""
    if not found or list(found) == list(seeds):
        return cell
    return f"{cell}, of seed{'s' * (len(found) > 1)} {', '.join(map(str, found))}"


def _alone(results: Results, kind: str, regime: str) -> str:
    """The adapters one by one, where the merges of no seed have all been measured."""
    labels = ["base", *(f"single {i}" for i in range(Settings().size))]
    found = {label: list(results.pick(kind, regime, label, rank="r").values()) for label in labels}
    if not any(found.values()):
        return NONE
    lines = [
        [
            label,
            *(text(interval([f(row) for row in rows])) if rows else NONE for f in (nll, accuracy)),
            str(len(rows)),
        ]
        for label, rows in found.items()
    ]
    return "Merges are unmeasured.\n\n" + table(["", "NLL", "accuracy", "seeds"], lines)


def _gain_kept(results: Results, row: Row) -> float:
    """The gain over the base as a share of what single adapters gain: each on its own family, or on all of them."""
    where = (row["kind"], row["regime"])
    base = results.pick(*where, "base", rank="r")[row["seed"]]
    singles = [
        results.pick(*where, f"single {i}", rank="r")[row["seed"]] for i in range(row["size"])
    ]
    if row["kind"] == "specialists":
        best = fmean(single["nll"][f] for single, f in zip(singles, row["families"], strict=True))
    else:
        best = fmean(map(nll, singles))
    return (nll(base) - nll(row)) / (nll(base) - best)


def _against(
    results: Results, kind: str, regime: str, rule: str, labels: Sequence[str] = tuple(METHODS)
) -> dict[str, str]:
    """Each method against the mean at the same scale rule."""
    seeds = results.seeds(kind, regime, rule, labels=labels)
    if len(seeds) < 2:
        return {label: "one seed" if seeds else NONE for label in labels if label != REFERENCE}
    values = {
        label: [nll(results.pick(kind, regime, label, rule)[s]) for s in seeds] for label in labels
    }
    found = differences(values, REFERENCE)
    return {label: judged(d) for label, d in found.items()}


def by_set(results: Results, rule: str) -> str:
    """Each method less the mean at the same scale rule: the least and the largest difference over the sets."""
    seeds = {where: results.seeds(*where, rule) for where in CELLS}
    lines = []
    for label in METHODS:
        line = [label]
        for where, found in seeds.items():
            mine, reference = (
                results.pick(*where, label, rule),
                results.pick(*where, REFERENCE, rule),
            )
            less = [nll(mine[s]) - nll(reference[s]) for s in found]
            below = f"{sum(d < 0 for d in less)} of {len(less)} below"
            line.append(f"{min(less):+.2f} to {max(less):+.2f}, {below}" if less else NONE)
        if label != REFERENCE:
            lines.append(line)
    return table([_SCALES[rule], *map(", ".join, CELLS)], lines)


def sizes(results: Results) -> str:
    """Sets of 2, 4 and 6."""
    lines = []
    for label in AT_SIZES:
        cells = []
        for size in (2, 4, 6):
            seeds = results.seeds("specialists", "separate", "own", labels=AT_SIZES, size=size)
            rows = results.pick("specialists", "separate", label, size=size)
            cells.append(
                text(interval([nll(rows[s]) for s in seeds])) + f" ({len(seeds)})"
                if seeds
                else NONE
            )
        lines.append([label, *cells])
    return table(["specialists, separate: NLL, own scale (seeds)", "2 adapters", "4", "6"], lines)


def others(results: Results) -> str:
    """Methods beside those of the main tables, at the seeds that have them and the mean."""
    labels, lines = (REFERENCE, *OTHERS), []
    for kind, regime in CELLS:
        seeds = {rule: results.seeds(kind, regime, rule, labels=labels) for rule in ("own", "norm")}
        if not seeds["own"]:
            lines.append([f"{kind}, {regime}", NONE, *["-"] * 4, "0"])
            continue
        against = {rule: _against(results, kind, regime, rule, labels) for rule in seeds}
        for label in labels:
            cells = [
                results.over_seeds(nll, seeds[rule], kind, regime, label, rule) for rule in seeds
            ]
            cells += [against[rule].get(label, "-") for rule in against]
            lines.append(
                [
                    f"{kind}, {regime}" if label == REFERENCE else "",
                    label,
                    *cells,
                    str(len(seeds["own"])),
                ]
            )
    columns = (
        "NLL, own scale",
        "NLL, norm of the adapters",
        "against mean, own",
        "against mean, norm",
        "seeds",
    )
    return table(["set, initialisation", "", *columns], lines)


def plane(results: Results) -> str:
    """NLL at the points of the (p, q) plane."""
    seeds = {where: results.seeds(*where, "norm", labels=tuple(PLANE)) for where in CELLS}
    lines = [
        [
            ", ".join(point),
            *(results.over_seeds(nll, found, *where, *point) for where, found in seeds.items()),
        ]
        for point in POINTS
    ]
    header = [f"{kind}, {regime} ({len(seeds[kind, regime])})" for kind, regime in CELLS]
    return table(["NLL (seeds)", *header], lines)


def tables(rows: Iterable[Row]) -> str:
    """Everything between the markers."""
    results = Results(rows)
    parts = [
        "### What has been run",
        coverage(results),
        "### Overlap of the adapters",
        overlap(results),
    ]
    for kind, regime in CELLS:
        parts += [f"### {kind.capitalize()}, {regime} initialisation", cell(results, kind, regime)]
    parts += ["### Less the mean, set by set", *(by_set(results, rule) for rule in _SCALES)]
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


def write(rows: Iterable[Row], readme: Path = README) -> None:
    """Replace the tables in the README."""
    new = f"<!-- tables -->\n\n{tables(rows)}\n\n<!-- /tables -->"
    pattern = re.compile("<!-- tables -->.*<!-- /tables -->", re.DOTALL)
    readme.write_text(pattern.sub(lambda _: new, readme.read_text("utf-8")), "utf-8")


def plot(rows: Iterable[Row], path: Path) -> None:
    """NLL of every method less that of the mean at its own scale: a panel a kind and regime, a dot a seed."""
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
        for (rule, title), colour, shift in zip(_SCALES.items(), _COLOURS, _SHIFTS, strict=True):
            for y, label in enumerate(METHODS):
                found = results.pick(*where, label, rule)
                x = [
                    nll(found[seed]) - nll(reference[seed])
                    for seed in sorted(found.keys() & reference.keys())
                ]
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
        *axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(_SCALES)
    )
    figure.savefig(path, metadata={"Date": None})
