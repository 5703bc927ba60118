"""Errors over HTTP: problem+json (RFC 9457) with what, why and fix; a bug is logged, and told without its insides."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from app.failing import told_of, without_folders
from ldm.errors import Code, LdmError

log = logging.getLogger("ldm.server")
STATUS = {
    Code.BUG: 500,
    Code.USAGE: 422,
    Code.NUMERIC: 500,
    Code.BUSY: 429,
    Code.FILE: 404,
    Code.MODEL: 422,
    Code.REFUSED: 422,
    Code.RESOURCE: 507,
    Code.DIFFERENT: 409,
}


def problem(error: LdmError, status: int | None = None, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer to whoever caused it."""
    status = STATUS[error.code] if status is None else status
    told: dict[str, Any] = {"type": "about:blank", "title": error.what, "status": status, "detail": error.why}
    told |= {"fix": error.fix, "code": error.code.name.lower()}
    return JSONResponse(told, status, headers, media_type="application/problem+json")


async def of_ldm(request: Request, error: Exception) -> JSONResponse:
    """An error that was foreseen."""
    assert isinstance(error, LdmError)
    headers = {}
    if error.code is Code.BUSY:
        seconds = await run_in_threadpool(request.app.state.service.seconds)
        headers["Retry-After"] = str(max(1, round(seconds)))
    homes = request.app.state.service.catalog.homes()
    return problem(without_folders(error, *homes), headers=headers)


async def of_http(request: Request, error: Exception) -> JSONResponse:
    """What the framework says by itself: no such address, no such method."""
    status, what = int(getattr(error, "status_code", 500)), str(getattr(error, "detail", "It failed")).rstrip(".")
    code = Code.FILE if status == 404 else Code.USAGE
    told = LdmError(code, f"{what}.", f"{request.method} is not answered at this address.", "See /docs for what is.")
    return problem(told, status, dict(getattr(error, "headers", None) or {}))


async def of_bug(request: Request, error: Exception) -> JSONResponse:
    """What nobody foresaw."""
    log.error("an error of ours", exc_info=error)
    return problem(told_of(error))
