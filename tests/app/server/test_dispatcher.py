"""Jobs made elsewhere: replicas that are real, in this process, so that they can be lost, slow or missing at will."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from PIL import Image

from app.server import dispatcher
from app.server.gallery import Gallery
from app.server.hub import Hub
from app.server.replica import Mailbox, Parcel, Plan, Replica, Slip, Word, _taken
from app.server.service import Service
from app.server.store import TRIES, Jobs
from ldm.errors import Code, LdmError
from pipelines.recipe import read_recipe
from tests.app.server.conftest import QUICK, Open, ended, made
from tests.app.server.test_worker import Gate, gate  # noqa: F401

EXACT = QUICK | {"exact": True}


class Near:
    """Two replicas; `lose` says of each word of each errand (from 1) whether its replica dies before it."""

    most = 2

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.slips: dict[str, Slip | None] = {}
        self.errands = list[list[str]]()
        self.lose: Callable[[int, int, Word | None], bool] = lambda errand, word, told: False
        self.there = threading.Event()
        self.there.set()
        self._free: SimpleQueue[Replica] = SimpleQueue()

    def begin(self, ending: Callable[[], bool]) -> Near:
        while not self.there.wait(0.01) and not ending():
            pass
        for _ in range(self.most):
            self._free.put(Replica(self.plan, 1))
        return self

    def end(self) -> None:
        """They end with the test."""

    def tell(self, errand: str, slip: Slip | None) -> None:
        self.slips[errand] = slip

    def make(self, errand: str, parcels: Sequence[Parcel]) -> Iterator[list[Word]]:
        self.slips.setdefault(errand, Slip())
        self.errands.append([job.id for job, _ in parcels])
        number, count = len(self.errands), 0
        if self.lose(number, 0, None):
            raise ConnectionError("There is no cluster.")
        replica, words = self._free.get(), SimpleQueue[Word | None]()
        thread = threading.Thread(target=replica._make, args=(parcels, words, Said(self.slips, errand)))
        thread.start()
        try:
            while said := _taken(words):
                for word in said:
                    count += 1
                    if self.lose(number, count, word):
                        raise ConnectionError("It died.")
                    yield [word]
        finally:
            self.slips[errand] = Slip(ending=True)
            thread.join()
            self._free.put(well(replica, self.plan))


def well(replica: Replica, plan: Plan) -> Replica:
    """As Ray Serve does: another one in the place of one that is not."""
    try:
        replica.check_health()
    except RuntimeError:
        return Replica(plan, 1)
    return replica


class Said:
    """What a server says of an errand, heard at once."""

    def __init__(self, slips: Mapping[str, Slip | None], errand: str) -> None:
        self._slip = lambda: slips.get(errand) or Slip(ending=True)

    def ending(self) -> bool:
        return self._slip().ending

    def unwanted(self) -> dict[str, bool]:
        return dict(self._slip().unwanted)

    def more(self) -> Sequence[Parcel]:
        return self._slip().more

    def watched(self, job: str) -> bool:
        return job in self._slip().watched


@pytest.fixture
def near(open_service: Open, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Service, Near]]:
    monkeypatch.setattr(dispatcher, "PAUSE", 0.01)
    crews = list[Near]()

    def crew(plan: Plan, folder: Path) -> Near:
        crews.append(Near(plan, folder))
        return crews[-1]

    with open_service(replicas=crew) as service:
        yield service, crews[0]


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "PNG")
    return file.getvalue()


def files(service: Service) -> list[str]:
    folder = service.gallery.folder
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_pictures_are_those_of_a_worker(open_service: Open, near: tuple[Service, Near], tmp_path: Path) -> None:
    service, crew = near
    done = [ended(service, job) for job in [service.submit(EXACT | {"seed": n, "count": 2}, "me") for n in range(4)]]
    assert [job.state for job in done] == ["done"] * 4 and sorted(map(len, crew.errands)) == [1] * 4
    assert len(files(service)) == 8 and service.worker.busy_seconds > 0
    from app.server.service import opened

    with opened(tmp_path / "other", service.limits) as other:
        for job in done:
            wanted = made(other, dict(job.asked))
            assert [m.told for m in wanted.pictures] == [m.told for m in job.pictures]
            one, two = (read_recipe(where.gallery.path(of, 1)) for where, of in ((service, job), (other, wanted)))
            assert one == two


def test_what_waits_is_shared_among_replicas_and_made_together(open_service: Open, tmp_path: Path) -> None:
    """Of eight jobs each of two replicas takes four."""
    crews = list[Near]()

    def crew(plan: Plan, folder: Path) -> Near:
        crews.append(Near(plan, folder))
        crews[-1].there.clear()
        return crews[-1]

    with open_service(replicas=crew) as service:
        jobs = [service.submit(QUICK | {"seed": n, "steps": 9}, "me") for n in range(8)]
        crews[0].there.set()
        assert all(ended(service, job).state == "done" for job in jobs)
    assert [len(errand) for errand in crews[0].errands] == [4, 4]
    assert {name for errand in crews[0].errands for name in errand} == {job.id for job in jobs}


def test_jobs_of_a_kind_join_on_the_way_and_others_wait_for_their_turn(
    near: tuple[Service, Near],
    gate: Gate,  # noqa: F811
) -> None:
    service, crew = near
    crew.most = 1
    first = service.submit(QUICK | {"steps": 9}, "me")
    gate.wait()
    picture = service.uploads.add(png())
    other = service.submit(QUICK | {"image": picture.id, "strength": 0.5, "seed": 5}, "me")
    unwanted = service.submit(QUICK | {"steps": 9, "seed": 6}, "me")
    alone = service.submit(EXACT, "me")
    last = service.submit(QUICK | {"seed": 7}, "me")  # of the first one's kind, but behind another
    gate.go(1)
    until = time.monotonic() + 60
    while service.jobs.job(unwanted.id).state == "queued":
        assert time.monotonic() < until
        time.sleep(0.01)
    assert service.jobs.job(alone.id).state == service.jobs.job(last.id).state == "queued"
    service.cancel(unwanted.id, keep=False)
    gate.go(100)
    done = [ended(service, job) for job in (first, other, alone, last)]
    assert [job.state for job in done] == ["done"] * 4 and [len(job.pictures) for job in done] == [1] * 4
    assert ended(service, unwanted).state == "cancelled" and len(files(service)) == 4
    assert crew.errands == [[first.id], [alone.id], [last.id]]  # the other one joined the first


def test_an_errand_comes_to_an_end_however_many_jobs_of_its_kind_there_are(
    near: tuple[Service, Near], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, crew = near
    crew.most = 1
    monkeypatch.setattr(dispatcher, "LONGEST", 4)
    jobs = [service.submit(QUICK | {"seed": n, "steps": 9}, "me") for n in range(12)]
    assert all(ended(service, job).state == "done" for job in jobs)
    assert len(crew.errands) >= 3 and len(files(service)) == 12


def test_a_replica_that_dies_loses_no_picture_and_none_is_made_twice(
    near: tuple[Service, Near], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, crew = near
    kept = list[tuple[str, int]]()
    keep = Gallery.keep_file

    def counted(self: Gallery, job: str, told: Any, data: bytes) -> Any:
        kept.append((job, told.place))
        return keep(self, job, told, data)

    monkeypatch.setattr(Gallery, "keep_file", counted)
    seen = list[int]()

    def second(errand: int, count: int, word: Word | None) -> bool:
        """The first errand dies before its second picture is told of."""
        if errand == 1 and word is not None and word[0] == "picture":
            seen.append(count)
        return errand == 1 and len(seen) == 2

    crew.lose = second
    jobs = [service.submit(EXACT | {"count": 3, "batch": 1, "seed": 10 * n}, "me") for n in range(2)]
    done = [ended(service, job) for job in jobs]
    assert [job.state for job in done] == ["done", "done"] and len(crew.errands) == 3
    assert sorted(kept) == sorted((job.id, place) for job in jobs for place in range(3))
    assert len(files(service)) == 6


def test_a_job_that_takes_replicas_along_again_and_again_is_given_up(near: tuple[Service, Near]) -> None:
    service, crew = near
    crew.lose = lambda errand, count, word: count == 2
    job = ended(service, service.submit(EXACT, "me"))
    assert job.state == "failed" and job.error is not None and "process ended" in job.error["what"]
    assert len(crew.errands) == TRIES
    crew.lose = lambda errand, count, word: False
    assert made(service, EXACT).pictures and service.worker.alive


def test_where_nobody_takes_a_job_it_waits_and_its_tries_are_not_counted(near: tuple[Service, Near]) -> None:
    service, crew = near
    crew.lose = lambda errand, count, word: errand <= TRIES + 3
    assert made(service, EXACT).pictures and len(crew.errands) == TRIES + 4


@pytest.mark.parametrize("keep", [True, False])
def test_a_job_under_way_ends_at_its_next_step(near: tuple[Service, Near], gate: Gate, keep: bool) -> None:  # noqa: F811
    service, _ = near
    job = service.submit(QUICK | {"steps": 9}, "me")
    gate.wait()
    service.cancel(job.id, keep)
    gate.go(1)
    told = ended(service, job)
    assert told.state == "cancelled" and len(told.pictures) == len(files(service)) == int(keep)
    if keep:
        recipe = read_recipe(service.gallery.path(told, 0))
        assert recipe.partial and recipe.steps == 1 and told.pictures[0].partial
    gate.go(100)
    made(service, QUICK)


def test_a_job_that_nobody_has_begun_ends_at_once(near: tuple[Service, Near], gate: Gate) -> None:  # noqa: F811
    """Two run, and one more would: here more errands may be under way than there are replicas, as while some begin."""
    service, crew = near
    crew.most = 3
    jobs = [service.submit(EXACT | {"seed": n}, f"c{n}") for n in range(3)]
    gate.wait()
    gate.wait()
    waits = next(job for job in jobs if not service.hub.last(job.id))
    until = time.monotonic() + 60
    while service.jobs.job(waits.id).state == "queued" or len(crew.errands) < 3:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert service.cancel(waits.id).state == "cancelled"
    gate.go(100)
    others = [ended(service, job) for job in jobs if job is not waits]
    assert [job.state for job in others] == ["done", "done"] and len(files(service)) == 2
    made(service, EXACT)
    assert service.jobs.job(waits.id).state == "cancelled" and not service.jobs.job(waits.id).pictures


def test_pictures_that_a_job_names_go_along(near: tuple[Service, Near], gate: Gate) -> None:  # noqa: F811
    service, _ = near
    upload = service.uploads.add(png())
    given = QUICK | {"image": upload.id, "strength": 0.5}
    gate.go(100)
    assert made(service, given).pictures
    while gate.open.acquire(blocking=False):
        gate.reached.acquire(blocking=False)
    busy = [service.submit(EXACT | {"seed": n}, f"c{n}") for n in range(2)]
    waits = service.submit(given, "me")
    (service.uploads.folder / upload.id).unlink()
    gate.go(100)
    assert [ended(service, job).state for job in busy] == ["done", "done"]
    gone = ended(service, waits)
    assert gone.state == "failed" and gone.error is not None and "is gone" in gone.error["what"]


def test_what_cannot_be_kept_fails_alone(near: tuple[Service, Near], monkeypatch: pytest.MonkeyPatch) -> None:
    service, _ = near

    def full(*_: Any) -> Any:
        raise LdmError(Code.RESOURCE, "It could not be written.", "No space left on device.", "Free some.")

    with monkeypatch.context() as patched:
        patched.setattr(Gallery, "keep_file", full)
        job = ended(service, service.submit(EXACT | {"count": 3, "batch": 1}, "me"))
        assert job.state == "failed" and job.error is not None and "No space" in job.error["why"] and not job.pictures
    with monkeypatch.context() as patched:
        patched.setattr(Jobs, "made", lambda *_: 1 / 0)
        job = ended(service, service.submit(EXACT, "me"))
        assert job.state == "failed" and job.error is not None and "error of this program" in job.error["why"]
    with monkeypatch.context() as patched:
        patched.setattr(Replica, "_made", lambda *_: 1 / 0)
        job = ended(service, service.submit(EXACT, "me"))
        assert job.state == "failed" and job.error is not None and "error of this program" in job.error["why"]
    assert made(service, EXACT).pictures


def test_previews_are_made_where_somebody_looks(near: tuple[Service, Near], monkeypatch: pytest.MonkeyPatch) -> None:
    service, _ = near
    told = list[str]()
    tell = Hub.tell

    def heard(self: Hub, job: str, event: Any) -> None:
        told.append(event.kind)
        tell(self, job, event)

    monkeypatch.setattr(Hub, "tell", heard)
    monkeypatch.setattr("app.server.together.PREVIEW_SECONDS", 0.0)
    made(service, EXACT | {"steps": 9})
    assert "preview" not in told and told[-1] == "end" and told.count("progress") >= 9 and told.count("picture") == 1
    monkeypatch.setattr(Hub, "watched", lambda *_: True)
    made(service, EXACT | {"steps": 9})
    assert told.count("preview") >= 5


def test_what_is_under_way_when_the_server_ends_goes_on_at_its_next_start(
    open_service: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        gate = Gate(patched)
        with open_service(replicas=Near) as service:
            job = service.submit(EXACT | {"count": 2, "batch": 1}, "me")
            for _ in range(3):
                gate.wait()
                gate.go()
            gate.wait()
            service.worker._ending.set()
            gate.go(10)
        assert not service.worker.alive
    with open_service() as service:
        before = service.jobs.job(job.id)
        assert len(before.pictures) >= 1 and ended(service, job).state == "done"
        assert len(files(service)) == 2


def test_without_replicas_nothing_is_taken_on(open_service: Open) -> None:
    class Nobody(Near):
        def begin(self, ending: Callable[[], bool]) -> Near:
            raise RuntimeError("no machine has room")

    with open_service(replicas=Nobody) as service:
        service.worker._thread.join(60)
        with pytest.raises(LdmError, match="Nothing can be made now"):
            service.submit(QUICK, "me")
        service.worker.bring_in()  # what is beside the jobs works all the same


def test_a_slip_is_read_whenever_it_has_changed() -> None:
    async def talk() -> None:
        box = Mailbox()
        assert await box.slip("nobody", 0) == (0, Slip(ending=True))
        await box.open("errand")
        assert await box.slip("errand", 0) == (1, Slip())
        waits = asyncio.create_task(box.slip("errand", 1))
        await box.put("other", Slip())
        await asyncio.sleep(0)
        assert not waits.done()
        await box.put("errand", Slip({"job": True}))
        assert await waits == (2, Slip({"job": True}))
        await box.open("errand")  # it was cancelled before it was sent
        assert await box.slip("errand", 1) == (2, Slip({"job": True}))
        waits = asyncio.create_task(box.slip("errand", 2))
        await asyncio.sleep(0)
        await box.put("errand", None)
        assert (await waits)[1].ending

    asyncio.run(talk())
