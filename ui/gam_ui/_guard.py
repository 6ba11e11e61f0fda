"""What of the web server may be reached, and how much may be sent to it."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from gam_ui._limits import Limits
from gam_ui._visitors import size_of

_API = "/gradio_api/"
_UPLOAD = f"{_API}upload"
# What the page itself asks for. Not among them: files, proxies of other servers, the interface
# for programs.
_OPEN = (
    *("queue", "heartbeat", "upload", "upload_progress", "startup-events"),
    *("app_id", "cancel", "reset", "info", "config", "theme.css"),
)


class Guard:
    """Middleware: refuses addresses that the page does not use, and uploads beyond the limits."""

    def __init__(self, app: ASGIApp, root: Path, limits: Limits) -> None:
        self.app = app
        self.root = root
        self.limits = limits
        self._on_the_way = 0  # bytes of uploads that have begun

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        path = request.url.path
        if _API in path and path.partition(_API)[2].partition("/")[0] not in _OPEN:
            await PlainTextResponse("forbidden", 403)(scope, receive, send)
        elif path.endswith(_UPLOAD):
            await self._upload(request, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _upload(self, request: Request, receive: Receive, send: Send) -> None:
        length = request.headers.get("content-length", "")
        if not length.isdecimal():
            await PlainTextResponse("length required", 411)(request.scope, receive, send)
            return
        nbytes = int(length)
        if nbytes > self.limits.visitor:
            await PlainTextResponse("too large", 413)(request.scope, receive, send)
            return
        if size_of(self.root) + self._on_the_way + nbytes > self.limits.disk:
            await PlainTextResponse("the server is full", 507)(request.scope, receive, send)
            return
        self._on_the_way += nbytes
        try:
            await self.app(request.scope, receive, send)
        finally:
            self._on_the_way -= nbytes
