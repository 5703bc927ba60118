"""What goes wrong between a server and its replicas: cancelled on the way, disks that are full, errors of ours."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from app.server import together
from app.server.decoding import Decoder
from app.server.dispatcher import Dispatcher
from app.server.replica import Plan, Replica, Slip, Word
from app.server.service import Service
from app.server.store import Jobs
from ldm.errors import Code, LdmError
from ldm.models.gathering import Gathering
from pipelines.pipeline import Pipeline
from tests.app.server.conftest import QUICK, Open, ended, made
from tests.app.server.test_dispatcher import EXACT, Near, Said, files, near, png  # noqa: F401
from tests.app.server.test_worker import Gate


@pytest.mark.parametrize("sent", ["_carry", "_parcels"])
def test_a_job_that_is_cancelled_while_it_is_sent_is_not_made(
    near: tuple[Service, Near],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    sent: str,
) -> None:
    """It is in its errand, and no replica has heard of that: before its uploads are read, or after."""
    service, crew = near
    told, hear = list[tuple[str, ...]](), Dispatcher._hear
    does: Callable[..., Any] = getattr(Dispatcher, sent)

    def cancelled(self: Dispatcher, errand: Any, given: Any) -> Any:
        done = does(self, errand, given) if sent == "_parcels" else None
        assert [service.cancel(name).state for name in errand.left] == ["cancelled"]
        return does(self, errand, given) if sent == "_carry" else done

    def heard(self: Dispatcher, errand: Any, *word: Any) -> None:
        told.append(word)
        hear(self, errand, *word)

    monkeypatch.setattr(Dispatcher, "_hear", heard)
    monkeypatch.setattr(Dispatcher, sent, cancelled)
    job = ended(service, service.submit(EXACT | {"steps": 50}, "me"))
    until = time.monotonic() + 60
    while service.worker._carrying():
        assert time.monotonic() < until
        time.sleep(0.01)
    assert [what for what, *_ in told if what != "end"] == [] and job.state == "cancelled"
    assert crew.errands == ([[job.id]] if sent == "_parcels" else [])


class Late(Near):
    """There is no room for them."""

    def begin(self, ending: Callable[[], bool]) -> Near:
        while not ending():
            time.sleep(0.01)
        return self


def test_a_job_is_cancelled_also_while_it_is_queued_again(open_service: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_service(replicas=Late) as service:
        job = service.submit(EXACT, "me")
        assert service.jobs.next() is not None
        withdraw = Jobs.withdraw

        def lost(self: Jobs, name: str) -> bool:
            """Its replica is lost after the look whether it waits."""
            withdrawn = withdraw(self, name)
            self.again(name)
            return withdrawn

        monkeypatch.setattr(Jobs, "withdraw", lost)
        assert service.cancel(job.id).state == "cancelled"


def test_where_replicas_have_no_room_jobs_wait_and_the_server_ends_at_once(open_service: Open) -> None:
    with open_service(replicas=Late) as service:
        job = service.submit(EXACT, "me")
        time.sleep(0.1)
        assert service.jobs.job(job.id).state == "queued" and service.worker.alive
        began = time.monotonic()
    assert time.monotonic() - began < 10 and not service.worker.alive


def full(does: Callable[..., Any], times: int) -> Callable[..., Any]:
    """It cannot be done so many times, and then it can."""
    left = list(range(times))

    def call(*given: Any) -> Any:
        if left:
            left.pop()
            raise LdmError(Code.RESOURCE, "It could not be written.", "No space left on device.", "Free some.")
        return does(*given)

    return call


def test_a_full_disk_leaves_no_job_running(
    near: tuple[Service, Near],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end of a job cannot be written down, nor that it is queued again for that."""
    service, crew = near
    monkeypatch.setattr(Jobs, "end", full(Jobs.end, 1))
    monkeypatch.setattr(Jobs, "again", full(Jobs.again, 2))
    job = ended(service, service.submit(EXACT, "me"), 30)
    assert job.state == "done" and len(files(service)) == 1 and crew.errands == [[job.id]] * 2


def held_back(crews: list[Near], plan: Plan, folder: Path) -> Near:
    """A crew of one, noted; it makes nothing until its `there` is set."""
    crew = Near(plan, folder)
    crew.most = 1
    crew.there.clear()
    crews.append(crew)
    return crew


def test_what_nobody_foresaw_fails_what_is_under_way_and_no_others(
    open_service: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What had not begun is queued again, and another replica takes it; the log of the server says what it was."""
    monkeypatch.setattr(together, "MOST", 1)  # the first one alone has begun
    turn, crews = Gathering.turn, list[Near]()

    def once(self: Gathering[Any], heard: Any) -> None:
        monkeypatch.setattr(Gathering, "turn", turn)
        raise ZeroDivisionError("of the network")

    monkeypatch.setattr(Gathering, "turn", once)

    with open_service(replicas=partial(held_back, crews)) as service:
        jobs = [service.submit(QUICK | {"seed": n}, "me") for n in range(3)]
        crews[0].there.set()
        first, *others = [ended(service, job) for job in jobs]
    assert first.state == "failed" and first.error is not None and first.error["code"] == "bug"
    assert "of the network" not in str(first.error) and "ZeroDivisionError: of the network" in caplog.text
    assert f"job {first.id} failed on a replica" in caplog.text
    assert [job.state for job in others] == ["done"] * 2
    assert crews[0].errands == [[job.id for job in jobs], [job.id for job in others]]


def test_a_replica_on_which_a_job_failed_for_a_bug_ends_what_it_makes_and_another_takes_its_place(
    open_service: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, make, used, crews = Pipeline.run, Replica._make, list[Replica](), list[Near]()

    def odd(pipeline: Pipeline, request: Any) -> Any:
        if request.prompt == "odd":
            raise ZeroDivisionError
        yield from run(pipeline, request)

    def noted(self: Replica, *given: Any) -> None:
        used.append(self)
        make(self, *given)

    monkeypatch.setattr(Pipeline, "run", odd)
    monkeypatch.setattr(Replica, "_make", noted)

    with open_service(replicas=partial(held_back, crews)) as service:
        jobs = [service.submit(QUICK | {"prompt": prompt, "steps": 9}, "me") for prompt in ("a", "odd", "b")]
        crews[0].there.set()
        assert [ended(service, job).state for job in jobs] == ["done", "failed", "done"]
        last = made(service, QUICK)
    broken, well = used
    assert crews[0].errands == [[job.id for job in jobs], [last.id]] and broken is not well
    with pytest.raises(RuntimeError):
        broken.check_health()
    words = SimpleQueue[Word | None]()
    make(broken, [(last, {})], words, Said({"": Slip()}, ""))  # until then it takes nothing on
    assert words.get_nowait() is None


def test_a_picture_that_cannot_be_read_fails_its_job_alone_and_no_replica_writes_one(
    near: tuple[Service, Near],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    service, crew = near
    given = QUICK | {"image": service.uploads.add(png()).id, "strength": 0.5}
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    assert made(service, given).pictures

    def exhausted(*_: Any) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Decoder, "_begun", exhausted)
    crew.most = 1
    with monkeypatch.context() as patched:
        gate = Gate(patched)
        busy = service.submit(EXACT, "me")
        gate.wait()
        jobs = [service.submit(one, "me") for one in (given, QUICK)]
        gate.go(100)
        assert [ended(service, job).state for job in (busy, *jobs)] == ["done", "failed", "done"]
    assert crew.errands[-2:] == [[job.id for job in jobs], [jobs[1].id]]
