"""``gam-merge fuse BASE ADAPTER -o OUT``: an adapter into its base model."""

from time import perf_counter

from gam_cli import _options as options


def fuse(
    base: options.Model,
    adapter: options.Adapter,
    out: options.RequiredOut,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Write the base model with an adapter applied to it, file by file."""
    start = perf_counter()
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables_model as tables

    with present.progress_bar("fusing", "tensors", quiet=quiet) as progress:
        report = gm.fuse(base, adapter, out, force=force, progress=progress)
    lines = tables.of_fuse(report, out, perf_counter() - start, verbose=verbose)
    present.show(report.to_dict(), lines, as_json=as_json, quiet=quiet)
