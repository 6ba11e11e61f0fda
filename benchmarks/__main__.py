"""``python -m benchmarks``: gam-merge against peers and against the floor of the machine.

Results go to benchmarks/results/.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, get_args

import typer

from benchmarks import busy, choice, diagnose, digests, kohya, memory, modules, process
from benchmarks.lab.design import Kind, Pass
from benchmarks.speed import command as speed

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
Folder = Annotated[Path, typer.Option(help="Folder for the synthetic adapters, kept between runs.")]
_HOME = Path("/tmp/gam-merge-benchmarks")


@contextmanager
def _training_packages() -> Iterator[None]:
    """Say what to install where a package of the lab is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise SystemExit(f"the lab needs {error.name}: pip install -e '.[train,dev]'") from None


def _known(option: str, names: list[str] | None, known: Iterable[str]) -> list[str]:
    """Return the names that were given; one that is not known is refused."""
    choices = list(known)
    for name in names or []:
        if name not in choices:
            message = f"must be one of {'; '.join(choices)}, got {name}"
            raise typer.BadParameter(message, param_hint=option)
    return names or []


@app.command("process")
def process_command(
    folder: Folder = _HOME,
    rank: int = 16,
    count: int = 3,
    repeats: int = 5,
) -> None:
    """Time the whole command, over importing torch, reading the files and writing the result."""
    process.main(folder, rank=rank, count=count, repeats=repeats)


@app.command("modules")
def modules_command(
    folder: Folder = _HOME,
    layers: Annotated[
        list[int] | None, typer.Option(help="Layers of 128 experts (default: 4 and all 48).")
    ] = None,
    rank: int = 16,
    count: int = 3,
    repeats: int = 3,
) -> None:
    """Time plan, config and report of experts, 384 modules per layer, over the merge."""
    modules.main(folder, layers=layers or [4, 48], rank=rank, count=count, repeats=repeats)


@app.command("speed")
def speed_command(
    folder: Folder = _HOME,
    repeats: int = 3,
    quick: Annotated[
        bool, typer.Option(help="Only the small cases, without PEFT; nothing is kept.")
    ] = False,
    page: Annotated[
        bool, typer.Option(help="Only write the tables and the plot from the results.")
    ] = False,
) -> None:
    """Time library calls and PEFT over the floor: reading, writing and the least arithmetic."""
    speed.main(folder, repeats=repeats, quick=quick, page=page)


@app.command("busy")
def busy_command(folder: Folder = _HOME, others: int = 2, repeats: int = 5) -> None:
    """Time a merge while other processes compute, over how much slower matrix products get."""
    busy.main(folder, others=others, repeats=repeats)


@app.command("kohya")
def kohya_command(folder: Folder = _HOME, repeats: int = 9) -> None:
    """Time merges of kohya files over those of PEFT directories of the same tensors."""
    kohya.main(folder, repeats=repeats)


@app.command("diagnose")
def diagnose_command(folder: Folder = _HOME, repeats: int = 5) -> None:
    """Time inspect over reading an adapter, and compare over merging, at rank 64."""
    diagnose.main(folder, repeats=repeats)


@app.command("digests")
def digests_command(
    against: Annotated[
        str | None, typer.Option(help="Commit whose digests are printed next to these.")
    ] = None,
) -> None:
    """Print the sha256 of merges by every method; exit code 1 if they differ from a commit's."""
    if not digests.main(against):
        raise typer.Exit(1)


@app.command("lab")
def lab_command(
    folder: Annotated[
        Path, typer.Option(help="Folder for the adapters, kept between runs.")
    ] = Path("/tmp/gam-merge-lab"),
    jobs: Annotated[int, typer.Option(help="Number of processes, of one thread each.")] = 2,
    quick: Annotated[
        bool, typer.Option(help="A small lab, in minutes; its rows are kept apart.")
    ] = False,
    plan: Annotated[bool, typer.Option(help="Only print the work and its cost.")] = False,
    tables: Annotated[
        bool, typer.Option(help="Only write the tables and plots from the results.")
    ] = False,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="specialists, 'same goal' or preferences (default: all)."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(get_args(Pass))} (default: all)."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds, from the first.")] = None,
) -> None:
    """Merge adapters of SmolLM2 by every method, and measure; can be stopped and resumed."""
    with _training_packages():
        from benchmarks.lab import command

        command.main(
            folder,
            jobs=jobs,
            quick=quick,
            plan=plan,
            tables=tables,
            kinds=_known("--kind", kind, get_args(Kind)),
            passes=_known("--only", only, get_args(Pass)),
            seeds=seeds,
        )


@app.command("studies")
def studies_command(
    folder: Annotated[
        Path, typer.Option(help="Folder for the adapters, kept between runs.")
    ] = Path("/tmp/gam-merge-lab"),
    jobs: Annotated[int, typer.Option(help="Number of processes, of one thread each.")] = 2,
    plan: Annotated[bool, typer.Option(help="Only print the work and its cost.")] = False,
    study: Annotated[
        list[str] | None, typer.Option(help="Name of a study, as --plan prints it (default: all).")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds, from the first.")] = None,
) -> None:
    """Preference deltas of the paper's optimiser, and noisy crowds; can be stopped and resumed."""
    with _training_packages():
        from benchmarks.lab.studies import command
        from benchmarks.lab.studies.design import STUDIES

        names = _known("--study", study, (study.name for study in STUDIES))
        command.main(folder, jobs=jobs, plan=plan, names=names, seeds=seeds)


@app.command("choice")
def choice_command(folder: Folder = _HOME, repeats: int = 5) -> None:
    """Time the look by which auto chooses a method, over the merge."""
    choice.main(folder, repeats=repeats)


@app.command("theory")
def theory_command(
    page: Annotated[
        bool, typer.Option(help="Only write the tables and the picture from the results.")
    ] = False,
) -> None:
    """Measure where GAM helps on synthetic deltas, in under two minutes, and draw the map."""
    from benchmarks.theory import command

    command.main(page=page)


@app.command("gpu")
def gpu_command(
    folder: Folder = _HOME,
    device: Annotated[str, typer.Option(help="Of torch; results of cpu need --out.")] = "cuda",
    toy: Annotated[bool, typer.Option(help="Only small stacks and one small layer.")] = False,
    minutes: Annotated[float, typer.Option(help="Time after which the rest is left out.")] = 7.5,
    out: Annotated[
        Path | None, typer.Option(help="Folder for gpu.json; the page stays as it is.")
    ] = None,
    page: Annotated[bool, typer.Option(help="Only write the tables from the results.")] = False,
) -> None:
    """Merge on a GPU and on the CPU, and compare the routines that a GPU has, in eight minutes."""
    from benchmarks.gpu import command, report

    if page:
        report.write()
    else:
        command.main(folder, device=device, toy=toy, minutes=minutes, out=out)


@app.command("memory")
def memory_command(
    only: Annotated[str, typer.Option(help="Only methods with this in their name.")] = "",
) -> None:
    """Measure peak memory and time of every method on one module of 4096 x 12288."""
    memory.main(only)


@app.command("variants")
def variants_command(
    mergekit: Annotated[
        Path | None, typer.Option(help="Python of an environment with mergekit.")
    ] = None,
    page: Annotated[
        bool, typer.Option(help="Only write docs/variants.md from the results.")
    ] = False,
) -> None:
    """Merge every kind of adapter that PEFT writes by PEFT, mergekit and gam-merge, and compare."""
    from benchmarks.variants import command

    command.main(mergekit=mergekit, page=page)


@app.command("parity")
def parity_command(
    checkouts: Annotated[
        Path | None,
        typer.Option(
            help="Folder with git clones named owner+name; without it only the table is written."
        ),
    ] = None,
    only: Annotated[str, typer.Option(help="Only comparisons with this in their name.")] = "",
) -> None:
    """Compare methods with the official code of their papers; exit code 1 if one differs.

    It runs code out of the clones. Two comparisons need tensorly and scikit-learn.
    """
    from benchmarks.parity import command

    if not command.main(checkouts, only=only):
        raise typer.Exit(1)


@app.command("formats")
def formats_command(
    page: Annotated[
        bool, typer.Option(help="Only write docs/formats.md from the results.")
    ] = False,
) -> None:
    """Merge files of every format, and have the readers of these formats read sources and merge."""
    from benchmarks.formats import command

    command.main(page=page)


@app.command("ui")
def ui_command(visitors: int = 10, pause: float = 8.0, rounds: int = 2) -> None:
    """Time the actions of the page under several visitors at once; needs the extra ``ui``.

    pause: the mean seconds between two actions of a visitor.
    """
    from benchmarks import ui

    ui.main(visitors=visitors, pause=pause, rounds=rounds)


@app.command("nightly")
def nightly_command(
    only: Annotated[list[str] | None, typer.Option(help="Names of trials (default: all).")] = None,
    page: Annotated[
        bool, typer.Option(help="Only write the table of docs/benchmarks.md from the results.")
    ] = False,
) -> None:
    """Inject faults and hostile files; exit code 1 if a promise is broken.

    On Linux; as root for the disk that fills, with the extra ``fuzz`` for the files that are bred.
    """
    from benchmarks.nightly import command

    if not command.main(only=only or [], page=page):
        raise typer.Exit(1)


app()
