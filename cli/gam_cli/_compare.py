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
    by: options.Parts = options.Part.type,
    seed: options.Seed = 0,
    plot: options.Plot = None,
    html: options.Html = None,
    as_json: options.Json = False,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Compare adapters before a merge: overlap against chance, cosines, norms, and which method they speak for."""
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables_compare as tables

    with present.progress_bar("comparing", "modules", quiet=quiet) as progress:
        found = gm.compare(
            sources,
            weights=weights or None,
            anchor=anchor,
            base_model=base,
            alpha=alpha or None,
            allow_base_mismatch=allow_base_mismatch,
            device=device,
            seed=seed,
            progress=progress,
        )
    written = present.save_documents(found, plot=plot, html=html)
    lines = chain(tables.of_comparison(found, by.value), written)
    present.show(found.to_dict(), lines, as_json=as_json, quiet=quiet)
