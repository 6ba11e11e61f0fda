"""``gam-merge recipe``: what a recipe may contain, and whether one is right."""

import typer

from gam_cli import _options as options


def recipe(
    ctx: typer.Context,
    file: options.RecipeFile = None,
    set_: options.Set = None,
    schema: options.Schema = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Check a recipe against its sources, or print the JSON Schema by which editors complete it."""
    if file is None and not schema:
        ctx.fail("Missing argument 'FILE': name a recipe to check, or use '--schema'.")
    if file is not None and schema:
        ctx.fail("'FILE' cannot be combined with '--schema'.")
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables as tables

    if file is None:
        present.show(gm.recipe_schema(), (), as_json=True, quiet=quiet)
        return
    with present.running(quiet=quiet):
        planned = gm.plan_recipe(file, overrides=set_ or ())
    present.show(planned, tables.of_plan(planned, verbose=verbose), as_json=as_json, quiet=quiet)
