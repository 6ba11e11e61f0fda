"""``gam-merge compare A B``: what adapters have in common, and what a merge would make of them."""

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
    present.show(found.to_dict(), tables.of_comparison(found, by.value), as_json=as_json, quiet=quiet)
