"""``gam-merge inspect A``: what one adapter holds."""

from itertools import chain

from gam_cli import _options as options


def inspect(
    source: options.Source,
    base: options.Base = None,
    alpha: options.OneAlpha = None,
    by: options.By = options.GroupBy.type,
    plot: options.Plot = None,
    html: options.Html = None,
    as_json: options.Json = False,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Inspect one adapter: ranks, norms, spectra, defects, and what a merge would refuse."""
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables_inspect as tables

    with present.running("reading", "modules", quiet=quiet) as run:
        inspection = gm.inspect(
            source, base_model=base, alpha=alpha, device=device, progress=run.progress
        )
    written = present.save_documents(inspection, plot=plot, html=html)
    lines = chain(tables.of_inspection(inspection, by), written)
    present.show(inspection, lines, as_json=as_json, quiet=quiet)
