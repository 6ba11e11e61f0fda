"""Tables of what is chosen, and how it does against choices that never change."""

from collections.abc import Mapping, Sequence

from benchmarks.lab import choose
from benchmarks.lab.choose import CANDIDATE, CHOICES, POINTS, SUGGESTED_BY, AdapterSet, Choice, Pick
from benchmarks.lab.design import BY_OVERLAP, FEW, OF_MODULE, OF_SET
from benchmarks.lab.markdown import NONE, judged, table
from benchmarks.lab.rows import Row

_FIXED: tuple[Choice, ...] = (("mean", "own"), ("gam", "own"), ("consensus(-0.25)", "own"))


def without_data(rows: Sequence[Row]) -> list[str]:
    """What the validation seeds choose among whole methods, and how the choice by overlap U does on the others."""
    known, test = choose.halves(rows)
    if not known or not test:
        return [NONE]
    rule = choose.fit(known, choose.FIGURES[0])
    return [
        _choices(known, test, CHOICES, {}),
        _against(test, rule, [choose.best(known), *_FIXED], CHOICES),
    ]


def one_for_all(rows: Sequence[Row]) -> list[str]:
    """One point of the plane for every set, on the sets that did not suggest it."""
    known = choose.sets(rows, (*CHOICES, CANDIDATE))
    test = [one for one in known if (one.cell, one.seed) not in SUGGESTED_BY]
    if not test:
        return [NONE]
    title = f"{', '.join(CANDIDATE)}, on {len(test)} sets that did not suggest it:"
    return [title, _against(test, choose.always(CANDIDATE), [*_FIXED, ("tsvm", "norm")], CHOICES)]


def by_overlap(rows: Sequence[Row]) -> list[str]:
    """p from the overlap of the column spaces, of each module or of the set, over all sets, and one of them by cell."""
    picks: list[Choice] = [(label, rule) for label in BY_OVERLAP for rule in ("own", "norm")]
    among = choose.sets(rows, (*CHOICES, *picks))
    if not among:
        return [NONE]
    fixed: list[Choice] = [*_FIXED, ("tsvm", "norm"), (OF_SET, "norm")]
    header = [
        f"over {len(among)} sets",
        "NLL",
        *(f"against {', '.join(choice)}" for choice in fixed),
    ]
    lines = []
    for pick in map(choose.always, picks):
        found = [choose.against(among, pick, choose.always(choice))[choose.ALL] for choice in fixed]
        lines.append(
            [", ".join(pick(among[0])), f"{choose.mean_nll(among, pick):.3f}", *map(judged, found)]
        )
    one: Choice = (OF_MODULE, "norm")
    return [
        table(header, lines),
        f"{', '.join(one)}:",
        _against(among, choose.always(one), fixed, CHOICES),
    ]


def in_the_plane(rows: Sequence[Row]) -> list[str]:
    """The same among points of the plane, and by a few questions, where all seeds judge."""
    every = (*CHOICES, *POINTS)
    known, test = choose.halves(rows, every, choose.VALIDATION_PLANE)
    if not known:
        return [NONE]
    few = {f"{most} question{'s' * (most > 1)} a family": choose.by_few(most) for most in FEW}
    fixed = [choose.best(known, every), *_FIXED]
    parts = []
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
    """Every way to choose, with its NLL on the validation seeds and on the others."""

    def line(title: str, most: str, sides: Sequence[Choice], pick: Pick) -> list[str]:
        named = [", ".join(side) for side in sides] or ["-", "-"]
        return [
            title,
            most,
            *named,
            *(f"{choose.mean_nll(part, pick):.3f}" for part in (known, test)),
        ]

    fixed = dict.fromkeys([choose.best(known, choices), *_FIXED])
    lines = [line("always", "-", (one, one), choose.always(one)) for one in fixed]
    for figure in choose.FIGURES:
        rule = choose.fit(known, figure, choices)
        lines.append(line(figure, f"{rule.most:.2f}", (rule.low, rule.high), rule))
    lines += [line(title, "-", (), pick) for title, pick in few.items()]
    return table(
        ["by", "threshold", "up to it", "above it", "NLL, validation seeds", "NLL, test seeds"],
        lines,
    )


def _against(
    among: Sequence[AdapterSet], pick: Pick, fixed: Sequence[Choice], choices: Sequence[Choice]
) -> str:
    """One way to choose against choices that never change, and against the best of each cell, known afterwards."""
    others = {f"against {', '.join(choice)}": choice for choice in dict.fromkeys(fixed)}
    found = [choose.against(among, pick, choose.always(choice)) for choice in others.values()]
    best = choose.against(
        among, pick, lambda one: choose.best([x for x in among if x.cell == one.cell], choices)
    )
    lines = [[where, *(judged(column[where]) for column in [*found, best])] for where in best]
    return table(["", *others, "against the best here, with hindsight"], lines)
