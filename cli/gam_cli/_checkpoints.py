"""``gam-merge checkpoints RUN -o OUT``: the mean of the last checkpoints of a training run."""

from gam_cli import _options as options


def checkpoints(
    run: options.Run,
    out: options.RequiredOut,
    last: options.Last = 5,
    ema: options.Ema = None,
    method: options.Method = "mean",
    params: options.Params = None,
    missing: options.Missing = None,
    base: options.Base = None,
    rank: options.Rank = None,
    energy: options.Energy = None,
    max_rank: options.MaxRank = None,
    for_: options.For = None,
    format: options.Format = None,
    dtype: options.Dtype = None,
    force: options.Force = False,
    as_json: options.Json = False,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Average the last checkpoints of a training run."""
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables as tables

    with present.running("merging", "modules", quiet=quiet, verbose=verbose) as running:
        result = gm.average_checkpoints(
            run,
            last=last,
            ema=ema,
            out=out,
            method=method,
            params=dict(params or ()),
            missing=missing,
            base_model=base,
            rank=rank,
            energy=energy,
            max_rank=max_rank,
            target=for_,
            format=format,
            dtype=dtype,
            device=device,
            force=force,
            progress=running.progress,
        )
    lines = tables.of_merge(result, running.seconds, verbose=verbose)
    present.show(result.report, lines, as_json=as_json, quiet=quiet)
