"""The app as a server runs it: the APIs, their documentation, health and numbers, all behind the guard."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException

from app.page.mount import add_page
from app.server import (
    a1111,
    a1111_controlnet,
    api,
    beside_api,
    families_api,
    grids_api,
    models_api,
    openai,
    pictures_api,
    uploads_api,
)
from app.server.api_docs import page
from app.server.guard import Doors, Guard, RefusedError, refusal
from app.server.learning import api as learning_api
from app.server.metrics import metrics
from app.server.problems import of_bug, of_http, of_ldm, problem
from app.server.service import Service
from app.server.taking import GoneError, prepare
from ldm.errors import Code, LdmError
from ldm.version import __version__

TITLE = "ldm"
SUMMARY = "Pictures from prompts, on your own machine."


def app_of(service: Service) -> FastAPI:
    """Without a guard around it; `guarded` has one."""
    app = FastAPI(title=TITLE, version=__version__, summary=SUMMARY, docs_url=None, redoc_url=None)
    app.state.service = service
    prepare(app)
    for router in (
        api.router, uploads_api.router, models_api.router, beside_api.router, pictures_api.router, grids_api.router,
        openai.router, families_api.router, learning_api.router, a1111.router, a1111_controlnet.router,
    ):  # fmt: skip
        app.include_router(router)
    app.add_exception_handler(LdmError, of_ldm)
    app.add_exception_handler(RefusedError, _of_refused)
    app.add_exception_handler(GoneError, _of_nobody)
    app.add_exception_handler(RequestValidationError, _of_wrong)
    app.add_exception_handler(HTTPException, of_http)
    app.add_exception_handler(Exception, of_bug)

    @app.get("/healthz", tags=["server"], summary="Whether it works")
    async def healthz() -> JSONResponse:
        alive = service.worker.alive
        return JSONResponse({"status": "ok" if alive else "the worker has ended"}, 200 if alive else 503)

    @app.get("/metrics", tags=["server"], summary="Numbers, as Prometheus reads them")
    def numbers() -> Response:
        return Response(metrics(service), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()))

    return app


def guarded(service: Service, doors: Doors, early: bool = False) -> Guard:
    """With the page at `/`, which is built when it is first asked for; `early`: now, while nobody waits for it."""
    app = app_of(service)
    site = add_page(app, service)
    if early:
        site.prepare()
    return Guard(app, doors, service.limits)


async def _of_refused(request: Request, error: Exception) -> Any:
    assert isinstance(error, RefusedError)
    return refusal(error)


async def _of_nobody(request: Request, error: Exception) -> Response:
    """The caller has left: nothing is sent, for there is nobody to read it."""
    return Response(status_code=499)


async def _of_wrong(request: Request, error: Exception) -> JSONResponse:
    """A parameter of an address that is none."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()[0]
    name = ".".join(str(part) for part in found["loc"][1:]) or "The request"
    return problem(LdmError(Code.USAGE, f"{name} is not allowed.", f"{found['msg']}.", "See /docs for what is."))
