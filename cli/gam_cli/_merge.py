"""``gam-merge A B -o OUT``: merge adapters into one, or say what that would do."""

from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter
from typing import Any

import typer

from gam_cli import _options as options

_IN_RECIPES = (
    "method", "params", "weights", "anchor", "missing", "base", "alpha", "allow_base_mismatch",
    "flatten_dora", "rank", "energy", "max_rank", "per_module_rank", "for_", "dtype",
)  # fmt: skip
_RANKS = ("rank", "energy", "max_rank", "per_module_rank")
_OF_PUSH = ("private", "revision", "create_pr", "commit_message")


def merge(
    ctx: typer.Context,
    sources: options.SomeSources = None,
    method: options.Method = "gam",
    params: options.Params = None,
    weights: options.Weights = None,
    anchor: options.Anchor = "0",
    missing: options.Missing = "zero",
    base: options.Base = None,
    alpha: options.Alpha = None,
    allow_base_mismatch: options.AllowBaseMismatch = False,
    recipe: options.Recipe = None,
    set_: options.Set = None,
    out: options.Out = None,
    flatten_dora: options.FlattenDora = False,
    rank: options.Rank = None,
    energy: options.Energy = None,
    max_rank: options.MaxRank = None,
    per_module_rank: options.PerModuleRank = False,
    for_: options.For = None,
    dtype: options.Dtype = None,
    force: options.Force = False,
    as_json: options.Json = False,
    push_to_hub: options.PushTo = None,
    private: options.Private = False,
    revision: options.Revision = None,
    create_pr: options.CreatePr = False,
    commit_message: options.CommitMessage = "Merged LoRA adapter",
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
    explain: options.Explain = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Merge LoRA adapters into one."""
    _check_usage(ctx)
    start = perf_counter()
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables as tables

    if quiet:
        present.silence_downloads()
    running: dict[str, Any] = {"out": out, "force": force, "device": device}
    if recipe is not None:
        plan: Callable[..., gm.MergePlan] = partial(
            gm.plan_recipe, recipe, overrides=set_ or (), **running
        )
        run: Callable[..., gm.MergeResult] = partial(
            gm.merge_recipe, recipe, overrides=set_ or (), **running
        )
    else:
        settings = {**_settings(ctx.params), **running}
        plan, run = (
            partial(gm.plan, sources or (), **settings),
            partial(gm.merge, sources or (), **settings),
        )
    if dry_run:
        planned = plan()
        expected = planned.estimate()
        data = {**planned.to_dict(), "estimate": expected.to_dict()}
        present.show(
            data,
            tables.of_plan(planned, verbose=verbose, expected=expected),
            as_json=as_json,
            quiet=quiet,
        )
        return
    with present.progress_bar("merging", "modules", quiet=quiet) as progress:
        result = run(progress=progress)
    lines = tables.of_merge(result, perf_counter() - start, verbose=verbose, explain=explain)
    if push_to_hub is None:
        present.show(result.report.to_dict(), lines, as_json=as_json, quiet=quiet)
        return
    if not as_json:
        present.show(None, lines, as_json=False, quiet=quiet)
    url = result.push_to_hub(push_to_hub, **{name: ctx.params[name] for name in _OF_PUSH})
    present.show(
        {**result.report.to_dict(), "url": url}, [f"pushed to {url}"], as_json=as_json, quiet=quiet
    )


def _check_usage(ctx: typer.Context) -> None:
    """Options that do not go together."""
    given = {
        name
        for name in ctx.params
        if (s := ctx.get_parameter_source(name)) is not None and s.name == "COMMANDLINE"
    }
    flags = {param.name: param.opts[0] for param in ctx.command.params}
    if ctx.params["recipe"] is None:
        if not ctx.params["sources"]:
            ctx.fail("Missing argument 'SOURCES', the adapters to merge; '--recipe' does without.")
        if "set_" in given:
            ctx.fail("'--set' changes a recipe; name one with '--recipe'.")
    elif ctx.params["sources"]:
        ctx.fail("Adapters and '--recipe' do not go together: the recipe names its sources.")
    elif both := [flags[name] for name in _IN_RECIPES if name in given]:
        ctx.fail(f"'{both[0]}' and '--recipe' do not go together; change the recipe with '--set'.")
    if ctx.params["push_to_hub"] is None and (
        alone := [flags[name] for name in _OF_PUSH if name in given]
    ):
        ctx.fail(f"'{alone[0]}' is of the upload; name a repository with '--push-to-hub'.")
    if (
        ctx.params["out"] is None
        and ctx.params["push_to_hub"] is None
        and not ctx.params["dry_run"]
    ):
        ctx.fail("Missing option '--out' / '-o', the directory to write; '--dry-run' does without.")


def _settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the library that decide what comes out."""
    same = ("method", "anchor", "missing", "allow_base_mismatch", "flatten_dora", "dtype", *_RANKS)
    return {
        **{name: params[name] for name in same},
        "params": dict(params["params"] or ()),
        "weights": params["weights"] or None,
        "base_model": params["base"],
        "target": params["for_"],
        "alpha": params["alpha"] or None,
    }
