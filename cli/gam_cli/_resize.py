"""``gam-merge resize A -o OUT``: an adapter at another rank."""

from gam_cli import _options as options


def resize(
    source: options.Source,
    out: options.RequiredOut,
    rank: options.NewRank = None,
    energy: options.Energy = None,
    max_rank: options.MaxRank = None,
    per_module_rank: options.PerModuleRank = False,
    for_: options.For = None,
    format: options.Format = None,
    dtype: options.Dtype = None,
    base: options.Base = None,
    alpha: options.OneAlpha = None,
    force: options.Force = False,
    as_json: options.Json = False,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Cut an adapter to a lower rank, or pad it to a higher one."""
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables as tables

    with present.running("resizing", "modules", quiet=quiet) as run:
        result = gm.resize(
            source,
            rank=rank,
            energy=energy,
            max_rank=max_rank,
            per_module_rank=per_module_rank,
            out=out,
            target=for_,
            format=format,
            dtype=dtype,
            device=device,
            base_model=base,
            alpha=alpha,
            force=force,
            progress=run.progress,
        )
    lines = tables.of_merge(result, run.seconds, verbose=verbose)
    present.show(result.report, lines, as_json=as_json, quiet=quiet)
