"""``gam-merge extract BASE TUNED -o OUT``: what fine-tuning changed, as an adapter."""

from gam_cli import _options as options


def extract(
    base: options.Model,
    tuned: options.TunedModel,
    out: options.OutDirectory,
    rank: options.NewRank = None,
    energy: options.Energy = None,
    max_rank: options.MaxRank = None,
    modules: options.Modules = None,
    base_model: options.BaseName = None,
    dtype: options.Dtype = None,
    force: options.Force = False,
    as_json: options.Json = False,
    seed: options.SketchSeed = 0,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Extract an adapter from a model and its fine-tuned version."""
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables_model as tables

    with present.running("extracting", "tensors", quiet=quiet) as run:
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
            seed=seed,
            force=force,
            progress=run.progress,
        ).report
    lines = tables.of_extract(report, out, run.seconds, verbose=verbose)
    present.show(report, lines, as_json=as_json, quiet=quiet)
