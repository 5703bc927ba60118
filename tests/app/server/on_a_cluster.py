"""A server and a cluster in one process, which holds what the server has in its hands; `test_replicas` runs it. The
guard of tests is not there: Ray asks for the address of its machine."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from app.server import crew
from app.server.crew import RayCrew, Wanted, cluster
from app.server.dispatcher import Dispatcher
from app.server.limits import Limits
from app.server.replica import Replica
from app.server.service import Service, opened
from tests.app.server.conftest import QUICK, ended, made

EXACT = QUICK | {"exact": True}


class Odd(Replica):
    """It has a bug."""

    def _made(self, desk: Any, news: Any) -> None:
        if any(job.asked["prompt"] == "odd" for job in desk._jobs.values()):
            raise ZeroDivisionError("of a replica")
        super()._made(desk, news)


class Said(logging.Handler):
    """What the server logs."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += f"{record.getMessage()}\n"


class Everything:
    """Another program, that has all processors."""

    def there(self) -> bool:
        return True


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def words_of(process: psutil.Process) -> list[str]:
    """Its command line; none of one that has ended meanwhile."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def replicas() -> set[int]:
    there = psutil.Process().children(recursive=True)
    return {one.pid for one in there if any(word.startswith("ray::ServeReplica") for word in words_of(one)[:1])}


def waits_for_room(start: Callable[..., Any], ray: Any, cpus: int, said: Said) -> None:
    """Others have all of it: the server says so, keeps jobs, ends when it is told to, and begins when they are gone."""
    other = ray.remote(num_cpus=cpus)(Everything).remote()
    assert ray.get(other.there.remote())
    with start() as service:
        job = service.submit(EXACT, "me")
        until(lambda: "wait for room" in said.text)
        assert service.jobs.job(job.id).state == "queued" and service.worker.alive
        began = time.monotonic()
    assert time.monotonic() - began < 10, "it waits for room while it ends"
    with start() as service:
        ray.kill(other)
        assert ended(service, job).state == "done"


def is_cancelled_while_it_is_sent(service: Service) -> None:
    """The replica hears of it, though that was said before it was sent there; it may have begun when it does."""
    told, hear, parcels = list[tuple[Any, ...]](), Dispatcher._hear, Dispatcher._parcels

    def heard(self: Dispatcher, errand: Any, *word: Any) -> None:
        told.append(word)
        hear(self, errand, *word)

    def cancelled(self: Dispatcher, errand: Any, names: Any) -> Any:
        found = parcels(self, errand, names)
        assert [service.cancel(name).state for name in names] == ["cancelled"]
        return found

    Dispatcher._hear, Dispatcher._parcels = heard, cancelled  # type: ignore[method-assign]
    job = service.submit(EXACT | {"steps": 100, "count": 4, "batch": 1}, "me")
    until(lambda: service.jobs.job(job.id).state == "cancelled" and not service.worker._carrying())  # type: ignore
    Dispatcher._hear, Dispatcher._parcels = hear, parcels  # type: ignore[method-assign]
    words = [what for what, *_ in told]
    assert words[-1:] == ["end"] and "picture" not in words and len(words) < 20, words


def meets_a_bug(service: Service, said: Said) -> None:
    """Its job fails, the log of the server has the reason, and another replica takes the place of that one."""
    before = replicas()
    odd = ended(service, service.submit(EXACT | {"prompt": "odd"}, "me"))
    assert odd.state == "failed" and odd.error is not None and odd.error["code"] == "bug"
    assert "ZeroDivisionError: of a replica" in said.text
    assert made(service, EXACT).pictures and len(before) == 1 and not replicas() & before


def main(folder: Path) -> None:
    said = Said()
    logging.getLogger("ldm.server").addHandler(said)
    crew.PATIENCE = 1.0
    crew.Replica = Odd  # type: ignore
    with cluster(Wanted("local", 1, 512, 1)) as place:
        assert place is not None
        cpus = int(place.ray.cluster_resources()["CPU"])
        assert place.wanted.most == cpus < 512, "as many errands as replicas fit, and no more"
        start = partial(opened, folder, Limits(), replicas=partial(RayCrew, place))
        waits_for_room(start, place.ray, cpus, said)
        with start() as service:
            made(service, EXACT)
            is_cancelled_while_it_is_sent(service)
            meets_a_bug(service, said)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
