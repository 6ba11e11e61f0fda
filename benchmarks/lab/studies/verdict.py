"""What helps in a study, by the rules that design.py fixed before the rows."""

from statistics import fmean

from benchmarks.lab.markdown import NONE, judged
from benchmarks.lab.report import nll
from benchmarks.lab.statistics import Difference, paired
from benchmarks.lab.studies.design import GAM, METHODS, Study
from benchmarks.lab.studies.results import Results, values

CONSENSUS = tuple(
    label for label in METHODS if label.startswith("consensus(") and "(0)" not in label
)


def verdict(results: Results, study: Study, size: int) -> str:
    """Return what helps, and the figures behind it."""
    if study.regimen:
        return copies_help(results, study, size)
    return gam_helps(results, study, size)


def copies_help(results: Results, study: Study, size: int) -> str:
    """Return whether the deltas of the student's damaged copies help, alone or merged."""
    seeds = results.seeds(study, "own", size)
    student = values(seeds, results.pick(study, "base"), nll)
    singles = results.singles(study)
    nlls = {"one adapter": [fmean(nll(rows[seed]) for rows in singles) for seed in seeds]}
    for label in study.methods:
        nlls[label] = values(seeds, results.pick(study, label, "own", size), nll)
    against = paired({label: (figures, student) for label, figures in nlls.items()})
    winners = [label for label in nlls if _less(against[label])]
    answer = f"yes, {', '.join(winners)}" if winners else "open"
    parts = [f"{label}: {judged(difference, 3)}" for label, difference in against.items()]
    return f"Deltas of damaged copies help: {answer}; less the student: {'; '.join(parts)}"


def gam_helps(results: Results, study: Study, size: int) -> str:
    """Return whether a reading of GAM has less NLL than its rivals, and the mean than one delta."""
    seeds = results.seeds(study, "norm", size)
    if len(seeds) < 2:
        return NONE
    nlls: dict[str, list[float]] = {}
    for label in study.methods:
        nlls[label] = values(seeds, results.pick(study, label, "norm", size), nll)
    rivals = [label for label in CONSENSUS if label in nlls]
    best = min(rivals, key=lambda label: fmean(nlls[label]))
    readings = [label for label in GAM if label in nlls]
    against_mean = paired({label: (nlls[label], nlls["mean"]) for label in readings})
    against_best = paired({label: (nlls[label], nlls[best]) for label in readings})
    mean_nll = values(seeds, results.pick(study, "mean", "own", size), nll)
    single = results.best_single(study, seeds, size)
    gains = fmean(mean_nll) < fmean(single)
    less = {label: _less(against_mean[label]) and _less(against_best[label]) for label in readings}
    winners = [label for label in readings if less[label]]
    premise = "below" if gains else "not below"
    about = f"the mean at its own scale is {premise} the best single adapter"
    about += f" ({fmean(mean_nll):.3f}, {fmean(single):.3f}); the best consensus is {best}"
    answer = f"yes, {', '.join(winners)}" if winners and gains else "no"
    parts = [f"{label}: {judged(against_mean[label])}" for label in readings]
    return f"GAM helps: {answer}; {about}; less the mean at equal norm: {'; '.join(parts)}"


def _less(difference: Difference) -> bool:
    return difference.interval.mean < 0 and difference.p < 0.05
