"""Connections that ask slowly are closed: uvicorn itself waits for a head as long as its sender likes."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from app.server.limits import Limits


def patient(limits: Limits) -> type[H11Protocol]:
    """The protocol with these limits, as uvicorn's configuration takes it."""

    class Patient(H11Protocol):
        """A connection says something within `idle_seconds`, and the head of its request within `header_seconds`."""

        _limit: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.close()
                return
            self._close_after(limits.idle_seconds)

        def data_received(self, data: bytes) -> None:
            if not self._asked() and (self._limit is None or self._waits_for_first):
                self._close_after(limits.header_seconds, first=False)
            super().data_received(data)
            if self._asked():
                self._relax()

        def connection_lost(self, exc: Exception | None) -> None:
            self._relax()
            super().connection_lost(exc)

        def _asked(self) -> bool:
            """Whether the head of a request is there that has no whole answer yet."""
            return self.cycle is not None and not self.cycle.response_complete

        def _close_after(self, seconds: float, first: bool = True) -> None:
            self._relax()
            self._waits_for_first = first
            self._limit = self.loop.call_later(seconds, self._late)

        def _relax(self) -> None:
            if self._limit is not None:
                self._limit.cancel()
                self._limit = None

        def _late(self) -> None:
            if not self._asked() and not self.transport.is_closing():
                self.transport.close()

    return Patient
