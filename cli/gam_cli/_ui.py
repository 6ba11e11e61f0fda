"""``gam-merge ui``: the page, for merges in a browser."""

from gam_cli import _options as options


def ui(
    host: options.Host = "127.0.0.1",
    port: options.Port = None,
    no_browser: options.NoBrowser = False,
) -> None:
    """Open a page in the browser that adds, inspects, compares and merges adapters."""
    import gam_merge as gm

    try:
        import gam_ui
    except ImportError as error:
        raise gm.GamMergeError(
            f"the page needs {error.name}; pip install 'gam-merge[ui]'"
        ) from error
    gam_ui.serve(host, port, open_browser=not no_browser)
