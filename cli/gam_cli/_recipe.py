"""``gam-merge recipe``: what may stand in a recipe, and whether one is right."""

import typer

from gam_cli import _options as options


def recipe(
    ctx: typer.Context,
    file: options.RecipeFile = None,
    set_: options.Set = None,
    schema: options.Schema = False,
    verbose: options.Verbose = False,
) -> None:
    """Check a recipe against its sources, or print the schema that editors complete recipes by."""
    if schema == (file is not None):
        ctx.fail("Give a recipe to check, or '--schema'.")
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables as tables

    if file is None:
        present.print_json(gm.recipe_schema())
    else:
        planned = gm.plan_recipe(file, overrides=set_ or ())
        present.show(None, tables.of_plan(planned, verbose=verbose), as_json=False, quiet=False)
