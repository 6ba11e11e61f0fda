"""Write what follows from the cards of methods: python docs/methods_page.py.

That is the tables of docs/methods.md, and the list from which shells complete methods.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gam_merge as gm
from gam_merge._methods._registry import plugins, spaces
from gam_merge._methods._schema import Param

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

from properties import PROPERTIES

PAGE = Path(__file__).with_name("methods.md")
CATALOGUE = Path(__file__).parents[1] / "cli" / "gam_cli" / "catalogue.json"
_START, _END = "<!-- generated: python docs/methods_page.py -->\n", "<!-- /generated -->"
_RANKS = {"largest": "r", "sum": "R"}
_SIDES = {"pre": "before", "post": "after"}
_WEIGHTS = {True: "shares", False: "factors"}

Row = Sequence[str]


def page() -> str:
    """Return the page as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(_START)[0], text.split(_END)[1]
    return before + _START + "\n" + "\n".join(_tables()) + "\n" + _END + after


def _tables() -> Iterator[str]:
    yield "## Rules\n"
    yield "Rank: r is the largest rank of the sources, R the sum of their ranks.\n"
    header = ("method", "computes", "weights", "rank", "use it", "avoid it", "source")
    yield from _table(header, map(_rule, gm.methods()))
    yield "\n## Spaces\n"
    yield "For rules that look at entries, and for `mean` and `sum`; the default is `@core`.\n"
    rows = [(f"`@{s.name}`", s.summary, _RANKS[s.rank], s.reference) for s in spaces()]
    yield from _table(("space", "entries of", "rank", "source"), rows)
    short = "`ctm` is short for `mean@ctm`, `knots` for `ties@knots`"
    yield f"\n{short}, `drm_h` and `drm_v` for `elect@drm_h` and `elect@drm_v`.\n"
    yield "## Before and after\n"
    rows = [
        (f"`{p.name}`", _SIDES[p.side], p.summary, p.use, p.avoid, p.reference) for p in plugins()
    ]
    yield from _table(("name", "position", "does", "use it", "avoid it", "source"), rows)
    yield "\n## Parameters\n"
    yield from _table(("of", "parameter", "default", "", "values"), _all_params())
    yield "\n## Properties\n"
    yield from _properties()


def _rule(method: gm.Method) -> Row:
    card = method.rule
    weights, rank = _WEIGHTS[method.normalize], _RANKS[method.rank]
    return (f"`{method.name}`", card.summary, weights, rank, card.use, card.avoid, card.reference)


def _all_params() -> Iterator[Row]:
    common = gm.methods()[0].params[-2:]  # scale and rescale
    for method in gm.methods():
        yield from _params(method.name, [p for p in method.params if p not in common])
    for space in spaces():
        yield from _params(f"@{space.name}", space.params)
    for plugin in plugins():
        yield from _params(plugin.name, plugin.params, f"{plugin.name}.")
    yield from _params("every method", common)


def _params(of: str, params: Sequence[Param], prefix: str = "") -> Iterator[Row]:
    for param in params:
        default = "" if param.default is None else f"`{str(param.default).lower()}`"
        yield (f"`{of}`", f"`{prefix}{param.name}`", default, param.doc, param.allowed)


def _properties() -> Iterator[str]:
    """Which of them hold, as the tests measure it: they compare with this both ways."""
    cards = _cards()
    broken: set[str] = set()
    for breaks in cards.values():
        broken |= {name.partition("@")[0] for name in breaks}
    columns = [name for name in PROPERTIES if name in broken]
    yield "All methods have these properties, and a test measures each:\n"
    yield from (f"- {name}: {_doc(name)}" for name in PROPERTIES if name not in broken)
    yield "\nThese hold except where marked, and a test measures that they really fail there:\n"
    yield from (f"- {name}: {_doc(name)}" for name in columns)
    yield ""
    rows = [(name, *_marks(breaks, columns)) for name, breaks in cards.items()]
    yield from _table(("", *columns), rows)
    yield "\nWhy they fail:\n"
    for name, breaks in cards.items():
        yield from (f"- {name}, {column}: {why}" for column, why in breaks.items())


def _cards() -> dict[str, Mapping[str, str]]:
    """What breaks with each rule, space and plug-in."""
    cards: dict[str, Mapping[str, str]] = {f"`{m.name}`": m.breaks for m in gm.methods()}
    cards |= {f"`@{space.name}`": space.breaks for space in spaces()}
    return cards | {f"`{plugin.name}`": plugin.breaks for plugin in plugins()}


def _marks(breaks: Mapping[str, str], columns: Sequence[str]) -> list[str]:
    marks = {True: "no", False: "yes"}
    return [marks[column in breaks] for column in columns]


def _doc(name: str) -> str:
    return (PROPERTIES[name].__doc__ or "").strip()


def catalogue() -> str:
    """Return the list for completion as it should be."""
    kinds: dict[str, dict[str, Any]] = {"rules": {}, "spaces": {}, "pre": {}, "post": {}}
    for method in gm.methods():
        kinds["rules"][method.name] = _completions(method.summary, method.params)
    for space in spaces():
        kinds["spaces"][space.name] = _completions(space.summary, space.params)
    for plugin in plugins():
        entry = _completions(plugin.summary, plugin.params, f"{plugin.name}.")
        kinds[plugin.side][plugin.name] = entry
    return json.dumps(kinds, indent=1) + "\n"


def _completions(summary: str, params: Sequence[Param], prefix: str = "") -> dict[str, Any]:
    """What completion offers for a card: a default to edit, or all choices."""
    named: dict[str, Any] = {}
    for param in params:
        values = list(param.choices) or ["true", "false"]
        if param.type in ("float", "int"):
            values = ["" if param.default is None else str(param.default)]
        named[prefix + param.name] = {"doc": param.doc, "values": values}
    return {"summary": summary, "params": named}


def _table(header: Row, rows: Iterable[Row]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + " --- |" * len(header)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    CATALOGUE.write_text(catalogue(), encoding="utf-8")
