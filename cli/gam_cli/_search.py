"""``gam-merge search``: settings of a recipe, searched against a score of the user's own."""

from dataclasses import asdict

from gam_cli import _options as options


def search(
    recipe: options.SearchedRecipe,
    evaluate: options.Evaluate,
    out: options.RequiredOut,
    trials: options.Trials = 40,
    vary: options.Vary = None,
    minimize: options.Minimize = False,
    set_: options.Set = None,
    seed: options.SearchSeed = 0,
    as_json: options.Json = False,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Search weights, anchor and parameters of a recipe for the best score of your own command."""
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables_recipes as tables

    if quiet:
        present.silence_downloads()
    goal = "min" if minimize else "max"
    with present.progress_bar("searching", "trials", quiet=quiet) as progress:
        found = gm.search(
            recipe,
            evaluate,
            out,
            trials=trials,
            vary=vary or ("weights",),
            goal=goal,  # type: ignore[arg-type]
            seed=seed,
            overrides=set_ or (),
            device=device,
            progress=progress,
        )
    data = {
        "best": asdict(found.best),
        "recipe": str(found.recipe),
        "trials": [asdict(t) for t in found.trials],
    }
    present.show(data, tables.of_search(found, goal), as_json=as_json, quiet=quiet)
