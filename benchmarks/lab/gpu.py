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
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.lab.design import Settings
from benchmarks.lab.preferences import WEAKER, PreferenceSet
from benchmarks.lab.studies.design import MARGIN_ITEMS, SEEDS, STUDIES, Study, Unit
from benchmarks.lab.studies.run import Models, measure_missing
from benchmarks.lab.studies.sets import FAMILIES, Deltas

ITEMS = 192  # training questions per family
BATCH = 128  # pairs per step, as in the paper

app = typer.Typer(pretty_exceptions_enable=False)


def studies(steps: int | None = None) -> list[Study]:
    """Return the studies of the paper's optimiser, with its batch; fewer steps have a name."""
    large: list[Study] = []
    for study in STUDIES:
        if study.tuning and not study.axes:
            name, tuning = f"{study.name}, batch {BATCH}", replace(study.tuning, batch=BATCH)
            if steps:
                name, tuning = f"{name}, {steps} steps", replace(tuning, steps=steps)
            large.append(replace(study, name=name, tuning=tuning))
    return large


@dataclass(frozen=True)
class Premade(PreferenceSet):
    """Preferences that were made before: question, chosen, rejected, by part and weaker model."""

    made: Mapping[str, Mapping[str, list[tuple[str, str, str]]]]

    def preferences(self, who: str, held_out: int = 0) -> list[tuple[str, str, str]]:
        """Return the preferences of one weaker model."""
        return self.made["held out" if held_out else "training"][who]


def deltas(
    study: Study, seed: int, made: Mapping[str, Any], folder: Path, base: Any, tokenizer: Any
) -> Deltas:
    """Return the adapters of one seed, from a file that ``pairs`` wrote."""
    cell, settings = study.cell(seed), replace(Settings(), preference_items=made["items"])
    of_seed = made["seeds"][str(seed)]
    return Deltas(study, Premade(cell, FAMILIES, base, tokenizer, folder, settings, of_seed))


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
    made: dict[int, dict[str, dict[str, list[tuple[str, str, str]]]]] = {}
    for seed in SEEDS[:seeds]:
        cell = studies()[0].cell(seed)
        origin = PreferenceSet(cell, FAMILIES, base, tokenizer, folder, settings)
        made[seed] = {
            "training": {who: origin.preferences(who) for who in WEAKER},
            "held out": {who: origin.preferences(who, MARGIN_ITEMS) for who in WEAKER},
        }
    out.write_text(json.dumps({"items": items, "seeds": made}), "utf-8")


@app.command()
def rows(
    preferences: Path,
    out: Path,
    student: Annotated[Path | None, typer.Option(help="Folder with the GGUF.")] = None,
    folder: Annotated[Path, typer.Option(help="Folder for the adapters.")] = Path(
        "/tmp/gam-merge-gpu"
    ),
    minutes: Annotated[float, typer.Option(help="No study of a seed is begun after these.")] = 12.0,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    steps: Annotated[int | None, typer.Option(help="Fewer, to try the command.")] = None,
) -> None:
    """Train, merge and measure every seed, and append its rows."""
    made = json.loads(preferences.read_text("utf-8"))
    models = Models(device, student)
    start = time.monotonic()
    for seed, study in product(map(int, made["seeds"]), studies(steps)):
        if time.monotonic() - start > 60 * minutes:
            return
        origin = partial(deltas, study, seed, made, folder)
        measure_missing(Unit(study, seed), models, origin, out)


if __name__ == "__main__":
    app()
