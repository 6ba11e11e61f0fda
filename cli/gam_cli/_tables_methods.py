"""The tables of merge methods."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from gam_merge import Method

_WEIGHTS = {True: "normalised to sum to 1", False: "used as given, 1 each by default"}
_RANKS = {"largest": "the largest source rank", "sum": "the sum of the source ranks"}
_TITLES = {
    "methods": "methods",
    "spaces": "spaces: ties@knots is ties in the space knots",
    "plugins": "before or after a method: pico+tsvm, sum+svc",
}


def of_methods(cards: Mapping[str, Sequence[Any]]) -> Iterator[RenderableType]:
    """A line per method, space and plug-in."""
    for kind, title in _TITLES.items():
        yield Text(title, "bold")
        rows = _columns("", "")
        for card in cards[kind]:
            rows.add_row(f"  {card.name}", card.summary)
        yield rows
        yield ""
    yield "gam-merge methods NAME describes one: when to use it, and its parameters"


def manual(cards: Mapping[str, Sequence[Any]]) -> Iterator[RenderableType]:
    """The list of all, and then the card of each method."""
    yield from of_methods(cards)
    for method in cards["methods"]:
        yield ""
        yield from of_method(method)


def of_method(method: Method) -> Iterator[RenderableType]:
    """The card of one method, and its parameters."""
    yield Text.assemble((method.name, "bold"), f": {method.summary}")
    card = method.to_dict()
    rows = _columns("dim", "")
    for field in ("use", "avoid", "reference"):
        rows.add_row(field, card[field])
    rows.add_row("weights", _WEIGHTS[method.normalize])
    rows.add_row("rank", _RANKS[method.rank])
    for name, reason in method.breaks.items():
        rows.add_row(f"breaks {name}", reason)
    yield rows
    yield ""
    yield "parameters (-p NAME=VALUE)"
    params = _columns("bold", "", "")
    for param in method.params:
        default = "" if param.default is None else str(param.default).lower()
        params.add_row(f"  {param.name}", default, f"{param.doc} ({param.allowed})")
    yield params


def _columns(*styles: str) -> Table:
    """Columns without lines, of which the last alone gives way."""
    columns = Table.grid(padding=(0, 2, 0, 0))
    for style in styles[:-1]:
        columns.add_column(no_wrap=True, style=style)
    columns.add_column(style=styles[-1])
    return columns
