"""The tables of a merge, before and after."""

from collections import Counter
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
from gam_merge._common.tensors import dtype_name

_BUCKETS = 20  # shown unless all are asked for
_MODULE_COLUMNS = ("out x in", "rank", "of mean", "kept", "survives", "cross-talk")


def of_plan(
    planned: MergePlan, *, verbose: bool, expected: Estimate | None = None
) -> Iterator[RenderableType]:
    """What the merge would read, compute and write."""
    plan, job = planned.lineup, planned.job
    dtype = dtype_name(plan.dtype)
    yield _headline(job.method.name, len(plan.adapters), len(plan.names), plan.rank, dtype)
    yield ""
    rows = table("adapter", "weight", "modules", "rank", "dtype")
    for i, (adapter, weight) in enumerate(
        zip(plan.adapters, job.mean_weights(plan.names), strict=True)
    ):
        ranks = [module.rank for module in adapter.modules.values()]
        held = dtype_name(adapter.dtype)
        rows.add_row(
            numbered(i, adapter.source), number(weight), str(len(ranks)), span(ranks), held
        )
    yield rows
    yield ""
    buckets = table("bucket, by its first module", "modules", "out", "in", "adapters", "rank")
    shown = plan.buckets if verbose else plan.buckets[:_BUCKETS]
    for bucket in shown:
        sizes = (len(bucket.names), *bucket.shape, len(bucket.adapters))
        buckets.add_row(Name(bucket.names[0]), *map(str, sizes), span(bucket.ranks))
    yield buckets
    if hidden := len(plan.buckets) - len(shown):
        yield f"and {count(hidden, 'bucket')} more (-v shows all)"
    yield ""
    if plan.base_model:
        yield f"base model {printable(plan.base_model)}"
    yield from _extras(Counter(extra.kind for extra in plan.written_extras))
    yield f"to write: {size(plan.nbytes)} of tensors"
    if expected is not None:
        took = f"{duration(expected.seconds)} and {size(expected.nbytes)} of memory"
        yield f"about {took}, by a rehearsal on made-up numbers"
    yield from map(warning, planned.notes)


def of_merge(
    result: MergeResult, seconds: float, *, verbose: bool, explain: bool
) -> Iterator[RenderableType]:
    """What the merge read, what became of it, and where it is."""
    report = result.report
    total = len(report.modules)
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
        alien = span([round(100 * share) for share in report.cross_talk])
        yield f"where an adapter acts, {alien} % of the result is not its own (cross-talk)"
    yield from _extras(report.extras)
    yield from map(warning, report.notes)
    for text, names in report.warnings.items():
        yield warning(f"{text} ({len(names)} of {count(total, 'module')}, first {names[0]})")
    if result.path is not None:
        yield wrote(result.path, seconds)


def _extras(counts: Mapping[str, int]) -> Iterator[str]:
    """How many tensors there are that are no factors, of each kind."""
    if counts:
        yield f"beside factors: {', '.join(f'{number} {kind}' for kind, number in sorted(counts.items()))}"


def _headline(method: str, adapters: int, modules: int, rank: int, dtype: str) -> Text:
    what = f"{count(adapters, 'adapter')}, {count(modules, 'module')} -> rank {rank}, {dtype}"
    return Text.assemble((f"{method}: ", "bold"), what)


def _adapters(report: MergeReport) -> Table:
    """A row an adapter, and one for what they became."""
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
    rows.add_row(
        "merged", "", str(len(report.modules)), str(report.rank), number(report.merged_norm), ""
    )
    return rows


def _modules(report: MergeReport, modules: Sequence[ModuleReport]) -> Table:
    """A row a module. What all names begin with is said once."""
    stem = commonprefix([module.name for module in report.modules]).rpartition(".")[0]  # noqa: RUF071 - cut at a dot
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
    """In percent, from the least to the most of the adapters that have the module."""
    present = [round(100 * share) for share, norm in zip(shares, module.norms, strict=True) if norm]
    return f"{span(present)} %" if present else "-"
