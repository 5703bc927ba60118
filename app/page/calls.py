"""What gradio's own clients can call: the one thing that the page is for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gradio as gr

from app.generate import DEFAULT_MODEL
from app.server.service import Service
from ldm.errors import LdmError

LOOK = 0.05  # seconds between two looks at a job


def pictures_of(service: Service) -> Callable[..., dict[str, Any]]:
    """A function with types, as gradio wants it."""

    def generate(
        prompt: str, model: str = DEFAULT_MODEL, seed: int = -1, count: int = 1, settings: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Makes pictures and answers when they are there, as GET /v1/jobs/ID does: their addresses are in `pictures`.
        `settings` has any other fields of POST /v1/jobs."""
        given = {**(settings or {}), "prompt": prompt, "model": model, "seed": seed, "count": count}
        try:
            job = service.submit(given, "gradio")
            while job.state in ("queued", "running"):
                time.sleep(LOOK)
                job = service.jobs.job(job.id)
        except LdmError as error:
            raise gr.Error(f"{error.what} {error.why} {error.fix}", print_exception=False) from error
        return service.told(job)

    return generate
