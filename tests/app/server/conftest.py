"""A server in this process: the service with its worker, and the service behind a real socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from app.server.guard import LOOPBACK, Doors
from app.server.limits import Limits
from app.server.serve import configured, listening
from app.server.service import Service, opened
from app.server.store import Job

LOCAL = Doors(frozenset(LOOPBACK))
QUICK = {"model": "scenes", "prompt": "a red circle", "steps": 2, "seed": 1}
Open = Callable[..., AbstractContextManager[Service]]


@pytest.fixture
def open_service(tmp_path: Path) -> Open:
    """`with open_service() as service`: again and again in one folder, as a server that is restarted."""

    def call(limits: Limits | None = None, **more: Any) -> AbstractContextManager[Service]:
        return opened(tmp_path / "server", limits or Limits(), **more)

    return call


@pytest.fixture
def service(open_service: Open) -> Iterator[Service]:
    with open_service() as one:
        yield one


def ended(service: Service, job: Job, seconds: float = 120) -> Job:
    """The job when it has come to its end."""
    until = time.monotonic() + seconds
    while (now := service.jobs.job(job.id)).state in ("queued", "running"):
        assert time.monotonic() < until, f"{now} does not end"
        time.sleep(0.01)
    return now


def made(service: Service, given: Mapping[str, Any], client: str = "me") -> Job:
    job = ended(service, service.submit(given, client))
    assert job.state == "done", job.error
    return job


@contextmanager
def listened(service: Service, doors: Doors = LOCAL) -> Iterator[httpx.Client]:
    """The service over HTTP, as `ldm serve` runs it."""
    with listening("127.0.0.1", 0) as own:
        port = own.getsockname()[1]
        server = uvicorn.Server(configured(service, doors))
        thread = threading.Thread(target=server.run, args=([own],), daemon=True)
        thread.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with listened(service) as client:
        yield client


def submitted(http: httpx.Client, **given: Any) -> str:
    """The id of a new job."""
    answer = http.post("/v1/jobs", json=QUICK | given)
    assert answer.status_code == 202, answer.text
    name: str = answer.json()["id"]
    return name
