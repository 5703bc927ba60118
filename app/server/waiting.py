"""Calls that are answered when their pictures are done, as other programs expect it. Who leaves wants them no more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from app.server.reading import client_of
from app.server.service import Service
from app.server.store import Job
from app.server.taking import GoneError, apart, left

LOOK = 5.0  # seconds between two looks at a job of which nothing is heard


async def finished(service: Service, given: Mapping[str, Any], request: Request) -> Job:
    """The job of a request when it has come to its end; its failure is an error here."""
    job = await apart(request, service.submit, given, client_of(request))
    gone = asyncio.ensure_future(left(request))
    try:
        ended = await _end(service, job.id, gone)
    except (GoneError, asyncio.CancelledError):
        await asyncio.shield(run_in_threadpool(service.cancel, job.id, False))
        raise
    finally:
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
    if (failure := ended.failure) is not None:
        raise failure
    return ended


async def _end(service: Service, name: str, gone: asyncio.Future[None]) -> Job:
    with service.hub.listener(name) as listener:
        job = await run_in_threadpool(service.jobs.job, name)
        while job.state in ("queued", "running"):
            heard = asyncio.ensure_future(listener.next(LOOK))
            both: set[asyncio.Future[Any]] = {heard, gone}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                heard.cancel()
                raise GoneError
            event = heard.result()
            if event is None or event.kind == "end":
                job = await run_in_threadpool(service.jobs.job, name)
        return job
