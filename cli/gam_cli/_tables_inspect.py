"""The tables of an inspection."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from gam_cli._present import (
    Name,
    count,
    json_line,
    number,
    percent,
    printable,
    span,
    table,
    warning,
)
from gam_cli._strips import strips
from gam_merge import Inspection, Part
from gam_merge._common.names import By

_TOLD = 10  # problems that are told one by one


def of_inspection(found: Inspection, by: By) -> Iterator[RenderableType]:
    """What the adapter is, what is wrong with it, and its figures by layer, type or module."""
    yield Text.assemble((printable(found.source), "bold"))
    if found.base_model:
        yield f"base model {printable(found.base_model)}"
    if found.modules:
        scales = ", ".join(number(scale) for scale in found.scales)
        yield (
            f"{count(len(found.modules), 'module')}, rank {span(found.ranks)}, scale {scales}, {found.dtype}, "
            f"{found.total.parameters:,} parameters"
        )
    for kind, number_of in found.extras.items():
        yield f"{count(number_of, 'tensor')} of {kind}"
    for name, value in found.settings.items():
        yield f"{printable(name)} = {printable(json_line(value))}"
    yield from _damage(found)
    if found.modules:
        yield ""
        yield _parts(found, by)
        yield from _figures(found)


def _damage(found: Inspection) -> Iterator[RenderableType]:
    for problem in found.problems[:_TOLD]:
        yield warning(f"a merge refuses it: {problem}")
    if len(found.problems) > _TOLD:
        yield warning(f"and {len(found.problems) - _TOLD} more such problems (--json has them all)")
    for names, what in (
        (found.zero, "zero, and change nothing"),
        (found.broken, "NaN, Inf or too large to merge"),
    ):
        if names:
            yield warning(
                f"{count(len(names), 'module')} of {len(found.modules)} {what} (first {names[0]})"
            )


def _parts(found: Inspection, by: By) -> Table:
    rows = table(by, "modules", "rank", "norm", "eff. rank", "top 1", "top 4", "top 16")
    for label, part in found.by(by).items():
        rows.add_row(Name(label), *_cells(part))
    rows.add_section()
    rows.add_row("all", *_cells(found.total))
    return rows


def _cells(part: Part) -> tuple[str, ...]:
    ranks = [module.rank for module in part.modules]
    shares = (percent(part.energy_share(rank)) for rank in (1, 4, 16))
    return (str(len(ranks)), span(ranks), number(part.norm), f"{part.effective_rank:.1f}", *shares)


def _figures(found: Inspection) -> Iterator[RenderableType]:
    for title, figure in (("norm", "norm"), ("effective rank", "effective_rank")):
        strip = list(strips(title, found.grid(figure)))
        yield from ["", *strip] if strip else []
