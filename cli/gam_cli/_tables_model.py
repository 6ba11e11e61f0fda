"""The tables of verbs that read or write whole models."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from gam_cli._present import Name, count, number, percent, printable, table, wrote
from gam_merge import FuseReport


def of_fuse(report: FuseReport, out: str, seconds: float, *, verbose: bool) -> Iterator[RenderableType]:
    """What was added to which weights."""
    yield Text.assemble(("fuse: ", "bold"), f"{count(len(report.modules), 'module')} of {printable(report.base)}")
    yield ""
    if verbose:
        rows = table("module", "out x in", "delta", "of its weight")
        for module in report.modules:
            share = module.delta_norm / module.weight_norm if module.weight_norm else 0.0
            rows.add_row(Name(module.name), "{} x {}".format(*module.shape), number(module.delta_norm), percent(share))
        yield rows
        yield ""
    yield f"the delta's norm is {percent(report.relative_norm)} of that of the weights it was added to"
    yield wrote(Path(out), seconds)
