"""What callers bring is taken in few at a time: bodies lie in memory, and pictures take a thread to be decoded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import anyio
from fastapi import FastAPI, Request

T = TypeVar("T")
BODIES, THREADS = 8, 4
SMALL = 1 << 20  # bytes


def prepare(app: FastAPI) -> None:
    """Threads of their own, so that whoever only looks never waits for those who bring pictures."""
    app.state.bodies, app.state.threads = asyncio.Semaphore(BODIES), anyio.CapacityLimiter(THREADS)
    app.state.alone = anyio.CapacityLimiter(1)


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


async def alone(request: Request, call: Callable[..., T], *given: object) -> T:
    """After all others that are called so: what takes all cores, beside the worker, is done once at a time."""
    return await anyio.to_thread.run_sync(partial(call, *given), limiter=request.app.state.alone)
