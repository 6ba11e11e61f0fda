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
    """Hold a merge and its sources against what was recorded; exit code 1 if something differs."""
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables_recipes as tables

    if quiet:
        present.silence_downloads()
    found = gm.verify(merge, sources=not no_sources, rerun=rerun, device=device)
    present.show(found.to_dict(), tables.of_verification(found), as_json=as_json, quiet=quiet)
    if not found.holds:
        raise typer.Exit(1)
