"""``gam-merge checkpoints RUN -o OUT``: the mean of the last checkpoints of a training run."""

from time import perf_counter

from gam_cli import _options as options


def checkpoints(
    run: options.Run,
    out: options.RequiredOut,
    last: options.Last = 5,
    ema: options.Ema = None,
    method: options.Method = "mean",
    params: options.Params = None,
    rank: options.Rank = None,
    energy: options.Energy = None,
    max_rank: options.MaxRank = None,
    dtype: options.Dtype = None,
    force: options.Force = False,
    as_json: options.Json = False,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Average the last checkpoints of a training run."""
    start = perf_counter()
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables as tables

    with present.progress_bar("merging", "modules", quiet=quiet) as progress:
        result = gm.average_checkpoints(
            run,
            last=last,
            ema=ema,
            out=out,
            method=method,
            params=dict(params or ()),
            rank=rank,
            energy=energy,
            max_rank=max_rank,
            dtype=dtype,
            device=device,
            force=force,
            progress=progress,
        )
    lines = tables.of_merge(result, perf_counter() - start, verbose=verbose, explain=False)
    present.show(result.report.to_dict(), lines, as_json=as_json, quiet=quiet)
