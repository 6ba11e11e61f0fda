"""The tables of an inspection."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from gam_cli._options import GroupBy
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
from gam_cli._strips import FITTING, strips
from gam_cli._tables import other_tensors
from gam_merge import Inspection, Part

_PROBLEMS = 10  # shown


def of_inspection(inspection: Inspection, by: GroupBy) -> Iterator[RenderableType]:
    """Lines on an adapter: its problems, and its figures by layer, type or module."""
    yield Text.assemble((printable(inspection.source), "bold"))
    if inspection.base_model:
        yield f"base model {printable(inspection.base_model)}"
    if inspection.modules:
        scales = ", ".join(number(scale) for scale in inspection.scales)
        yield (
            f"{count(len(inspection.modules), 'module')}, rank {span(inspection.ranks)}, "
            f"scale {scales}, {inspection.dtype}, {inspection.total.parameters:,} parameters"
        )
    yield from other_tensors(inspection.extras)
    for name, value in inspection.settings.items():
        yield f"{printable(name)} = {printable(json_line(value))}"
    yield from map(warning, inspection.notes)
    yield from _defects(inspection)
    if inspection.modules:
        yield ""
        yield _parts(inspection, by)
        yield from strips("norm", inspection.grid("norm", most=FITTING))
        yield from strips("effective rank", inspection.grid("effective_rank", most=FITTING))


def _defects(inspection: Inspection) -> Iterator[RenderableType]:
    """Lines on the parts that a merge would refuse, and on modules that are zero or broken."""
    for problem in inspection.problems[:_PROBLEMS]:
        yield warning(f"a merge would refuse it: {problem}")
    if len(inspection.problems) > _PROBLEMS:
        hidden = len(inspection.problems) - _PROBLEMS
        yield warning(f"and {hidden} more such problems (--json lists all)")
    total = len(inspection.modules)
    for defect, names in (
        ("zero, without effect", inspection.zero),
        ("NaN, Inf or too large to merge", inspection.broken),
    ):
        if names:
            yield warning(f"{len(names)} of {count(total, 'module')}: {defect} (first {names[0]})")


def _parts(inspection: Inspection, by: GroupBy) -> Table:
    """A row per layer, type or module."""
    rows = table(by.value, "modules", "rank", "norm", "eff. rank", "top 1", "top 4", "top 16")
    for label, part in inspection.by(by.value).items():
        rows.add_row(Name(label), *_cells(part))
    rows.add_section()
    rows.add_row("all", *_cells(inspection.total))
    return rows


def _cells(part: Part) -> tuple[str, ...]:
    ranks = [module.rank for module in part.modules]
    shares = (percent(part.energy_share(rank)) for rank in (1, 4, 16))
    return (str(len(ranks)), span(ranks), number(part.norm), f"{part.effective_rank:.1f}", *shares)
