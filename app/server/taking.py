"""What callers bring is taken in few at a time: bodies lie in memory, and pictures take a thread to be decoded. What is
slow and submits nothing has lines of its own, in which few wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import anyio
from fastapi import FastAPI, Request

from ldm.errors import Code, LdmError

T = TypeVar("T")
BODIES, THREADS = 8, 4
# How many are served at once, and how many more may wait. Those of `beside` bring bodies, and leave some for others.
LINES: Mapping[str, tuple[int, int]] = {"beside": (2, 4), "words": (1, 16), "alone": (1, 4)}
SMALL = 1 << 20  # bytes


def prepare(app: FastAPI) -> None:
    """Threads of their own, so that whoever only looks never waits for those who bring pictures."""
    app.state.bodies, app.state.threads = asyncio.Semaphore(BODIES), anyio.CapacityLimiter(THREADS)
    app.state.lines = {name: Line(*told) for name, told in LINES.items()}


class GoneError(Exception):
    """The caller has closed the connection; there is nobody to answer."""


class Line:
    """So many at once; a few more wait, and whoever leaves waits no more."""

    def __init__(self, at_once: int, most: int) -> None:
        self._turns, self._most, self._waiting = asyncio.Semaphore(at_once), most, 0

    @asynccontextmanager
    async def turn(self, request: Request) -> AsyncIterator[None]:
        """The caller's own turn. The body of the request has been read."""
        if self._turns.locked():
            if self._waiting >= self._most:
                why = f"{self._waiting} callers wait for such an answer, and no more may."
                raise LdmError(Code.BUSY, "Too much is asked at once.", why, "Ask again a little later.")
            await self._wait(request)
        else:
            await self._turns.acquire()
        try:
            yield
        finally:
            self._turns.release()

    async def _wait(self, request: Request) -> None:
        coming, leaving = asyncio.ensure_future(self._turns.acquire()), asyncio.ensure_future(left(request))
        both: set[asyncio.Future[Any]] = {coming, leaving}
        self._waiting += 1
        mine = False
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not (mine := coming.done()):
                raise GoneError
        finally:
            self._waiting -= 1
            leaving.cancel()
            if not mine and not coming.cancel():  # it came while we were ended
                self._turns.release()


async def left(request: Request) -> None:
    """Returns when the caller has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def taken_in(request: Request) -> AsyncIterator[None]:
    """While a body is read and understood. Large ones wait for their turn, and their clocks do not run yet; a small one
    never waits, whoever stalls."""
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) <= SMALL:
        yield
        return
    async with request.app.state.bodies:
        yield


async def apart(request: Request, call: Callable[..., T], *given: object) -> T:
    """In one of the threads for what callers bring."""
    return await anyio.to_thread.run_sync(partial(call, *given), limiter=request.app.state.threads)


async def beside(request: Request, call: Callable[..., T], *given: object, line: str = "beside") -> T:
    """In its turn: what may take seconds and submits nothing keeps no submission waiting."""
    async with request.app.state.lines[line].turn(request):
        return await anyio.to_thread.run_sync(partial(call, *given))


async def alone(request: Request, call: Callable[..., T], *given: object) -> T:
    """After all others that are called so: what takes all cores, beside the worker, is done once at a time."""
    return await beside(request, call, *given, line="alone")
