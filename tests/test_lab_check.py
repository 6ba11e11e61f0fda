"""The second reading of the lab: every claim of its verdict holds, and fails if row or text change."""

import re
from copy import deepcopy
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from benchmarks.lab import check, check_studies

ROWS: Any = check.rows_of(check.HOME)
STUDIED: Any = check.rows_of(check.HOME / "studies")
STUDIES = (check_studies.PAPER, check_studies.CROWD)
CHOSEN = "orpo, lr 0.0002, r 8, beta 0.1, 24 steps, filtered"
PAGE = (check.HOME / "README.md").read_text("utf-8")


def failed(rows: list[dict[str, Any]], page: str) -> set[str]:
    """Where a claim does not hold: the number of its sentence, or table."""
    return {reading.where for reading in check.readings(rows, STUDIED, page) if not reading.holds}


def test_every_claim_holds(capsys: pytest.CaptureFixture[str]) -> None:
    where = [x.where for x in check.readings(ROWS, STUDIED, PAGE)]
    assert where == [*map(str, range(1, 11)), *["table"] * 8]
    assert check.main() == 0
    assert "NO" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "scale", "rank", "by", "where"),
    [
        ("gam", "own", "R", -2.0, "1"),
        ("gam", "norm", "R", -2.0, "2"),
        ("consensus(-0.25)", "own", "r", 1.0, "3"),
        ("tsvm", "norm", "R", 1.0, "4"),
        ("iso_c", "tuned", "R", -2.0, "5"),
        ("consensus(-0.5, 1)", "norm", "R", -1.0, "6"),
        ("mean", "own", "r", 1.0, "3"),
        ("joint training", "own", "r", -1.0, "7"),
        ("ties@knots", "norm", "R", 0.01, "table"),
    ],
)
def test_a_changed_row_breaks_its_claim(
    method: str, scale: str, rank: str, by: float, where: str
) -> None:
    rows = deepcopy(ROWS)
    kind = "specialists" if method == "joint training" else "same goal"
    about = {"method": method, "scale_rule": scale, "rank": rank, "size": 4, "kind": kind}
    row = next(row for row in rows if about.items() <= row.items())
    row["nll"] = {family: value + by for family, value in row["nll"].items()}
    assert where in failed(rows, PAGE)


@pytest.mark.parametrize(
    ("study", "method", "scale", "figure", "by", "where"),
    [
        ("axes", "tsvm", "own", "margin", 5.0, "8"),
        (f"copies: {CHOSEN}", "base", "own", "nll", -2.0, "9"),
        ("copies, judged", "mean", "own", "nll", 2.0, "9"),
        ("paper's optimiser, DPO", "mean", "own", "nll", -8.0, "10"),
        ("crowd, half the labels wrong", "mean", "own", "nll", -8.0, "10"),
        ("crowd, 16 examples", "gam", "own", "nll", 2.0, "10"),
    ],
)
def test_a_changed_row_of_a_study_breaks_its_claim(
    study: str, method: str, scale: str, figure: str, by: float, where: str
) -> None:
    studied = deepcopy(STUDIED)
    about = {"method": method, "scale": scale}
    rows = (x for x in studied if x["study"].startswith(study) and about.items() <= x.items())
    values = next(rows)[figure]
    values.update({name: value + by for name, value in values.items()})
    assert [x.where for x in check.readings(ROWS, studied, PAGE) if not x.holds] == [where]


NUMBERS = [number.span() for number in re.finditer(r"(?<![\w(.-])[+-]?\d+(\.\d+)?(?=[ ,.])", PAGE)]
START, END = PAGE.index("## Verdict"), PAGE.index("This says nothing")
STATED = [span for span in NUMBERS if START < span[0] < END and PAGE[span[0] - 1] != "\n"]


@pytest.mark.parametrize("span", STATED, ids=lambda span: f"{PAGE[slice(*span)]} at {span[0]}")
def test_a_changed_number_breaks_its_claim(span: tuple[int, int]) -> None:
    first, end = span
    last = "1" if PAGE[end - 1] != "1" else "2"
    sentence = re.findall(r"^(\d+)\. ", PAGE[START:first], re.MULTILINE)[-1]
    assert failed(ROWS, f"{PAGE[: end - 1]}{last}{PAGE[end:]}") == {sentence}


def test_a_changed_word_or_cell_breaks_its_claim() -> None:
    assert failed(ROWS, PAGE.replace("harm adapters", "help adapters")) == {"5"}
    assert failed(ROWS, PAGE.replace("| specialists, shared |", "| specialists, other |")) == {
        "table"
    }
    assert failed(ROWS, PAGE.replace("+0.315 ± 0.146", "+0.315 ± 0.147")) == {"table"}


def words_of(page: str) -> str:
    return " ".join((check.HOME.parents[1] / page).read_text("utf-8").split())


def test_the_example_of_the_axes_says_what_the_rows_say() -> None:
    axes = check_studies.AxesRows(STUDIED)
    text, page = map(words_of, ("examples/pda/README.md", "docs/gam.md"))
    alone = [
        fmean(axes.gained(axis, f"single {i}", 1)) for i, axis in enumerate(check_studies.AXES)
    ]
    counts = [axes.counts(axis, f"single {i}") for i, axis in enumerate(check_studies.AXES)]
    assert f"Each delta gains {min(alone):.0f} to {max(alone):.0f} nats on its own axis" in text
    words = "{:.1f} bold words, {:.1f} points of a list, {:.1f} questions"
    assert words.format(*counts) in text
    range_of: dict[str, str] = {}
    for method, sentence in (
        ("tsvm", "`tsvm` gains {:.0f}, {:.0f} and {:.0f} nats"),
        ("auto", "`auto`, the default, keeps {least:.0f} to {most:.0f} % of each"),
        ("mean", "the mean {least:.0f} to {most:.0f} %"),
        ("gam", "`gam` {least:.0f} to {most:.0f} %"),
    ):
        gains = [fmean(axes.gained(axis, method, 3)) for axis in check_studies.AXES]
        shares = [100 * gain / delta for gain, delta in zip(gains, alone, strict=True)]
        assert sentence.format(*gains, least=min(shares), most=max(shares)) in text, method
        range_of[method] = f"{min(shares):.0f} to {max(shares):.0f} %"
    assert f"the price is {axes.price('tsvm'):.2f} nats on plain text" in text
    for sentence in (
        "the mean keeps {mean} of the margin that a delta gains, GAM {gam}",
        "`tsvm` at its own scale {tsvm}",
    ):
        assert sentence.format(**range_of) in page


def test_the_example_of_damaged_copies_says_what_the_rows_say() -> None:
    judged = check_studies.Studied(STUDIED, f"copies, judged: {CHOSEN}")
    text, student = words_of("examples/pda/README.md"), fmean(judged.nll("base"))
    alone = [student - fmean(nll) for nll in zip(*judged.alone(3), strict=True)]
    assert max(alone) == alone[2]
    assert abs(alone[0]) < 0.01  # of the noisy copies
    merged = {m: student - fmean(judged.nll(m, "own", 3)) for m in ("mean", "auto")}
    gains = (fmean(alone), merged["mean"], merged["auto"])
    words = "One delta gains {:.2f} nats on average, the mean of the three {:.2f} and `auto` {:.2f}"
    assert words.format(*gains) in text
    assert f"that of the coarse ones {alone[2]:.2f}, more than any merge" in text

    def exact(*keys: tuple[str, str, int]) -> float:
        rows = [row for key in keys for row in judged.rows[key].values()]
        return 100 * fmean(fmean(row["accuracy"].values()) for row in rows)

    singles = [(f"single {i}", "own", 1) for i in range(3)]
    words = "rise from {:.0f} % to {:.0f} % with one delta and {:.0f} % with the mean"
    shares = exact(("base", "own", 1)), exact(*singles), exact(("mean", "own", 3))
    assert words.format(*shares) in text


def test_the_page_on_gam_says_what_the_studies_say() -> None:
    page = words_of("docs/gam.md")
    paper, crowd = (check_studies.Studied(STUDIED, x) for x in STUDIES)
    own, norm = (fmean(paper.less("gam", "mean", scale, 4)) for scale in ("own", "norm"))
    words = (
        "{:.2f} above the mean of four preference deltas at its own scale and {:.2f} at the norm"
    )
    assert words.format(own, norm) in page
    less: dict[str, list[str]] = {}
    for method in ("gam", "consensus(0.25)", "consensus(-0.25)"):
        sizes = [fmean(crowd.less(method, "mean", "own", size)) for size in (4, 8)]
        less[method] = [f"{abs(x):.2f}" for x in sizes]
        assert all((x < 0) == (method == "consensus(-0.25)") for x in sizes)
    assert less["gam"] == ["0.01", "0.01"]
    assert "it is 0.01 above the mean" in page
    assert "with p = 0.25 is by {} to {};".format(*less["consensus(0.25)"]) in page
    words = "p = -0.25 is {} below the mean of four and {} below that of eight"
    assert words.format(*less["consensus(-0.25)"]) in page
    gains = [fmean(crowd.less("consensus(-0.25)", "auto", "own", size)) for size in (4, 8)]
    assert "`consensus` {:.2f} to {:.2f} nats better".format(*map(abs, gains)) in page
    for size in (4, 8):
        for seed, row in crowd.rows["gam", "own", size].items():
            mean = crowd.rows["mean", "own", size][seed]["norm_ratio"]
            assert row["norm_ratio"] / mean == pytest.approx(0.99, abs=0.005)


def test_the_page_on_gam_says_what_adapters_that_overfit_say() -> None:
    page = words_of("docs/gam.md")
    crowd = check_studies.Studied(STUDIED, check_studies.OVERFITTED)

    def above(method: str) -> list[float]:
        return [fmean(crowd.less(method, "mean", "own", size)) for size in (4, 8)]

    words = (
        "GAM at its own scale is {:.2f} below the mean of four and {:.2f} below that of eight, and "
        "`consensus` with p = 0.5 is {:.2f} and {:.2f} below it, in every seed"
    )
    below = [-x for method in ("gam", "consensus(0.5)") for x in above(method)]
    assert words.format(*below) in page
    assert "is {:.2f} and {:.2f} above the mean".format(*above("auto")) in page
    merges = [row for size in (4, 8) for row in crowd.rows["auto", "own", size].values()]
    assert {row["took"] for row in merges} == {"consensus"}


def test_it_shares_no_code_with_the_tables() -> None:
    for module in (check, check_studies):
        source = Path(str(module.__file__)).read_text("utf-8")
        imports = re.findall(r"^\s*(?:from|import) +benchmarks.*", source, re.MULTILINE)
        assert all("check_studies" in line for line in imports)
