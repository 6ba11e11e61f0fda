"""Write the tables of docs/methods.md from the cards of the methods: python docs/methods_page.py."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import gam_merge as gm
from gam_merge._methods._registry import plugins, spaces
from gam_merge._methods._schema import Param

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

from properties import PROPERTIES

PAGE = Path(__file__).with_name("methods.md")
_START, _END = "<!-- generated: python docs/methods_page.py -->\n", "<!-- /generated -->"
_RANKS = {"largest": "r", "sum": "R"}


def page() -> str:
    """The page as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(_START)[0], text.split(_END)[1]
    return before + _START + "\n" + "\n".join(_tables()) + "\n" + _END + after


def _tables() -> Iterable[str]:
    methods = gm.methods()
    yield "## Rules\n"
    yield "Rank: r is the largest rank of the sources, R the sum of their ranks.\n"
    weights = {True: "shares", False: "factors"}
    yield from _table(
        ("method", "computes", "weights", "rank", "use it", "not", "source"),
        (
            (
                f"`{m.name}`",
                m.summary,
                weights[m.normalize],
                _RANKS[m.rank],
                m.rule.use,
                m.rule.avoid,
                m.rule.reference,
            )
            for m in methods
        ),
    )
    yield "\n## Spaces\n"
    yield "For the rules that look at entries, and for `mean` and `sum`; `@core` if none is named.\n"
    rows = ((f"`@{s.name}`", s.summary, _RANKS[s.rank], s.reference) for s in spaces())
    yield from _table(("space", "entries of", "rank", "source"), rows)
    yield "\n`ctm` is short for `mean@ctm`, `knots` for `ties@knots`.\n"
    yield "## Before and after\n"
    rows = (
        (f"`{p.name}`", _SIDE[p.side], p.summary, p.use, p.avoid, p.reference) for p in plugins()
    )
    yield from _table(("name", "stands", "does", "use it", "not", "source"), rows)
    yield "\n## Parameters\n"
    common = {param.name for param in methods[0].params[-2:]}
    rows = [
        row
        for m in methods
        for row in _params(m.name, [p for p in m.params if p.name not in common])
    ]
    rows += [row for card in spaces() for row in _params(f"@{card.name}", card.params)]
    rows += [row for card in plugins() for row in _params(card.name, card.params, f"{card.name}.")]
    rows += _params("every method", methods[0].params[-2:])
    yield from _table(("of", "parameter", "default", "", "values"), rows)
    yield "\n## Properties\n"
    yield from _properties(methods)


_SIDE = {"pre": "before", "post": "after"}


def _params(of: str, params: Sequence[Param], prefix: str = "") -> list[tuple[str, ...]]:
    def default(param: Param) -> str:
        return "" if param.default is None else f"`{str(param.default).lower()}`"

    return [(f"`{of}`", f"`{prefix}{p.name}`", default(p), p.doc, p.allowed) for p in params]


def _properties(methods: Sequence[gm.Method]) -> Iterable[str]:
    """Which of them hold, as the tests measure it: they compare with this both ways."""
    broken = {name for card in (*methods, *spaces(), *plugins()) for name in card.breaks}
    broken = {name.partition("@")[0] for name in broken}
    yield "All methods have these, and a test measures each:\n"
    yield from (f"- {name}: {_doc(name)}" for name in PROPERTIES if name not in broken)
    yield "\nThese hold but for the marked ones, and a test measures that they really do not hold there:\n"
    columns = [name for name in PROPERTIES if name in broken]
    yield from (f"- {name}: {_doc(name)}" for name in columns)
    yield ""
    cards = [(f"`{m.name}`", m.breaks) for m in methods]
    cards += [(f"`@{s.name}`", s.breaks) for s in spaces()] + [
        (f"`{p.name}`", p.breaks) for p in plugins()
    ]
    rows = [
        (name, *("no" if column in breaks else "yes" for column in columns))
        for name, breaks in cards
    ]
    yield from _table(("", *columns), rows)
    yield "\nWhy not:\n"
    yield from (
        f"- {name}, {column}: {why}" for name, breaks in cards for column, why in breaks.items()
    )


def _doc(name: str) -> str:
    return (PROPERTIES[name].__doc__ or "").strip()


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + " --- |" * len(header)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
