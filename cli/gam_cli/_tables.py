"""The tables of a merge, before and after."""

from collections.abc import Iterator, Mapping, Sequence
from os.path import commonprefix

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from gam_cli._present import (
    Name,
    count,
    duration,
    number,
    numbered,
    percent,
    printable,
    size,
    span,
    table,
    warning,
    wrote,
)
from gam_merge import Estimate, MergePlan, MergeReport, MergeResult, ModuleReport

_BUCKETS = 20  # shown unless all are asked for
_MODULE_COLUMNS = ("out x in", "rank", "of mean", "kept", "survives", "cross-talk")


def of_plan(
    planned: MergePlan, *, verbose: bool, estimate: Estimate | None = None
) -> Iterator[RenderableType]:
    """Lines on what a merge would read, compute and write."""
    adapters, modules = len(planned.adapters), len(planned.modules)
    yield _headline(planned.method, adapters, modules, planned.rank, planned.dtype)
    if planned.pending is not None:
        yield planned.pending
    yield ""
    yield _planned_adapters(planned)
    yield ""
    shown = planned.buckets if verbose else planned.buckets[:_BUCKETS]
    rows = table("bucket (first module)", "modules", "out", "in", "adapters", "rank")
    for bucket in shown:
        sizes = (len(bucket.names), *bucket.shape, len(bucket.adapters))
        rows.add_row(Name(bucket.names[0]), *map(str, sizes), span(bucket.ranks))
    yield rows
    if len(shown) < len(planned.buckets):
        yield f"and {len(planned.buckets) - len(shown)} more (-v lists all buckets)"
    yield ""
    if planned.base_model:
        yield f"base model {printable(planned.base_model)}"
    yield from other_tensors(planned.extras)
    yield f"to write: {size(planned.nbytes)} of tensors"
    if estimate is not None:
        cost = f"{duration(estimate.seconds)} and {size(estimate.nbytes)} of memory"
        yield f"estimated {cost}, from a trial run on random data"
    yield from map(warning, planned.notes)


def of_merge(
    result: MergeResult, seconds: float, *, verbose: bool, explain: bool = False
) -> Iterator[RenderableType]:
    """Lines on a merge: its sources, the result, and where it is."""
    report = result.report
    total = len(report.modules)
    if report.choice is not None:
        yield printable(str(report.choice))
    yield _headline(report.method, len(report.sources), total, report.rank, report.dtype)
    yield ""
    if verbose or explain:
        yield _modules(report, report.modules if verbose else report.worst())
        yield ""
    yield _adapters(report)
    yield ""
    yield (
        f"merged norm is {percent(report.norm_ratio)} of the adapters' mean; "
        f"rank {report.rank} keeps {percent(report.energy_kept)} of the energy"
    )
    if len(report.sources) > 1:
        shares = span([round(100 * share) for share in report.cross_talk])
        yield f"cross-talk: where an adapter acts, {shares} % of the result is not its own"
    yield from other_tensors(report.extras)
    yield from map(warning, report.notes)
    for text, names in report.warnings.items():
        yield warning(f"{text} ({len(names)} of {count(total, 'module')}, first {names[0]})")
    if result.path is not None:
        yield wrote(result.path, seconds)


def other_tensors(counts: Mapping[str, int]) -> Iterator[str]:
    """How many tensors of each kind there are besides the factors."""
    if counts:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items()))
        yield f"other tensors: {kinds}"


def _headline(method: str, adapters: int, modules: int, rank: int, dtype: str) -> Text:
    sizes = f"{count(adapters, 'adapter')}, {count(modules, 'module')} -> rank {rank}, {dtype}"
    return Text.assemble((f"{method}: ", "bold"), sizes)


def _planned_adapters(planned: MergePlan) -> Table:
    """A row per adapter."""
    rows = table("adapter", "weight", "modules", "rank", "dtype")
    for i, (adapter, weight) in enumerate(zip(planned.adapters, planned.weights, strict=True)):
        ranks = [module.rank for module in adapter.modules.values()]
        dtype = str(adapter.dtype).removeprefix("torch.")
        sizes = (str(len(ranks)), span(ranks), dtype)
        rows.add_row(numbered(i, adapter.source), number(weight), *sizes)
    if planned.shared < len(planned.modules):
        rows.add_section()
        rows.add_row("in common", "", str(planned.shared), "", "")
    return rows


def _adapters(report: MergeReport) -> Table:
    """A row per adapter, and one for the merge of them."""
    rows = table("adapter", "weight", "modules", "rank", "norm", "survives")
    for i, source in enumerate(report.sources):
        ranks = [module.ranks[i] for module in report.modules if module.ranks[i]]
        rows.add_row(
            numbered(i, source),
            number(report.weights[i]),
            str(len(ranks)),
            span(ranks),
            number(report.norms[i]),
            percent(report.survival[i]),
        )
    rows.add_section()
    if report.shared < len(report.modules):
        rows.add_row("in common", "", str(report.shared), "", "", "")
    modules, rank, norm = str(len(report.modules)), str(report.rank), number(report.merged_norm)
    rows.add_row("merged", "", modules, rank, norm, "")
    return rows


def _modules(report: MergeReport, modules: Sequence[ModuleReport]) -> Table:
    """A row per module; what all names begin with is in the header."""
    prefix = commonprefix([module.name for module in report.modules])  # noqa: RUF071 - cut at a dot
    stem = prefix.rpartition(".")[0]
    rows = table(f"module of {printable(stem)}" if stem else "module", *_MODULE_COLUMNS)
    for module in modules:
        rows.add_row(
            Name(module.name.removeprefix(f"{stem}.")),
            "{} x {}".format(*module.shape),
            str(module.merged_rank),
            percent(module.norm_ratio),
            percent(module.energy_kept),
            _range(module, module.survival),
            _range(module, module.cross_talk),
        )
    return rows


def _range(module: ModuleReport, shares: Sequence[float]) -> str:
    """In percent, from the least to the largest of the adapters that have the module."""
    present = [round(100 * share) for share, norm in zip(shares, module.norms, strict=True) if norm]
    return f"{span(present)} %" if present else "-"
