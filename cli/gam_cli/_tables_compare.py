"""The tables of a comparison."""

from collections.abc import Iterator
from itertools import combinations
from math import isnan
from typing import SupportsFloat

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from gam_cli._present import Name, count, json_line, number, numbered, span, table, warning
from gam_cli._strips import strips
from gam_merge import Comparison, Measures
from gam_merge._common.names import By

_OVERLAPS = ("overlap U", "x chance", "overlap V", "x chance", "cosine")
_PAIRS = 21  # shown: all of seven adapters


def of_comparison(found: Comparison, by: By) -> Iterator[RenderableType]:
    """The verdict and the advice first, then the figures that they rest on."""
    total = len(found.modules)
    yield Text.assemble(
        (f"{count(len(found.sources), 'adapter')}, {count(total, 'module')}", "bold")
    )
    yield from _words(found)
    yield ""
    yield _adapters(found)
    yield ""
    yield from _pairs(found)
    yield ""
    yield _parts(found, by)
    for title, figure in (
        ("overlap U x chance", "times_chance_u"),
        ("overlap V x chance", "times_chance_v"),
    ):
        strip = list(strips(title, found.grid(figure)))
        yield from ["", *strip] if strip else []
    for text, names in found.notes.items():
        yield warning(f"gam: {text} ({len(names)} of {count(total, 'module')}, first {names[0]})")


def _words(found: Comparison) -> Iterator[RenderableType]:
    advice = found.recommendation
    params = "".join(f" -p {name}={json_line(value)}" for name, value in advice.params.items())
    grid = Table.grid(padding=(0, 2))
    grid.add_row("verdict", found.verdict)
    grid.add_row(
        "advice", Text.assemble((f"--method {advice.method}{params}", "bold"), f" ({advice.kind})")
    )
    grid.add_row("why", f"{advice.reason} ({advice.evidence})")
    yield grid


def _adapters(found: Comparison) -> Table:
    rows = table("adapter", "weight", "modules", "rank", "norm")
    for i, source in enumerate(found.sources):
        ranks = [module.ranks[i] for module in found.modules if module.ranks[i]]
        weight, norm = number(found.weights[i]), number(found.total.norms[i])
        rows.add_row(numbered(i, source), weight, str(len(ranks)), span(ranks), norm)
    rows.add_section()
    rows.add_row("mean", "", "", "", number(float(found.total.mean_norm)))
    rows.add_row("gam", "", "", "", number(float(found.total.gam_norm)))
    return rows


def _pairs(found: Comparison) -> Iterator[RenderableType]:
    rows = table("pair", *_OVERLAPS, "common", "signs")
    overlaps = found.total.overlaps_u
    pairs = sorted(combinations(range(len(found.sources)), 2), key=lambda pair: -overlaps[pair])
    for i, j in sorted(pairs[:_PAIRS]):
        pair = found.total.pair(i, j)
        rows.add_row(
            f"{i}, {j}", *_overlaps(pair), _known(pair.common_energy), _known(pair.sign_agreement)
        )
    yield rows
    if len(pairs) > _PAIRS:
        yield f"the {_PAIRS} of {len(pairs)} pairs that overlap most (--json has them all)"


def _parts(found: Comparison, by: By) -> Table:
    rows = table(by, *_OVERLAPS, "gam/mean")
    for label, part in found.by(by).items():
        rows.add_row(Name(label), *_overlaps(part), _known(part.gam_to_mean))
    rows.add_section()
    rows.add_row("all", *_overlaps(found.total), _known(found.total.gam_to_mean))
    return rows


def _overlaps(measures: Measures) -> tuple[str, ...]:
    return (
        _known(measures.overlap_u),
        _times(measures.times_chance_u),
        _known(measures.overlap_v),
        _times(measures.times_chance_v),
        _known(measures.cosine),
    )


def _known(value: SupportsFloat) -> str:
    return "-" if isnan(value) else f"{float(value):.3f}"


def _times(value: SupportsFloat) -> str:
    return "-" if isnan(value) else f"{float(value):.1f}"
