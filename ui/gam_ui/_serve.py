"""``serve``: the page on a web server."""

import os
import signal
import tempfile
import threading
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr
from huggingface_hub import constants
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from gam_ui._guard import Guard
from gam_ui._limits import Limits
from gam_ui._page import page
from gam_ui._visitors import DOWNLOAD, Visitors

_SWEEPS = 5.0  # seconds between them
_FONTS = ["system-ui", "sans-serif"]  # of the visitor's system: nothing is loaded from elsewhere


def serve(
    host: str | None = None,
    port: int | None = None,
    *,
    limits: Limits | None = None,
    open_browser: bool = False,
) -> None:
    """Serve the page until the process is interrupted or terminated.

    No token of this machine is used: adapters of the Hub must be public, and who pushes gives a
    token. Downloads from the Hub are kept as long as the server has visitors.

    Args:
        host: the address; by default GRADIO_SERVER_NAME, or else this machine alone.
        port: the port; by default GRADIO_SERVER_PORT, or else the first free one from 7860.
        limits: what visitors may take up.
        open_browser: show the page in a browser.
    """
    limits = limits or Limits()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves by way of the cleaning
    with tempfile.TemporaryDirectory(prefix="gam-merge-ui-") as folder:
        root = Path(folder).resolve()
        visitors = Visitors(root, limits)
        os.environ["GRADIO_TEMP_DIR"] = str(visitors.uploads)
        constants.HF_HUB_DISABLE_IMPLICIT_TOKEN = True
        constants.HF_HUB_CACHE = str(visitors.downloads)
        closed = threading.Event()
        sweeper = threading.Thread(target=_sweep, args=(visitors, closed), daemon=True)
        sweeper.start()
        try:
            page(visitors).launch(
                server_name=host,
                server_port=port,
                inbrowser=open_browser,
                max_file_size=limits.file,
                app_kwargs=_routes(visitors),
                theme=gr.themes.Default(font=_FONTS, font_mono=["ui-monospace", "monospace"]),
                css=files("gam_ui").joinpath("page.css").read_text("utf-8"),
                footer_links=[],
                share=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                run_history=False,
                enable_monitoring=False,
            )
        finally:
            closed.set()
            sweeper.join()


def _routes(visitors: Visitors) -> dict[str, Any]:
    """Return the arguments of the web application: its guard, and the links to merges."""

    def download(request: Request) -> Response:
        archive = visitors.download_of(request.path_params["key"])
        if archive is None or not archive.is_file():
            return PlainTextResponse("not found: merge again", 404)
        return FileResponse(archive, filename=DOWNLOAD)

    return {
        "routes": [Route("/download/{key}", download)],
        "middleware": [Middleware(Guard, root=visitors.root, limits=visitors.limits)],
        "docs_url": None,
        "redoc_url": None,
        "openapi_url": None,
    }


def _sweep(visitors: Visitors, closed: threading.Event) -> None:
    """Remove what nobody needs any more, until the server is closed."""
    while not closed.wait(_SWEEPS):
        visitors.sweep()
