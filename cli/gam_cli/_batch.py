"""``gam-merge batch recipes/*.yaml -o OUT``: many recipes."""

import typer

from gam_cli import _options as options


def batch(
    recipes: options.Recipes,
    out: options.OutDirectory,
    set_: options.Set = None,
    jobs: options.Jobs = 1,
    force: options.Force = False,
    as_json: options.Json = False,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Run many recipes; one that fails does not stop the rest."""
    from concurrent.futures import ThreadPoolExecutor

    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables_recipes as tables

    with (
        present.running("merging", "recipes", quiet=quiet) as run,
        ThreadPoolExecutor(jobs) as pool,
    ):
        items = gm.batch(
            recipes,
            out,
            overrides=set_ or (),
            device=device,
            force=force,
            executor=pool,
            progress=run.progress,
        )
    present.show(items, tables.of_batch(items, out), as_json=as_json, quiet=quiet)
    if any(item.error is not None for item in items):
        raise typer.Exit(1)
