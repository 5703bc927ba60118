"""Who is told how a job goes on: from the worker's thread to whoever listens, each at their own pace."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal

Kind = Literal["progress", "preview", "picture", "state", "measured", "end"]
MOST = 64  # events that a slow listener may lag behind; older ones are left out, the last ones never


@dataclass(frozen=True)
class Event:
    """What happened to a job; `data` is ready for JSON."""

    kind: Kind
    data: Mapping[str, Any]


@dataclass(eq=False)
class Listener:
    """The events of one job for one listener."""

    loop: asyncio.AbstractEventLoop
    previews: bool
    _events: list[Event] = field(default_factory=list)
    _there: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, event: Event) -> None:
        """From any thread."""
        try:
            self.loop.call_soon_threadsafe(self._take, event)
        except RuntimeError:  # its loop has ended, and nobody listens any more
            return

    async def next(self, seconds: float) -> Event | None:
        """What happens next; None where nothing does for so long."""
        if not self._events:
            self._there.clear()
            try:
                await asyncio.wait_for(self._there.wait(), seconds)
            except TimeoutError:
                return None
        return self._events.pop(0)

    def _take(self, event: Event) -> None:
        if event.kind in ("progress", "preview"):  # a newer one stands for an older one
            place = event.data.get("place")
            self._events = [old for old in self._events if (old.kind, old.data.get("place")) != (event.kind, place)]
        self._events = [*self._events, event][-MOST:]
        self._there.set()


class Hub:
    """Every method may be called from any thread."""

    def __init__(self) -> None:
        self._listeners: dict[str, list[Listener]] = {}
        self._last: dict[str, Event] = {}
        self._lock = Lock()

    def tell(self, job: str, event: Event) -> None:
        with self._lock:
            if event.kind == "progress":
                self._last[job] = event
            elif event.kind == "end":
                self._last.pop(job, None)
            listeners = list(self._listeners.get(job, ()))
        for one in listeners:
            if event.kind != "preview" or one.previews:
                one.hear(event)

    def last(self, job: str) -> Mapping[str, Any] | None:
        """How far a job was when it was last heard of."""
        with self._lock:
            event = self._last.get(job)
        return None if event is None else event.data

    def watched(self, job: str) -> bool:
        """Whether somebody wants to see previews of it."""
        with self._lock:
            return any(one.previews for one in self._listeners.get(job, ()))

    @contextmanager
    def listener(self, job: str, previews: bool = False) -> Iterator[Listener]:
        """Listens from now on; to be used inside the loop that the events are read in."""
        one = Listener(asyncio.get_running_loop(), previews)
        with self._lock:
            self._listeners.setdefault(job, []).append(one)
        try:
            yield one
        finally:
            with self._lock:
                self._listeners[job].remove(one)
                if not self._listeners[job]:
                    del self._listeners[job]
