"""``gam-merge extract BASE TUNED -o OUT``: what fine-tuning changed, as an adapter."""

from time import perf_counter

from gam_cli import _options as options


def extract(
    base: options.Model,
    tuned: options.TunedModel,
    out: options.RequiredOut,
    rank: options.NewRank = None,
    energy: options.Energy = None,
    max_rank: options.MaxRank = None,
    modules: options.Modules = None,
    base_model: options.BaseName = None,
    dtype: options.Dtype = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Extract an adapter from a model and its fine-tuned version."""
    start = perf_counter()
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables_model as tables

    with present.progress_bar("extracting", "tensors", quiet=quiet) as progress:
        report = gm.extract(
            base,
            tuned,
            rank=rank,
            energy=energy,
            max_rank=max_rank,
            out=out,
            modules=modules or None,
            base_model=base_model,
            dtype=dtype,
            force=force,
            progress=progress,
        ).report
    lines = tables.of_extract(report, out, perf_counter() - start, verbose=verbose)
    present.show(report.to_dict(), lines, as_json=as_json, quiet=quiet)
