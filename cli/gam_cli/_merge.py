"""``gam-merge A B -o OUT``: merge adapters into one, or print what that would do."""

from collections.abc import Callable, Mapping
from typing import Any

import typer

from gam_cli import _options as options

_RANKS = ("rank", "energy", "max_rank", "per_module_rank")
_SAME_IN_LIBRARY = (
    *("method", "anchor", "missing", "allow_base_mismatch", "flatten_dora", "format", "dtype"),
    *_RANKS,
)
_IN_RECIPES = ("params", "weights", "base", "alpha", "for_", *_SAME_IN_LIBRARY)
_FOR_PUSH = ("private", "revision", "create_pr", "commit_message")


def merge(
    ctx: typer.Context,
    sources: options.SomeSources = None,
    method: options.Method = "auto",
    params: options.Params = None,
    weights: options.Weights = None,
    anchor: options.Anchor = "0",
    missing: options.Missing = None,
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
    format: options.Format = None,
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
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables as tables

    subject: Any = sources
    plan: Callable[..., gm.MergePlan] = gm.plan
    make: Callable[..., gm.MergeResult] = gm.merge
    settings = _settings(ctx.params)
    if recipe is not None:
        subject, plan, make = recipe, gm.plan_recipe, gm.merge_recipe
        settings = {"overrides": set_ or ()}
    settings |= {"out": out, "force": force, "device": device}
    if push_to_hub is not None:
        gm.HubId.parse_repo(push_to_hub)  # before the work

    with present.running("merging", "modules", quiet=quiet, verbose=verbose) as run:
        if dry_run:
            planned = plan(subject, **settings)
            estimate = planned.estimate()
            lines = tables.of_plan(planned, verbose=verbose, estimate=estimate)
            data = {**planned.to_dict(), "estimate": estimate}
            present.show(data, lines, as_json=as_json, quiet=quiet)
            return
        result = make(subject, **settings, progress=run.progress)
    lines = tables.of_merge(result, run.seconds, verbose=verbose, explain=explain)
    if push_to_hub is None:
        present.show(result.report, lines, as_json=as_json, quiet=quiet)
        return
    present.show(None, lines, as_json=False, quiet=quiet or as_json)  # even if the upload fails
    url = result.push_to_hub(push_to_hub, **{name: ctx.params[name] for name in _FOR_PUSH})
    data = {**result.report.to_dict(), "url": url}
    present.show(data, [f"pushed to {url}"], as_json=as_json, quiet=quiet)


def _settings(params: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the library that decide the result."""
    return {
        **{name: params[name] for name in _SAME_IN_LIBRARY},
        "params": dict(params["params"] or ()),
        "weights": params["weights"] or None,
        "base_model": params["base"],
        "target": params["for_"],
        "alpha": params["alpha"] or None,
    }


def _check_usage(ctx: typer.Context) -> None:
    """Refuse options that cannot be combined, and arguments that are missing."""
    given = _given(ctx)
    if "recipe" in given:
        _check_recipe(ctx, given)
    elif "sources" not in given:
        ctx.fail("Missing argument 'SOURCES': name adapters to merge, or a recipe with '--recipe'.")
    elif "set_" in given:
        ctx.fail("'--set' needs '--recipe'.")
    if "push_to_hub" in given:
        return
    for name in _FOR_PUSH:
        if name in given:
            ctx.fail(f"'{given[name]}' needs '--push-to-hub'.")
    if "out" not in given and "dry_run" not in given:
        ctx.fail("Missing option '--out' / '-o': name what to write, or use '--dry-run'.")


def _check_recipe(ctx: typer.Context, given: Mapping[str, str]) -> None:
    """Refuse what a recipe decides itself."""
    if "sources" in given:
        ctx.fail("'SOURCES' cannot be combined with '--recipe': a recipe names its sources.")
    for name in _IN_RECIPES:
        if name in given:
            flag = given[name]
            ctx.fail(
                f"'{flag}' cannot be combined with '--recipe'; change the recipe with '--set'."
            )


def _given(ctx: typer.Context) -> dict[str, str]:
    """The parameters that are on the command line, each with its flag."""
    given: dict[str, str] = {}
    for param in ctx.command.params:
        source = ctx.get_parameter_source(str(param.name))
        if source is not None and source.name == "COMMANDLINE":
            given[str(param.name)] = param.opts[0]
    return given
