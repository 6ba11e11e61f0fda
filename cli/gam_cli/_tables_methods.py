"""What the command line says of methods."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from gam_merge import Method

_WEIGHTS = {True: "shares of one", False: "factors, one each by default"}
_RANKS = {"largest": "the largest source rank", "sum": "the sum of the source ranks"}


_KINDS = {
    "methods": "methods",
    "spaces": "spaces: ties@knots is ties in the space knots",
    "plugins": "before and after: pico+tsvm, sum+svc",
}


def of_methods(data: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[RenderableType]:
    """A line a method, a space, a plug-in."""
    for kind, title in _KINDS.items():
        yield Text(title, "bold")
        rows = _grid("", "")
        for card in data[kind]:
            rows.add_row(f"  {card['name']}", card["summary"])
        yield rows
        yield ""
    yield "gam-merge methods NAME tells when to use one, and what may be set"


def of_method(method: Method) -> Iterator[RenderableType]:
    """All about one."""
    yield Text.assemble((method.name, "bold"), f": {method.summary}")
    about = _grid("dim", "")
    card = method.to_dict()
    for field in ("use", "avoid", "reference"):
        about.add_row(field, card[field])
    about.add_row("weights", _WEIGHTS[method.normalize])
    about.add_row("rank", _RANKS[method.rank])
    for name, why in method.breaks.items():
        about.add_row(f"no {name}", why)
    yield about
    yield ""
    yield "parameters (-p NAME=VALUE)"
    params = _grid("bold", "", "")
    for param in method.params:
        default = "" if param.default is None else str(param.default).lower()
        params.add_row(f"  {param.name}", default, f"{param.doc} ({param.allowed})")
    yield params


def _grid(*styles: str) -> Table:
    """Columns without lines; the last one alone gives way."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for style in styles[:-1]:
        grid.add_column(no_wrap=True, style=style)
    grid.add_column(style=styles[-1])
    return grid
