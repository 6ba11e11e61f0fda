"""A second reading: every claim of the verdict in README.md, from the rows, by other code.

``python -m benchmarks.lab.check`` prints the claims and exits with 1 if one does not hold. It
shares no code with the tables: nothing of report, statistics, choose, chosen and markdown. The
claims on the studies are in check_studies.py.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from scipy.stats import sem, t

from benchmarks.lab import check_studies
from benchmarks.lab.check_studies import Figures, Row

HOME = Path(__file__).parent
CELLS = tuple(product(("specialists", "same goal", "preferences"), ("shared", "separate")))
SCALES = {"own scale": "own", "norm of the adapters": "norm"}
TIE = 0.01  # nats: smaller differences do not matter
KEPT = 0.95  # |gam| / |mean| from which auto takes GAM


class Set(NamedTuple):
    kind: str
    regime: str
    seed: int


class Merge(NamedTuple):
    method: str
    scale: str = "own"
    rank: str = "R"


MEAN, GAM, CONSENSUS = Merge("mean"), Merge("gam"), Merge("consensus(-0.25)")
COMPARE = Merge("compare", rank="r")
ANCHORS = ("gam", "gam, mean anchor")
PLANE = [Merge(f"consensus({p}, {q})", "norm") for p in (-0.5, -0.25, 0, 0.25) for q in (0.5, 1)]
POINTS = [*PLANE, *(Merge(f"consensus({p}, 1)") for p in (-0.5, -0.25, 0))]


class Lab:
    """The rows of the sets of four, by merge and set."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows: dict[Merge, dict[Set, Row]] = {}
        for row in rows:
            if row["size"] == 4:
                merge = Merge(row["method"], row["scale_rule"], row["rank"])
                where = Set(row["kind"], row["regime"], row["seed"])
                self.rows.setdefault(merge, {})[where] = row
        self.sets = sorted(self.rows[MEAN])

    def nll(self, merge: Merge, where: Set) -> float:
        return fmean(self.rows[merge][where]["nll"].values())

    def less(self, a: Merge, b: Merge, kind: str = "", regime: str = "") -> list[float]:
        """Return the NLL of one merge less that of another, set by set."""
        where = [x for x in self.sets if kind in ("", x.kind) and regime in ("", x.regime)]
        return [self.nll(a, x) - self.nll(b, x) for x in where]

    def merges(self) -> list[Merge]:
        """Return the merges that every set has."""
        alone = re.compile("base|single|joint|compare")
        whole = [m for m, rows in self.rows.items() if rows.keys() == set(self.sets)]
        return [m for m in whole if not alone.match(m.method)]


def interval(less: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of paired differences; one without 0 is p < 0.05, uncorrected."""
    low, high = t.interval(0.95, len(less) - 1, fmean(less), sem(less))
    return float(low), float(high)


def gam_is_above_the_mean(lab: Lab) -> Figures:
    def above(kind: str = "", regime: str = "") -> list[float]:
        return [d for name in ANCHORS for d in lab.less(Merge(name), MEAN, kind, regime)]

    specialists, preferences = above("specialists"), above("preferences")
    ends = (min(specialists), max(specialists), min(preferences), max(preferences))
    return (min(above()) > 0, *ends, max(above("same goal", "shared")))


def gam_does_not_win_at_equal_norm(lab: Lab) -> Figures:
    part, above = True, True
    for name, cell in product(ANCHORS, CELLS):
        own = fmean(lab.less(Merge(name), MEAN, *cell))
        norm = fmean(lab.less(Merge(name, "norm"), Merge("mean", "norm"), *cell))
        part, above = part and norm < own, above and norm > 0
    return (part, above)


def consensus_is_below_the_mean(lab: Lab) -> Figures:
    figures: list[float] = []
    for rank in ("R", "r"):
        less = lab.less(CONSENSUS._replace(rank=rank), MEAN._replace(rank=rank))
        figures += [sum(d < 0 for d in less), len(less), max(less)]
    shares: dict[bool, list[float]] = {False: [], True: []}  # by whether auto takes GAM
    for where in lab.sets:
        kept = lab.rows[GAM][where]["norm_ratio"] / lab.rows[MEAN][where]["norm_ratio"]
        shares[kept >= KEPT].append(lab.rows[COMPARE][where]["overlap_u"])
    losses: list[float] = []
    below = True
    for merge in (MEAN, CONSENSUS):
        cut = merge._replace(rank="r")
        losses += lab.less(cut, merge)
        below = below and max(lab.less(cut, GAM)) < 0
    return (*figures, max(shares[False]) < min(shares[True]), max(losses), below)


def tsvm_is_as_low_on_average(lab: Lab) -> Figures:
    tsvm = Merge("tsvm", "norm")
    return (abs(fmean(lab.less(tsvm, CONSENSUS))) < TIE, max(lab.less(tsvm, MEAN)))


def flat_spectra_harm_one_goal(lab: Lab) -> Figures:
    means: list[float] = []
    harm = True
    for scale, regime in product(("own", "norm", "tuned"), ("shared", "separate")):
        less = lab.less(Merge("iso_c", scale), Merge("mean", scale), "same goal", regime)
        means.append(fmean(less))
        harm = harm and interval(less)[0] > 0
    return (harm, min(means), max(means))


def four_questions_choose_better(lab: Lab) -> Figures:
    picks: dict[Set, Merge] = {}
    for where in lab.sets:
        few = {point: lab.rows[point][where]["few"]["4"] for point in POINTS}
        picks[where] = min(few, key=few.__getitem__)

    def below(rule: Mapping[Set, Merge]) -> dict[Set, float]:
        return {x: lab.nll(merge, x) - lab.nll(picks[x], x) for x, merge in rule.items()}

    fixed: dict[Merge, dict[Set, float]] = {}
    for merge in lab.merges():
        if merge.rank == "R" and merge.scale != "tuned":  # tuning has seen questions, too
            fixed[merge] = below(dict.fromkeys(lab.sets, merge))
    means = {merge: fmean(gaps.values()) for merge, gaps in fixed.items()}
    nearest = min(means, key=means.__getitem__)
    by_seed: dict[int, list[float]] = {}
    for where, gap in fixed[nearest].items():
        by_seed.setdefault(where.seed, []).append(gap)
    seeds = [fmean(gaps) for gaps in by_seed.values()]
    low, high = interval(seeds)
    farther = min(fmean(below(rule).values()) for rule in _splits(lab)) > means[nearest]
    named = nearest == Merge("consensus(-0.5, 1)", "norm")
    return (means[MEAN], means[GAM], means[nearest], named, low < 0 < high, farther)


def _splits(lab: Lab) -> Iterable[dict[Set, Merge]]:
    """Yield what rules by one figure take for the seeds that did not choose the rule.

    Threshold and sides are the best on the seeds that choose.
    """
    names = sorted(m.method for m in lab.rows if m.scale == "tuned")
    methods = [Merge(name, scale) for name in names for scale in ("own", "norm")]
    families = ((methods, (0, 1)), (POINTS, (0, 1, 2)))
    for (merges, seeds), name in product(families, ("overlap_u", "overlap_v", "cosine")):
        figure = {x: lab.rows[COMPARE][x][name] for x in lab.sets}
        known = sorted((x for x in lab.sets if x.seed in seeds), key=figure.__getitem__)
        rules: list[tuple[float, float, Merge, Merge]] = []
        for i in range(1, len(known)):
            (loss, low), (more, high) = _best(lab, merges, known[:i]), _best(lab, merges, known[i:])
            rules.append((loss + more, figure[known[i]], low, high))
        _, least, low, high = min(rules)
        judges = [x for x in lab.sets if x.seed not in seeds]
        yield {x: low if figure[x] < least else high for x in judges}


def _best(lab: Lab, merges: Sequence[Merge], sets: Sequence[Set]) -> tuple[float, Merge]:
    return min((sum(lab.nll(merge, x) for x in sets), merge) for merge in merges)


def joint_training_is_below_the_best_merge(lab: Lab) -> Figures:
    gaps: list[float] = []
    for where, row in lab.rows[Merge("joint training", rank="r")].items():
        sets = [where._replace(regime=regime) for regime in ("shared", "separate")]
        best = min(lab.nll(merge, x) for merge, x in product(lab.merges(), sets))
        gaps.append(best - fmean(row["nll"].values()))
    return (min(gaps), max(gaps))


def line_of_the_table(lab: Lab, line: str) -> Figures:
    method, _, scale = line.split(" | ")[0].strip("| ").rpartition(", ")
    figures: list[float] = []
    for cell in CELLS:
        less = lab.less(Merge(method, SCALES[scale]), MEAN, *cell)
        low, high = interval(less)
        figures += [fmean(less), (high - low) / 2]
    return tuple(figures)


# what is recomputed, and the words that state it, {} for a number; sentence by sentence
CLAIMS: tuple[tuple[Callable[[Lab], Figures], str], ...] = (
    (
        gam_is_above_the_mean,
        "anchored at an adapter or at the mean, is above the mean in every seed of every cell: "
        "by {} to {} for specialists, by {} to {} for preferences, and by at most {} for one goal "
        "with shared factors",
    ),
    (
        gam_does_not_win_at_equal_norm,
        "Part of this is length, but at the norm of the adapters GAM does not win over the mean of "
        "that norm in any cell",
    ),
    (
        consensus_is_below_the_mean,
        "below the mean in {} of {} sets (five seeds of six cells) and at most {} above it; cut to "
        "the rank of one adapter, as `auto` takes it where adapters share little, it is below the "
        "mean of that rank in {} of {} and at most {} above it; both lose at most {} by the cut, "
        "and stay below GAM anchored at an adapter",
    ),
    (tsvm_is_as_low_on_average, "as low on average, but up to {} above the mean at its own scale"),
    (flat_spectra_harm_one_goal, "harm adapters of one goal, by {} to {} on average"),
    (
        four_questions_choose_better,
        "better than any rule without data that was tried: {} below the mean, {} below GAM and {} "
        "below the nearest, `consensus(-0.5)` at the norm of the adapters, which is open",
    ),
    (joint_training_is_below_the_best_merge, "{} to {} below the best merge of either"),
)
CELL = " {} ± {} |"


class Reading(NamedTuple):
    """What the text says, what the rows say, and whether that is the same."""

    where: str
    text: str
    recomputed: str
    holds: bool


def readings(rows: Iterable[Row], studied: Sequence[Row], page: str) -> list[Reading]:
    """Return every claim of the page, read again from the rows of the lab and of the studies."""
    lab = Lab(rows)
    claims = [(claim(lab), words) for claim, words in CLAIMS]
    claims += [(claim(studied), words) for claim, words in check_studies.CLAIMS]
    verdict = page.partition("## Verdict")[2].partition("\n\nThis says")[0]
    sentences = re.split(r"\n+\d+\. ", verdict)[1:]
    checked: list[Reading] = []
    for i, (sentence, (figures, words)) in enumerate(zip(sentences, claims, strict=True), 1):
        checked.append(_read(f"{i}", " ".join(sentence.split()), words, figures))
    header, _, *lines = page.partition("<!-- summary -->")[2].partition("<!--")[0].split("\n")[2:-2]
    cells = " | ".join(map(", ".join, CELLS))
    checked.append(Reading("table", header, cells, header.endswith(f"| {cells} |")))
    for line in lines:
        checked.append(_read("table", line, CELL * len(CELLS), line_of_the_table(lab, line)))
    return checked


def _read(where: str, text: str, words: str, figures: Figures) -> Reading:
    conditions = [x for x in figures if isinstance(x, bool)]
    numbers = [x for x in figures if not isinstance(x, bool)]
    stated = re.search(re.escape(words).replace(r"\{\}", r"([+-]?\d+(?:\.\d+)?)"), text)
    same = False
    if stated and len(stated.groups()) == len(numbers):
        same = all(map(_rounds_to, numbers, stated.groups()))
    recomputed = ["yes" if x else "NO" for x in conditions] + [f"{x:.4g}" for x in numbers]
    return Reading(where, text, ", ".join(recomputed), same and all(conditions))


def _rounds_to(number: float, stated: str) -> bool:
    return round(number, len(stated.partition(".")[2])) == float(stated)


def rows_of(folder: Path) -> list[Row]:
    """Return the rows of the lab, or of the studies."""
    lines = (folder / "results.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def main() -> int:
    rows, studied = rows_of(HOME), rows_of(HOME / "studies")
    checked = readings(rows, studied, (HOME / "README.md").read_text("utf-8"))
    print("| sentence | text | recomputed | holds |\n| --- | --- | --- | --- |")
    for where, text, recomputed, holds in checked:
        flat = [x.strip("| ").replace(" | ", "; ") for x in (text, recomputed)]
        print(f"| {where} | {flat[0]} | {flat[1]} | {'yes' if holds else 'NO'} |")
    return int(not all(reading.holds for reading in checked))


if __name__ == "__main__":
    sys.exit(main())
