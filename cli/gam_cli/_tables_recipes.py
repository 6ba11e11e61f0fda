"""The tables of searches, batches and verifications."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from gam_cli._present import Name, count, number, percent, printable, table
from gam_merge import BatchItem, SearchResult, Verification

_BEST = 5  # trials that are shown


def of_search(result: SearchResult, goal: str) -> Iterator[RenderableType]:
    """The best trials, and the first, which is the recipe as it was."""
    scored = [trial for trial in result.trials if trial.score is not None]
    ranked = sorted(scored, key=lambda trial: (-1 if goal == "max" else 1) * (trial.score or 0.0))
    rows = table("settings", "trial", "score")
    for trial in ranked[:_BEST]:
        rows.add_row(Name(" ".join(trial.overrides)), str(trial.number), number(trial.score or 0.0))
    yield rows
    yield ""
    best, first = (number(trial.score or 0.0) for trial in (result.best, result.trials[0]))
    failed = len(result.trials) - len(scored)
    yield f"best {best}, the recipe itself {first}, in {count(len(scored), 'trial')}"
    if failed:
        yield f"{count(failed, 'trial')} failed; the journal says why"
    yield f"wrote {printable(str(result.recipe))}" + (
        f" and {printable(str(result.plot))}" if result.plot else ""
    )


def of_batch(items: Sequence[BatchItem], out: str) -> Iterator[RenderableType]:
    """A row a recipe, then what went wrong."""
    rows = table("recipe", "method", "adapters", "modules", "rank", "norm", "seconds")
    for item in items:
        if item.report is None:
            rows.add_row(Name(str(item.recipe)), "failed", "", "", "", "", f"{item.seconds:.1f}")
            continue
        report = item.report
        sizes = (
            str(len(report.sources)),
            str(len(report.modules)),
            str(report.rank),
            percent(report.norm_ratio),
        )
        rows.add_row(
            Name(str(item.recipe)), printable(report.method), *sizes, f"{item.seconds:.1f}"
        )
    yield rows
    yield ""
    for item in items:
        if item.error is not None:
            yield Text.assemble(("error: ", "bold red"), printable(item.error))
    done = sum(item.error is None for item in items)
    yield f"{done} of {count(len(items), 'merge')} written to {printable(out)}"


def of_verification(found: Verification) -> Iterator[RenderableType]:
    """A row a check, then what is to be said of those that do not hold."""
    failed = f"does not hold, in {len(found.failed)} of {count(len(found.checks), 'thing')}"
    verdict = "holds" if found.holds else failed
    yield Text.assemble(("verify: ", "bold"), f"{printable(str(found.path))} {verdict}")
    yield ""
    rows = table("recorded", "now")
    for check in found.checks:
        rows.add_row(Name(check.name), check.state)
    yield rows
    if any(check.note for check in found.checks):
        yield ""
    for check in found.checks:
        if check.note:
            yield f"{printable(check.name)}: {printable(check.note)}"
