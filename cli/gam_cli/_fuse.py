"""``gam-merge fuse BASE ADAPTER -o OUT``: an adapter into its base model."""

from gam_cli import _options as options


def fuse(
    base: options.Model,
    adapter: options.Adapter,
    out: options.OutDirectory,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Apply an adapter to its base model, file by file."""
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables_model as tables

    with present.running("fusing", "tensors", quiet=quiet) as run:
        report = gm.fuse(base, adapter, out, force=force, progress=run.progress)
    lines = tables.of_fuse(report, out, run.seconds, verbose=verbose)
    present.show(report, lines, as_json=as_json, quiet=quiet)
