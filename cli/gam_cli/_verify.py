"""``gam-merge verify OUT``: whether a merge is still what was written."""

import typer

from gam_cli import _options as options


def verify(
    merge: options.Merge,
    no_sources: options.NoSources = False,
    rerun: options.Rerun = False,
    as_json: options.Json = False,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Check a merge and its sources against the recorded hashes; exit code 1 if any differs."""
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables_recipes as tables

    with present.running(quiet=quiet):
        verification = gm.verify(merge, sources=not no_sources, rerun=rerun, device=device)
    lines = tables.of_verification(verification)
    present.show(verification, lines, as_json=as_json, quiet=quiet)
    if not verification.holds:
        raise typer.Exit(1)
