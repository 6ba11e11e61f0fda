"""The tables of a comparison."""

from collections.abc import Iterator
from itertools import combinations
from math import isnan
from typing import SupportsFloat

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from gam_cli._options import GroupBy
from gam_cli._present import Name, count, json_line, number, numbered, span, table, warning
from gam_cli._strips import FITTING, strips
from gam_merge import Comparison, Measures

_OVERLAPS = ("overlap U", "x chance", "overlap V", "x chance", "cosine")
_PAIRS = 21  # shown: all pairs of seven adapters


def of_comparison(comparison: Comparison, by: GroupBy) -> Iterator[RenderableType]:
    """The verdict and the advice first, then the figures that they rest on."""
    total = count(len(comparison.modules), "module")
    yield Text.assemble((f"{count(len(comparison.sources), 'adapter')}, {total}", "bold"))
    yield _advice(comparison)
    yield ""
    yield _adapters(comparison)
    yield ""
    yield from _pairs(comparison)
    yield ""
    yield _parts(comparison, by)
    yield from strips("overlap U x chance", comparison.grid("times_chance_u", most=FITTING))
    yield from strips("overlap V x chance", comparison.grid("times_chance_v", most=FITTING))
    yield from map(warning, comparison.merge_notes)
    for text, names in comparison.notes.items():
        yield warning(f"gam: {text} ({len(names)} of {total}, first {names[0]})")


def _advice(comparison: Comparison) -> Table:
    advice = comparison.recommendation
    flags = f"--method {advice.method}"
    for name, value in advice.params.items():
        flags += f" -p {name}={json_line(value)}"
    rows = Table.grid(padding=(0, 2))
    rows.add_row("verdict", comparison.verdict)
    rows.add_row("advice", Text.assemble((flags, "bold"), " (what auto, the default, takes)"))
    rows.add_row("why", f"{advice.reason} ({advice.evidence})")
    return rows


def _adapters(comparison: Comparison) -> Table:
    """A row per adapter, and one for each of the two merges."""
    total = comparison.total
    rows = table("adapter", "weight", "modules", "rank", "norm")
    for i, source in enumerate(comparison.sources):
        ranks = [module.ranks[i] for module in comparison.modules if module.ranks[i]]
        weight, norm = number(comparison.weights[i]), number(total.norms[i])
        rows.add_row(numbered(i, source), weight, str(len(ranks)), span(ranks), norm)
    rows.add_section()
    if comparison.shared < len(comparison.modules):
        rows.add_row("in common", "", str(comparison.shared), "", "")
    rows.add_row("mean", "", "", "", number(float(total.mean_norm)))
    rows.add_row(f"gam, anchor {comparison.anchor}", "", "", "", number(float(total.gam_norm)))
    return rows


def _pairs(comparison: Comparison) -> Iterator[RenderableType]:
    """A row per pair, of many those that overlap most."""
    overlaps = comparison.total.overlaps_u
    pairs = sorted(
        combinations(range(len(comparison.sources)), 2), key=lambda pair: -overlaps[pair]
    )
    rows = table("pair", *_OVERLAPS, "common", "signs")
    for i, j in sorted(pairs[:_PAIRS]):
        pair = comparison.total.pair(i, j)
        shares = (_share(pair.common_energy), _share(pair.sign_agreement))
        rows.add_row(f"{i}, {j}", *_overlaps(pair), *shares)
    yield rows
    if len(pairs) > _PAIRS:
        yield f"the {_PAIRS} pairs of {len(pairs)} that overlap most (--json lists all)"


def _parts(comparison: Comparison, by: GroupBy) -> Table:
    """A row per layer, type or module."""
    rows = table(by.value, *_OVERLAPS, "gam/mean")
    for label, part in comparison.by(by.value).items():
        rows.add_row(Name(label), *_overlaps(part), _share(part.gam_to_mean))
    rows.add_section()
    rows.add_row("all", *_overlaps(comparison.total), _share(comparison.total.gam_to_mean))
    return rows


def _overlaps(measures: Measures) -> tuple[str, ...]:
    """The cells of ``_OVERLAPS``."""
    return (
        _share(measures.overlap_u),
        _times(measures.times_chance_u),
        _share(measures.overlap_v),
        _times(measures.times_chance_v),
        _share(measures.cosine),
    )


def _share(value: SupportsFloat) -> str:
    return "-" if isnan(value) else f"{float(value):.3f}"


def _times(value: SupportsFloat) -> str:
    return "-" if isnan(value) else f"{float(value):.1f}"
