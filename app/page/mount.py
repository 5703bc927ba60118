"""The page in our app: of gradio's addresses only those that it needs, under a policy that knows no other host."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Future
from contextlib import AsyncExitStack
from pathlib import Path
from threading import Lock, Thread

from fastapi import FastAPI
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.server.service import Service

ASSETS = Path(__file__).parent / "assets"
KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
# Scripts of gradio are written into its page and made from texts while it runs; where they may come from, and whom they
# may speak to, is this server alone.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; frame-src 'self'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
API = "/gradio_api"
OPEN = ("/", "/config", "/theme.css", "/favicon.ico")  # and CALLS
UNDER = ("/assets/", "/static/")
CALLS = tuple(f"{API}/{name}" for name in ("info", "queue/join", "queue/data", "run/predict"))
REFUSED = "gradio.FileData"  # a file by its path or address: the page has no use for any
MOST = 1 << 16  # bytes of a call


def add_page(app: FastAPI, service: Service) -> Page:
    """At `/`, behind everything that the app answers itself."""
    page = Page(service)

    @app.get("/page/{name}", include_in_schema=False)
    def asset(name: str) -> FileResponse:
        found = {path.name: path for path in ASSETS.iterdir() if path.suffix in KINDS}
        if name not in found:
            raise HTTPException(404, "There is no such file")
        path = found[name]
        return FileResponse(path, media_type=KINDS[path.suffix], headers={"cache-control": "no-cache"})

    app.router.routes.append(Opened("/", page))
    return page


class Opened(Mount):
    """Only where the page has something to answer: else it would hide which methods our own addresses take."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        path = scope.get("path", "")
        there = path in (*OPEN, *CALLS) or path.startswith(UNDER)
        return super().matches(scope) if there else (Match.NONE, {})


class Page:
    """Built when it is first needed: gradio takes seconds to be brought in, and the API answers before."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._made: Future[FastAPI] | None = None
        self._app: ASGIApp | None = None
        self._beginning, self._building = Lock(), asyncio.Lock()
        self._stack = AsyncExitStack()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].startswith(API) and scope["method"] == "POST":
            receive = await _checked(receive)
        await (await self._built())(scope, receive, _with_policy(send))

    def prepare(self) -> Future[FastAPI]:
        """Begins to build it, in a thread of its own; from any thread."""
        with self._beginning:
            if self._made is None:
                self._made = Future()
                Thread(target=self._build, args=(self._made,), name="ldm-page", daemon=True).start()
            return self._made

    def _build(self, made: Future[FastAPI]) -> None:
        try:
            made.set_result(_mounted(self.service))
        except BaseException as error:
            with self._beginning:
                self._made = None  # whoever asks next tries again
            made.set_exception(error)

    async def _built(self) -> ASGIApp:
        async with self._building:
            if self._app is None:
                inner = await asyncio.shield(asyncio.wrap_future(self.prepare()))
                await self._stack.enter_async_context(inner.router.lifespan_context(inner))
                self._app = inner
            return self._app


def _mounted(service: Service) -> FastAPI:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("GRADIO_TEMP_DIR", str(service.gallery.folder.parent / ".gradio"))
    service.worker.bring_in()
    import gradio as gr

    from app.page.build import page_of
    from app.page.look import theme

    inner = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    head = '<link rel="stylesheet" href="/page/page.css"><script type="module" src="/page/ldm.js"></script>'
    app: FastAPI = gr.mount_gradio_app(
        inner, page_of(service), "/", theme=theme(), head=head, footer_links=[], run_history=False, ssr_mode=False,
        pwa=False, mcp_server=False, enable_monitoring=False, show_error=True, max_file_size=1,
        favicon_path=str(ASSETS / "icon.svg"), app_kwargs={"docs_url": None, "redoc_url": None},
    )  # fmt: skip
    return app


async def _checked(receive: Receive) -> Receive:
    """A call that names a file or an address is refused before gradio sees it, for it would fetch it."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message["type"] == "http.request" and message.get("more_body", False)
        if len(body) > MOST:
            raise HTTPException(413, "The call is too large")
    if _names_a_file(body):
        raise HTTPException(422, "Files are brought to /v1/uploads")
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _names_a_file(body: bytes) -> bool:
    try:
        told = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise HTTPException(422, "The call is no JSON") from error
    left = [told]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            if one.get("_type") == REFUSED or ("path" in one and "meta" in one):
                return True
            left += one.values()
        elif isinstance(one, list):
            left += one
    return False


def _with_policy(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            dropped = (b"access-control-", b"content-security-policy")
            headers = [(k, v) for k, v in message.get("headers", ()) if not k.lower().startswith(dropped)]
            message = {**message, "headers": [*headers, (b"content-security-policy", POLICY.encode())]}
        await send(message)

    return sending
