"""``gam-merge convert A --format F -o OUT``: an adapter in another format."""

from gam_cli import _options as options


def convert(
    source: options.Source,
    out: options.RequiredOut,
    format: options.Format = None,
    dtype: options.Dtype = None,
    base: options.Base = None,
    alpha: options.OneAlpha = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Write an adapter in another format, its factors as they are."""
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables as tables

    with present.running("converting", "modules", quiet=quiet) as run:
        result = gm.convert(
            source,
            format=format,
            out=out,
            dtype=dtype,
            base_model=base,
            alpha=alpha,
            force=force,
            progress=run.progress,
        )
    lines = tables.of_merge(result, run.seconds, verbose=verbose)
    present.show(result.report, lines, as_json=as_json, quiet=quiet)
