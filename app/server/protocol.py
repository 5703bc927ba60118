"""Connections that ask slowly are closed: uvicorn itself waits for a head as long as its sender likes."""

from __future__ import annotations

import asyncio
import socket

from uvicorn.protocols.http.h11_impl import H11Protocol

from app.server.limits import Limits


def at_once(transport: asyncio.Transport) -> None:
    """An answer is sent as it is written. Else its body waits until the other side says that it has the head, which
    it does 40 ms later; asyncio sees to that only for sockets that name their protocol, and bound ones name none."""
    transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def patient(limits: Limits) -> type[H11Protocol]:
    """The protocol with these limits, as uvicorn's configuration takes it."""

    class Patient(H11Protocol):
        """A connection says something within `idle_seconds`, and the head of its request within `header_seconds`."""

        _limit: asyncio.TimerHandle | None = None
        _stuck: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            at_once(transport)
            if len(self.connections) > limits.connections:
                transport.abort()
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
            self._move_on()
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
            if not self._asked():
                self.transport.abort()

        def pause_writing(self) -> None:
            """The other side reads nothing: what it asked for is not kept for ever."""
            super().pause_writing()
            self._stuck = self.loop.call_later(limits.body_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            self._move_on()
            super().resume_writing()

        def timeout_keep_alive_handler(self) -> None:
            """Closing waits until all is read, which is not waited for either."""
            super().timeout_keep_alive_handler()
            self._move_on()
            self._stuck = self.loop.call_later(limits.body_seconds, self.transport.abort)

        def _move_on(self) -> None:
            if self._stuck is not None:
                self._stuck.cancel()
                self._stuck = None

    return Patient
