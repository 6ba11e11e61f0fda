"""``gam-merge A B -o OUT``: merge adapters into one, or say what that would do."""

from time import perf_counter
from typing import Any

import typer

from gam_cli import _options as options


def merge(
    ctx: typer.Context,
    sources: options.Sources,
    method: options.Method = "gam",
    params: options.Params = None,
    weights: options.Weights = None,
    anchor: options.Anchor = "0",
    base: options.Base = None,
    alpha: options.Alpha = None,
    allow_base_mismatch: options.AllowBaseMismatch = False,
    out: options.Out = None,
    rank: options.Rank = None,
    dtype: options.Dtype = None,
    force: options.Force = False,
    as_json: options.Json = False,
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Merge LoRA adapters into one."""
    if out is None and not dry_run:
        ctx.fail("Missing option '--out' / '-o', the directory to write; '--dry-run' does without.")
    start = perf_counter()
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables as tables

    settings: dict[str, Any] = {
        "method": method,
        "params": dict(params or ()),
        "weights": weights or None,
        "anchor": anchor,
        "base_model": base,
        "alpha": alpha or None,
        "allow_base_mismatch": allow_base_mismatch,
        "out": out,
        "rank": rank,
        "dtype": dtype,
        "force": force,
        "device": device,
    }
    if quiet:
        present.silence_downloads()
    if dry_run:
        planned = gm.plan(sources, **settings)
        data, lines = planned.to_dict(), tables.of_plan(planned, verbose=verbose)
    else:
        with present.progress_bar("merging", "modules", quiet=quiet) as progress:
            result = gm.merge(sources, **settings, progress=progress)
        data, lines = result.report.to_dict(), tables.of_merge(result, perf_counter() - start, verbose=verbose)
    present.show(data, lines, as_json=as_json, quiet=quiet)
