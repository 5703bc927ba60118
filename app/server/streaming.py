"""Server-sent events: how a job or a training goes on, in the form that browsers read."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from app.server.hub import Listener

KEEP_ALIVE = 10.0  # seconds between two signs of life of a stream


def event(kind: str, data: Mapping[str, Any]) -> str:
    """One event; bytes become base64."""
    return f"event: {kind}\ndata: {json.dumps(dict(data), default=_text)}\n\n"


async def until_end(listener: Listener) -> AsyncIterator[str]:
    """All that is heard, up to the last event."""
    kind = ""
    while kind != "end":
        if (heard := await listener.next(KEEP_ALIVE)) is None:
            yield ": still here\n\n"
            continue
        kind = heard.kind
        yield event(kind, heard.data)


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} is no JSON")
