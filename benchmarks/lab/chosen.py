"""Tables of what is chosen, and how it does against choices that never change."""

from collections.abc import Mapping, Sequence

from benchmarks.lab import choose
from benchmarks.lab.choose import CANDIDATE, CHOICES, POINTS, SUGGESTED_BY, AdapterSet, Choice, Pick
from benchmarks.lab.design import BY_OVERLAP, FEW, OF_MODULE, OF_SET
from benchmarks.lab.markdown import NONE, judged, table
from benchmarks.lab.rows import Row
from benchmarks.lab.statistics import Difference

_FIXED: tuple[Choice, ...] = (("mean", "own"), ("gam", "own"), ("consensus(-0.25)", "own"))


def without_data(rows: Sequence[Row]) -> list[str]:
    """Return the choices of the validation seeds among methods, and how they do on other seeds."""
    known, test = choose.halves(rows)
    if not known or not test:
        return [NONE]
    rule = choose.fit(known, choose.FIGURES[0])
    return [
        _choices(known, test, CHOICES, {}),
        _against(test, rule, [choose.best(known), *_FIXED], CHOICES),
    ]


def one_for_all(rows: Sequence[Row]) -> list[str]:
    """Return one point of the plane for every set, on the sets that did not suggest it."""
    known = choose.sets(rows, (*CHOICES, CANDIDATE))
    test = [x for x in known if (x.cell, x.seed) not in SUGGESTED_BY]
    if not test:
        return [NONE]
    title = f"{', '.join(CANDIDATE)}, on {len(test)} sets that did not suggest it:"
    return [title, _against(test, choose.always(CANDIDATE), [*_FIXED, ("tsvm", "norm")], CHOICES)]


def by_overlap(rows: Sequence[Row]) -> list[str]:
    """Return p from the overlap of the column spaces, over all sets, and one of them by cell.

    The overlap is that of each module or of the whole set.
    """
    picks: list[Choice] = [(label, rule) for label in BY_OVERLAP for rule in ("own", "norm")]
    among = choose.sets(rows, (*CHOICES, *picks))
    if not among:
        return [NONE]
    fixed: list[Choice] = [*_FIXED, ("tsvm", "norm"), (OF_SET, "norm")]
    header = [f"over {len(among)} sets", "NLL"]
    header += [f"against {', '.join(choice)}" for choice in fixed]
    lines: list[list[str]] = []
    for picked in picks:
        pick = choose.always(picked)
        line = [", ".join(picked), f"{choose.mean_nll(among, pick):.3f}"]
        for choice in fixed:
            overall = choose.against(among, pick, choose.always(choice))[choose.ALL]
            line.append(judged(overall))
        lines.append(line)
    by_module: Choice = (OF_MODULE, "norm")
    by_cell = _against(among, choose.always(by_module), fixed, CHOICES)
    return [table(header, lines), f"{', '.join(by_module)}:", by_cell]


def in_the_plane(rows: Sequence[Row]) -> list[str]:
    """Return the same among points of the plane, and by a few questions, where all seeds judge."""
    every = (*CHOICES, *POINTS)
    known, test = choose.halves(rows, every, choose.VALIDATION_PLANE)
    if not known:
        return [NONE]
    few: dict[str, Pick] = {}
    for most in FEW:
        few[f"{most} question{'s' * (most > 1)} per family"] = choose.by_few(most)
    fixed = [choose.best(known, every), *_FIXED]
    parts: list[str] = []
    if test:
        rule = choose.fit(known, choose.FIGURES[0], POINTS)
        parts += [_choices(known, test, POINTS, few), f"By {rule.figure}, on the seeds that judge:"]
        parts += [_against(test, rule, fixed, every)]
    for title, pick in few.items():
        parts += [f"By {title}, on all seeds:", _against([*known, *test], pick, fixed, every)]
    return parts


def _choices(
    known: Sequence[AdapterSet],
    test: Sequence[AdapterSet],
    choices: Sequence[Choice],
    few: Mapping[str, Pick],
) -> str:
    """Return every way to choose, with its NLL on the validation seeds and on the others."""

    def line(title: str, most: str, sides: Sequence[Choice], pick: Pick) -> list[str]:
        named = [", ".join(side) for side in sides] or ["-", "-"]
        means = [f"{choose.mean_nll(part, pick):.3f}" for part in (known, test)]
        return [title, most, *named, *means]

    lines: list[list[str]] = []
    for choice in dict.fromkeys([choose.best(known, choices), *_FIXED]):
        lines.append(line("always", "-", (choice, choice), choose.always(choice)))
    for figure in choose.FIGURES:
        rule = choose.fit(known, figure, choices)
        lines.append(line(figure, f"{rule.most:.2f}", (rule.low, rule.high), rule))
    for title, pick in few.items():
        lines.append(line(title, "-", (), pick))
    header = ["by", "threshold", "up to it", "above it"]
    return table([*header, "NLL, validation seeds", "NLL, test seeds"], lines)


def _against(
    among: Sequence[AdapterSet], pick: Pick, fixed: Sequence[Choice], choices: Sequence[Choice]
) -> str:
    """Return a table of one way to choose against fixed choices and the best of each cell."""

    def best_of_cell(adapter_set: AdapterSet) -> Choice:
        return choose.best([x for x in among if x.cell == adapter_set.cell], choices)

    columns: dict[str, Mapping[str, Difference]] = {}
    for choice in dict.fromkeys(fixed):
        title = f"against {', '.join(choice)}"
        columns[title] = choose.against(among, pick, choose.always(choice))
    hindsight = choose.against(among, pick, best_of_cell)
    columns["against the best here, with hindsight"] = hindsight
    lines: list[list[str]] = []
    for where in hindsight:
        lines.append([where, *(judged(column[where]) for column in columns.values())])
    return table(["", *columns], lines)
