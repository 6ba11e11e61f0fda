"""``gam-merge compare A B``: what adapters have in common, and what a merge would make of them."""

from itertools import chain

from gam_cli import _options as options


def compare(
    sources: options.Sources,
    weights: options.Weights = None,
    anchor: options.Anchor = "0",
    base: options.Base = None,
    alpha: options.Alpha = None,
    allow_base_mismatch: options.AllowBaseMismatch = False,
    by: options.By = options.GroupBy.type,
    seed: options.SignSeed = 0,
    plot: options.Plot = None,
    html: options.Html = None,
    as_json: options.Json = False,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Compare adapters before a merge (overlaps, cosines, norms), and recommend a method."""
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables_compare as tables

    with present.running("comparing", "modules", quiet=quiet) as run:
        comparison = gm.compare(
            sources,
            weights=weights or None,
            anchor=anchor,
            base_model=base,
            alpha=alpha or None,
            allow_base_mismatch=allow_base_mismatch,
            device=device,
            seed=seed,
            progress=run.progress,
        )
    written = present.save_documents(comparison, plot=plot, html=html)
    lines = chain(tables.of_comparison(comparison, by), written)
    present.show(comparison, lines, as_json=as_json, quiet=quiet)
