"""What gradio's own clients can call: the one thing that the page is for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import gradio as gr
from starlette.concurrency import run_in_threadpool

from app.failing import told_of, without_folders
from app.generate import DEFAULT_MODEL
from app.server.service import Service, waited
from app.server.store import Job
from ldm.errors import Code, LdmError

LOOK = 30.0  # seconds between two looks at a job of which nothing is heard
log = logging.getLogger("ldm.server")


def pictures_of(service: Service) -> Callable[..., Coroutine[Any, Any, dict[str, Any]]]:
    """A function with types, as gradio wants it."""

    async def generate(
        request: gr.Request,
        prompt: str,
        model: str = DEFAULT_MODEL,
        seed: int = -1,
        count: int = 1,
        settings: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Makes pictures and answers when they are there, as GET /v1/jobs/ID does: their addresses are in `pictures`.
        `settings` has any other fields of POST /v1/jobs."""
        try:
            more = settings if isinstance(settings, dict) else {}
            given = {**more, "prompt": prompt, "model": model, "seed": seed, "count": count}
            address = request.client.host if request.client else ""
            job = await run_in_threadpool(service.submit, given, f"{address} gradio")
            ended = await _ended(service, job)
            return await run_in_threadpool(service.told, ended)
        except Exception as error:
            if not isinstance(error, LdmError):
                log.exception("a call of a gradio client failed")
            told = without_folders(told_of(error), *service.catalog.homes())
            raise gr.Error(f"{told.what} {told.why} {told.fix}", print_exception=False) from None

    return generate


async def _ended(service: Service, job: Job) -> Job:
    """Whoever leaves wants it no more."""
    try:
        while job.state in ("queued", "running"):
            if not service.worker.alive:
                raise LdmError(Code.RESOURCE, "Nothing can be made now.", "The worker has ended.", "Start it again.")
            job = await waited(service, job.id, LOOK)
        return job
    except asyncio.CancelledError:
        await asyncio.shield(run_in_threadpool(service.cancel, job.id, False))
        raise
