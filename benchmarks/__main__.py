"""``python -m benchmarks``: against peers, and against the floor of the machine. Results go to benchmarks/results/."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks import diagnose, digests, memory, process
from benchmarks.speed import command as speed

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
Folder = Annotated[Path, typer.Option(help="Where the synthetic adapters are kept between runs.")]


@app.command("process")
def process_command(
    folder: Folder = Path("/tmp/gam-merge-benchmarks"),
    rank: int = 16,
    count: int = 3,
    repeats: int = 5,
) -> None:
    """The whole command on Qwen3-8B shapes, over importing torch, reading the files and writing the result."""
    process.main(folder, rank=rank, count=count, repeats=repeats)


@app.command("speed")
def speed_command(
    folder: Folder = Path("/tmp/gam-merge-benchmarks"),
    repeats: int = 3,
    quick: Annotated[
        bool, typer.Option(help="The small cases alone, without PEFT; nothing is kept.")
    ] = False,
    page: Annotated[
        bool, typer.Option(help="Write the tables and the plot from the results alone.")
    ] = False,
) -> None:
    """Library calls and PEFT over the floor: reading, writing, and the least arithmetic at this machine's own rate."""
    speed.main(folder, repeats=repeats, quick=quick, page=page)


@app.command("diagnose")
def diagnose_command(folder: Folder = Path("/tmp/gam-merge-benchmarks"), repeats: int = 5) -> None:
    """inspect over reading an adapter, compare of three over merging them, on Qwen3-8B shapes at rank 64."""
    diagnose.main(folder, repeats=repeats)


@app.command("digests")
def digests_command(
    against: Annotated[
        str | None, typer.Option(help="A commit whose digests are printed beside these.")
    ] = None,
) -> None:
    """The sha256 of the merged example adapters by every method; exit code 1 if a commit gives others."""
    if not digests.main(against):
        raise typer.Exit(1)


@app.command("lab")
def lab_command(
    folder: Annotated[Path, typer.Option(help="Where adapters are kept between runs.")] = Path(
        "/tmp/gam-merge-lab"
    ),
    jobs: Annotated[int, typer.Option(help="Processes, of one thread each.")] = 2,
    quick: Annotated[
        bool, typer.Option(help="A small lab, in minutes; its rows are kept apart.")
    ] = False,
    plan: Annotated[
        bool, typer.Option(help="Print what would be done and its cost, and stop.")
    ] = False,
    tables: Annotated[
        bool, typer.Option(help="Write the tables and plots from the results alone.")
    ] = False,
    kind: Annotated[
        list[str] | None, typer.Option(help="specialists, 'same goal', preferences; else all.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="main, others, plane, tuned, rank, joint, sizes.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="The first so many seeds.")] = None,
) -> None:
    """Merge adapters of SmolLM2 by every method and measure what they still know. Stops and resumes at any moment."""
    try:
        from benchmarks.lab import command

        command.main(
            folder,
            jobs=jobs,
            quick=quick,
            plan=plan,
            tables=tables,
            kinds=kind or [],
            passes=only or [],
            seeds=seeds,
        )
    except ModuleNotFoundError as error:
        raise SystemExit(f"the lab needs {error.name}: pip install -e '.[train,dev]'") from None


@app.command("memory")
def memory_command(
    only: Annotated[str, typer.Option(help="Methods with this in their name.")] = "",
) -> None:
    """Peak memory and time of every method on one module of 4096 x 12288, four adapters of rank 16."""
    memory.main(only)


@app.command("variants")
def variants_command(
    mergekit: Annotated[
        Path | None, typer.Option(help="The Python of an environment that mergekit is in.")
    ] = None,
    page: Annotated[
        bool, typer.Option(help="Write docs/variants.md from the results alone.")
    ] = False,
) -> None:
    """Every kind of adapter that PEFT writes, merged by PEFT, mergekit and gam-merge: right, wrong or refused."""
    from benchmarks.variants import command

    command.main(mergekit=mergekit, page=page)


@app.command("nightly")
def nightly_command(
    only: Annotated[
        list[str] | None, typer.Option(help="The names of trials; all by default.")
    ] = None,
    page: Annotated[
        bool, typer.Option(help="Write the table of the README from the results alone.")
    ] = False,
) -> None:
    """Faults and hostile files by the hundred; exit code 1 if a promise broke. Linux, as root for a disk that fills,
    with the extra ``fuzz`` for files that are bred by the code that they reach."""
    from benchmarks.nightly import command

    if not command.main(only=only or [], page=page):
        raise typer.Exit(1)


app()
