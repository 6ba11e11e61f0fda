"""The tables of verbs that read or write whole models."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from gam_cli._present import Name, count, number, percent, printable, table, warning, wrote
from gam_merge import ExtractReport, FuseReport


def of_fuse(
    report: FuseReport, out: str, seconds: float, *, verbose: bool
) -> Iterator[RenderableType]:
    """Lines on the deltas that were added, by module."""
    modules = count(len(report.modules), "module")
    yield Text.assemble(("fuse: ", "bold"), f"{modules} of {printable(report.base)}")
    yield ""
    if verbose:
        yield _fused(report)
        yield ""
    yield f"the delta's norm is {percent(report.relative_norm)} of that of the weights it changes"
    yield f"{percent(report.survival)} of the delta survives the rounding to the dtype of the base"
    yield from map(warning, report.notes)
    yield wrote(Path(out), seconds)


def _fused(report: FuseReport) -> Table:
    """A row per module."""
    rows = table("module", "out x in", "delta", "of weight", "survives")
    for module in report.modules:
        share = module.delta_norm / module.weight_norm if module.weight_norm else 0.0
        rows.add_row(
            Name(module.name),
            "{} x {}".format(*module.shape),
            number(module.delta_norm),
            percent(share),
            percent(module.survival),
        )
    return rows


def of_extract(
    report: ExtractReport, out: str, seconds: float, *, verbose: bool
) -> Iterator[RenderableType]:
    """How much of which change is in the adapter."""
    modules = count(len(report.modules), "module")
    what = f"{modules} of {printable(report.tuned)} -> rank {report.rank}"
    yield Text.assemble(("extract: ", "bold"), what)
    yield ""
    if verbose:
        yield _extracted(report)
        yield ""
    yield f"residual: {percent(report.residual)} of the change of these modules"
    yield f"the adapter keeps {percent(report.energy_kept)} of the energy of all changes"
    if report.left_out:
        changed = count(len(report.left_out), "other tensor")
        first = next(iter(report.left_out))
        yield warning(f"left out: {changed} that changed (first {first})")
    yield wrote(Path(out), seconds)


def _extracted(report: ExtractReport) -> Table:
    """A row per module."""
    rows = table("module", "out x in", "rank", "norm", "residual")
    for module in report.modules:
        rows.add_row(
            Name(module.name),
            "{} x {}".format(*module.shape),
            str(module.rank),
            number(module.norm),
            percent(module.residual),
        )
    return rows
