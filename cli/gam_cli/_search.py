"""``gam-merge search``: settings of a recipe, searched against a score of the user's own."""

from gam_cli import _options as options


def search(
    recipe: options.FirstRecipe,
    evaluate: options.Evaluate,
    out: options.OutDirectory,
    trials: options.Trials = 40,
    vary: options.Vary = None,
    minimize: options.Minimize = False,
    set_: options.Set = None,
    seed: options.SearchSeed = 0,
    as_json: options.Json = False,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Search the settings of a recipe that score best under a command of your own."""
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables_recipes as tables

    with present.running("searching", "trials", quiet=quiet) as run:
        result = gm.search(
            recipe,
            evaluate,
            out,
            trials=trials,
            vary=vary or ("weights",),
            goal="min" if minimize else "max",
            seed=seed,
            overrides=set_ or (),
            device=device,
            progress=run.progress,
        )
    lines = tables.of_search(result, minimize=minimize)
    present.show(result, lines, as_json=as_json, quiet=quiet)
