"""``gam-merge inspect A``: what one adapter holds."""

from itertools import chain

from gam_cli import _options as options


def inspect(
    source: options.Source,
    base: options.Base = None,
    alpha: options.OneAlpha = None,
    by: options.Parts = options.Part.type,
    plot: options.Plot = None,
    html: options.Html = None,
    as_json: options.Json = False,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Look at one adapter: ranks, norms, spectra, damage, and what a merge would refuse."""
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables_inspect as tables

    with present.progress_bar("reading", "modules", quiet=quiet) as progress:
        found = gm.inspect(source, base_model=base, alpha=alpha, device=device, progress=progress)
    written = present.save_documents(found, plot=plot, html=html)
    lines = chain(tables.of_inspection(found, by.value), written)
    present.show(found.to_dict(), lines, as_json=as_json, quiet=quiet)
