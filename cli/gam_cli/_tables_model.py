"""The tables of verbs that read or write whole models."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from gam_cli._present import Name, count, number, percent, printable, table, warning, wrote
from gam_merge import ExtractReport, FuseReport


def of_fuse(
    report: FuseReport, out: str, seconds: float, *, verbose: bool
) -> Iterator[RenderableType]:
    """What was added to which weights."""
    yield Text.assemble(
        ("fuse: ", "bold"), f"{count(len(report.modules), 'module')} of {printable(report.base)}"
    )
    yield ""
    if verbose:
        rows = table("module", "out x in", "delta", "of its weight")
        for module in report.modules:
            share = module.delta_norm / module.weight_norm if module.weight_norm else 0.0
            rows.add_row(
                Name(module.name),
                "{} x {}".format(*module.shape),
                number(module.delta_norm),
                percent(share),
            )
        yield rows
        yield ""
    yield f"the delta's norm is {percent(report.relative_norm)} of that of the weights it was added to"
    yield from map(warning, report.notes)
    yield wrote(Path(out), seconds)


def of_extract(
    report: ExtractReport, out: str, seconds: float, *, verbose: bool
) -> Iterator[RenderableType]:
    """How much of which change is in the adapter."""
    what = (
        f"{count(len(report.modules), 'module')} of {printable(report.tuned)} -> rank {report.rank}"
    )
    yield Text.assemble(("extract: ", "bold"), what)
    yield ""
    if verbose:
        rows = table("module", "out x in", "rank", "norm", "residual")
        for module in report.modules:
            shape = "{} x {}".format(*module.shape)
            rows.add_row(
                Name(module.name),
                shape,
                str(module.rank),
                number(module.norm),
                percent(module.residual),
            )
        yield rows
        yield ""
    yield f"residual {percent(report.residual)} of the change of these modules"
    yield f"the adapter keeps {percent(report.energy_kept)} of the energy of all changes"
    if report.left_out:
        first = next(iter(report.left_out))
        yield warning(
            f"{count(len(report.left_out), 'other tensor')} changed and stayed out (first {first})"
        )
    yield wrote(Path(out), seconds)
