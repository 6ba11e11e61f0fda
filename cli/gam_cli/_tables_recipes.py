"""The tables of searches, batches and verifications."""

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from gam_cli._present import Name, count, number, percent, printable, table
from gam_merge import BatchItem, SearchResult, Verification

_BEST = 5  # trials that are shown


def of_search(result: SearchResult, *, minimize: bool) -> Iterator[RenderableType]:
    """The best trials, and the score of the first, which is the recipe itself."""
    scores = {trial: trial.score for trial in result.trials if trial.score is not None}
    ranked = sorted(scores, key=scores.__getitem__, reverse=not minimize)
    rows = table("settings", "trial", "score")
    for trial in ranked[:_BEST]:
        rows.add_row(Name(" ".join(trial.overrides)), str(trial.number), number(scores[trial]))
    yield rows
    yield ""
    best, first = number(scores[result.best]), number(scores[result.trials[0]])
    yield f"best score {best}, the recipe itself {first}, in {count(len(scores), 'trial')}"
    failed = len(result.trials) - len(scores)
    if failed:
        yield f"{count(failed, 'trial')} failed; the journal says why"
    written = [result.recipe, *([result.plot] if result.plot else [])]
    yield "wrote " + " and ".join(printable(str(path)) for path in written)


def of_batch(items: Sequence[BatchItem], out: str) -> Iterator[RenderableType]:
    """A row per recipe, then what went wrong."""
    rows = table("recipe", "method", "adapters", "modules", "rank", "of mean", "seconds")
    for item in items:
        cells = ("failed", "", "", "", "")
        if item.report is not None:
            cells = (
                printable(item.report.method),
                str(len(item.report.sources)),
                str(len(item.report.modules)),
                str(item.report.rank),
                percent(item.report.norm_ratio),
            )
        rows.add_row(Name(str(item.recipe)), *cells, f"{item.seconds:.1f}")
    yield rows
    yield ""
    for item in items:
        if item.error is not None:
            yield Text.assemble(("error: ", "bold red"), printable(item.error))
    done = sum(item.error is None for item in items)
    yield f"{done} of {count(len(items), 'merge')} written to {printable(out)}"


def of_verification(verification: Verification) -> Iterator[RenderableType]:
    """A row per check, then the notes."""
    verdict = "holds"
    if not verification.holds:
        total = count(len(verification.checks), "check")
        verdict = f"does not hold: {len(verification.failed)} of {total} failed"
    yield Text.assemble(("verify: ", "bold"), f"{printable(str(verification.path))} {verdict}")
    yield ""
    rows = table("check", "state")
    for check in verification.checks:
        rows.add_row(Name(check.name), check.state)
    yield rows
    notes = [check for check in verification.checks if check.note]
    if notes:
        yield ""
    for check in notes:
        yield f"{printable(check.name)}: {printable(check.note)}"
