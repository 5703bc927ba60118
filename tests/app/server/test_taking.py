"""Lines of those who submit nothing: they keep no submission waiting, few wait, and who leaves waits no more."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from fastapi import Request

from app.server.service import Service
from app.server.taking import LINES, GoneError, Line
from ldm.errors import Code, LdmError
from tests.app.server.conftest import QUICK, made
from tests.app.server.test_asking import png

PNG = {"content-type": "image/png"}


def request(leaves: asyncio.Event) -> Request:
    async def receive() -> dict[str, str]:
        await leaves.wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http"}, receive)


def test_a_line_serves_some_lets_few_wait_and_forgets_who_leaves() -> None:
    async def go() -> list[str]:
        line, leaves, stays, ends = Line(1, 2), asyncio.Event(), asyncio.Event(), asyncio.Event()
        served = list[str]()

        async def come(name: str, left: asyncio.Event) -> None:
            async with line.turn(request(left)):
                served.append(name)
                await ends.wait()

        tasks = [asyncio.ensure_future(come(name, stays)) for name in "ab"]
        gone = asyncio.ensure_future(come("c", leaves))
        await asyncio.sleep(0.01)
        with pytest.raises(LdmError, match="asked at once") as caught:
            await come("d", stays)
        assert caught.value.code is Code.BUSY and served == ["a"]
        leaves.set()
        with pytest.raises(GoneError):
            await gone
        tasks.append(asyncio.ensure_future(come("e", stays)))
        await asyncio.sleep(0.01)
        tasks[1].cancel()  # its connection ends in another way
        await asyncio.sleep(0.01)
        ends.set()
        await asyncio.gather(tasks[0], tasks[2])
        await come("f", stays)
        return served

    assert asyncio.run(go()) == ["a", "e", "f"]


@pytest.mark.loopback
@pytest.mark.parametrize("line", ["beside", "alone"])
def test_who_waits_for_an_answer_keeps_no_job_waiting(http: httpx.Client, service: Service, line: str) -> None:
    job = made(service, QUICK | {"model": "emoji"})
    blocked: threading.Lock = service.uploads.decoder._lock if line == "beside" else service.rankings._lock
    path = "/v1/recipes" if line == "beside" else f"/v1/jobs/{job.id}/ranking"
    many = sum(LINES[line])

    def ask(seconds: float = 60) -> int:
        return http.post(path, content=png() if line == "beside" else b"", headers=PNG, timeout=seconds).status_code

    with ThreadPoolExecutor(many) as threads:
        with blocked:
            asked = [threads.submit(ask) for _ in range(many - 1)]
            time.sleep(1)
            with pytest.raises(httpx.ReadTimeout):
                ask(0.5)  # the last place; who leaves it makes room
            time.sleep(0.5)
            asked.append(threads.submit(ask))
            time.sleep(0.5)
            refused = http.post(path, content=png(), headers=PNG)
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
            answer = http.post("/v1/jobs", json=QUICK, timeout=10)
            assert answer.status_code == 202
            assert http.post("/v1/tokens", json={"prompt": "a"}, timeout=10).status_code == 200
        ends = [one.result() for one in asked]
    assert ends == [422 if line == "beside" else 200] * many  # the picture holds no recipe
