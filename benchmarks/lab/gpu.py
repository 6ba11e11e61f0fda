"""The paper's optimiser with its batch of 128 pairs, in one short run on a GPU.

    python -m benchmarks.lab.gpu pairs pairs.json       # on a CPU, hours before: answers as text
    python -m benchmarks.lab.gpu rows pairs.json rows.jsonl --student FOLDER --minutes 12

FOLDER holds the GGUF of SmolLM2-135M-Instruct; all that comes back is rows, one JSON object per
line, complete at any moment, so a run that was stopped can be continued. The rows are those of the
studies (see studies/design.py), with margins on held-out preferences.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.lab.adapters import once
from benchmarks.lab.design import Settings
from benchmarks.lab.preferences import WEAKER, PreferenceSet
from benchmarks.lab.rows import Row
from benchmarks.lab.studies import figures
from benchmarks.lab.studies.design import MARGIN_ITEMS, SEEDS, STUDIES, Part, Study, Unit, number
from benchmarks.lab.studies.run import Models, measure_missing
from benchmarks.lab.studies.sets import FAMILIES
from benchmarks.lab.studies.tune import Preference, write_delta

ITEMS = 192  # training questions per family
BATCH = 128  # pairs per step, as in the paper

app = typer.Typer(pretty_exceptions_enable=False)


def studies() -> list[Study]:
    """Return the studies of the paper's optimiser, with its batch."""
    large: list[Study] = []
    for study in STUDIES:
        if study.tuning and not study.axes:
            tuning = replace(study.tuning, batch=BATCH)
            large.append(replace(study, name=f"{study.name}, batch {BATCH}", tuning=tuning))
    return large


@dataclass(frozen=True)
class Premade:
    """Deltas from preferences that were made before: lists of question, chosen, rejected."""

    study: Study
    seed: int
    preferences: Mapping[str, Mapping[str, list[list[str]]]]  # part, weaker model
    base: Any
    tokenizer: Any
    folder: Path

    def adapter(self, name: str) -> Path:
        index = number(name)
        who = tuple(WEAKER)[index]
        tuning = self.study.tuning
        assert tuning is not None
        rows = [Preference(*row) for row in self.preferences["training"][who]]
        init = self.study.cell(self.seed).init(index)
        make = partial(
            write_delta,
            base=self.base,
            tokenizer=self.tokenizer,
            pairs=rows,
            tuning=tuning,
            init=init,
        )
        return once(self.folder / f"{self.study.name}-{who}-seed{self.seed}", make)

    def figures(self, model: Any, part: Part) -> Row:
        families = self.study.cell(self.seed).families(FAMILIES)
        held_out: dict[str, list[Preference]] = {}
        for who, rows in self.preferences["held out"].items():
            held_out[who] = [Preference(*made) for made in rows]
        return figures.of_deltas(model, self.tokenizer, families, self.seed, part, held_out)


@app.command()
def pairs(
    out: Path,
    folder: Annotated[Path, typer.Option(help="Folder for models and answers.")] = Path(
        "/tmp/gam-merge-lab"
    ),
    seeds: Annotated[int, typer.Option(help="Number of seeds, from the first.")] = len(SEEDS),
    items: Annotated[int, typer.Option(help="Training questions per family.")] = ITEMS,
) -> None:
    """Write the preferences of every seed as JSON: training and held out, by weaker model."""
    settings = replace(Settings(), preference_items=items)
    base, tokenizer = Models().training
    made: dict[str, dict[str, dict[str, list[tuple[str, str, str]]]]] = {}
    for seed in SEEDS[:seeds]:
        cell = studies()[0].cell(seed)
        origin = PreferenceSet(cell, FAMILIES, base, tokenizer, folder, settings)
        made[str(seed)] = {
            "training": {who: origin.preferences(who) for who in WEAKER},
            "held out": {who: origin.preferences(who, MARGIN_ITEMS) for who in WEAKER},
        }
    out.write_text(json.dumps(made), "utf-8")


@app.command()
def rows(
    preferences: Path,
    out: Path,
    student: Annotated[Path | None, typer.Option(help="Folder with the GGUF.")] = None,
    folder: Annotated[Path, typer.Option(help="Folder for the adapters.")] = Path(
        "/tmp/gam-merge-gpu"
    ),
    minutes: Annotated[float, typer.Option(help="No seed is begun after these.")] = 12.0,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    steps: Annotated[int | None, typer.Option(help="Fewer, to try the command.")] = None,
) -> None:
    """Train, merge and measure every seed, and append its rows."""
    made = json.loads(preferences.read_text("utf-8"))
    models = Models(device, student)
    start = time.monotonic()
    for seed in map(int, made):
        for study in studies():
            if time.monotonic() - start > 60 * minutes:
                return
            if steps and study.tuning:
                study = replace(study, tuning=replace(study.tuning, steps=steps))
            origin = partial(Premade, study, seed, made[str(seed)], folder=folder)
            measure_missing(Unit(study, seed), models, origin, out)


if __name__ == "__main__":
    app()
