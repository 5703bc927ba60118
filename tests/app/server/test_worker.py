"""Jobs as the worker makes them: the pictures of each alone, together where they may be, once whatever happens."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.server.gallery import Gallery
from app.server.hub import Hub
from app.server.service import Service
from app.server.shelf import Shelf
from app.server.store import Job, Jobs
from app.server.together import Together, _part, _spans
from ldm.errors import Code, LdmError
from ldm.images import open_image
from ldm.store.find import find_model, shipped_adapters
from pipelines.pipeline import Pipeline
from pipelines.recipe import read_recipe
from pipelines.request import Request
from pipelines.steps import Step
from tests.app.server.conftest import QUICK, Open, ended, made


def pixels(service: Service, job: Job) -> list[np.ndarray]:
    return [open_image(service.gallery.path(job, m.place)).pixels.astype(int) for m in job.pictures]


def turns(service: Service) -> int:
    assert service.worker.together is not None
    return service.worker.together.turns


@pytest.fixture(scope="module")
def scenes() -> Pipeline:
    return Pipeline.load("scenes", device="cpu")


class Gate:
    """Lets the worker go on from step to step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Semaphore(0), threading.Semaphore(0)
        run = Pipeline.run

        def slow(pipeline: Pipeline, request: Request) -> Any:
            for step in run(pipeline, request):
                yield step
                if step.stage == "sample":
                    self.reached.release()
                    assert self.open.acquire(timeout=60)

        monkeypatch.setattr(Pipeline, "run", slow)

    def wait(self) -> None:
        """Until a step has been made; the worker waits after it."""
        assert self.reached.acquire(timeout=60)

    def go(self, steps: int = 1) -> None:
        self.open.release(steps)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def test_a_job_makes_the_pictures_of_its_request(service: Service, scenes: Pipeline) -> None:
    job = made(service, QUICK | {"count": 2, "exact": True})
    asked = service.understanding.request(job.asked)
    wanted = [result.picture.pixels for result in scenes.results(asked)]
    assert all((ours == theirs).all() for ours, theirs in zip(pixels(service, job), wanted, strict=True))
    assert [m.told["seed"] for m in job.pictures] == [1, 2] and job.started and job.ended
    recipe = read_recipe(service.gallery.path(job, 0))
    assert recipe.exact and recipe.pixels == job.pictures[0].told["pixels"] and recipe.prompt == "a red circle"


def test_jobs_of_one_kind_share_calls_and_their_pictures_stay_what_they_are(
    service: Service, scenes: Pipeline, gate: Gate
) -> None:
    steps = (6, 4, 5)
    jobs = [service.submit(QUICK | {"steps": n, "seed": n, "prompt": f"{n} squares"}, f"c{n}") for n in steps]
    for _ in range(sum(steps)):
        gate.wait()
        gate.go()
    done = [ended(service, job) for job in jobs]
    assert [job.state for job in done] == ["done"] * 3
    assert turns(service) < sum(steps)  # turns: those that wait join the first
    gate.go(1000)
    for job in done:
        alone = scenes.results(service.understanding.request(job.asked))[0].picture.pixels.astype(int)
        assert np.abs(pixels(service, job)[0] - alone).max() <= 2


def test_exact_jobs_are_made_alone_and_people_take_turns(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    most, join = [0], Together._join

    def joined(self: Together, gathering: Any, job: Job) -> None:
        join(self, gathering, job)
        most[0] = max(most[0], len(gathering.runs))

    monkeypatch.setattr(Together, "_join", joined)
    many = [service.submit(QUICK | {"exact": True, "seed": n}, "many") for n in range(4)]
    one = service.submit(QUICK | {"exact": True}, "one")
    ends = {job.id: ended(service, job).ended or 0.0 for job in (*many, one)}
    assert most[0] == 1
    assert sorted(ends, key=ends.__getitem__).index(one.id) <= 2  # after those that ran or were next


def test_a_job_that_waits_never_begins_when_it_is_cancelled(service: Service, gate: Gate) -> None:
    first = service.submit(QUICK | {"exact": True}, "me")
    second = service.submit(QUICK | {"exact": True}, "me")
    gate.wait()
    assert service.told(service.jobs.job(second.id))["ahead"] == 0
    assert service.cancel(second.id).state == "cancelled"
    gate.go(2)
    assert ended(service, first).state == "done"
    assert service.jobs.job(second.id).started is None
    assert service.cancel(first.id).state == "done"  # what has ended stays as it is


@pytest.mark.parametrize("keep", [True, False])
def test_a_job_under_way_ends_at_its_next_step(service: Service, gate: Gate, keep: bool) -> None:
    job = service.submit(QUICK | {"steps": 9}, "me")
    gate.wait()
    service.cancel(job.id, keep)
    gate.go(2)
    told = ended(service, job)
    assert told.state == "cancelled" and len(told.pictures) == int(keep)
    files = list(service.gallery.folder.glob("*")) if service.gallery.folder.exists() else []
    assert len(files) == int(keep)
    if keep:
        recipe = read_recipe(service.gallery.path(told, 0))
        assert recipe.partial and 1 <= recipe.steps <= 2 and told.pictures[0].partial
    gate.go(100)
    made(service, QUICK)  # the worker is free


def test_what_ran_when_the_server_ended_goes_on_and_nothing_is_made_twice(
    open_service: Open, monkeypatch: pytest.MonkeyPatch, scenes: Pipeline
) -> None:
    kept = list[tuple[str, int]]()
    keep = Gallery.keep

    def counted(self: Gallery, job: str, place: int, result: Any) -> Any:
        kept.append((job, place))
        return keep(self, job, place, result)

    monkeypatch.setattr(Gallery, "keep", counted)
    with monkeypatch.context() as patched:
        gate = Gate(patched)
        with open_service() as service:
            job = service.submit(QUICK | {"count": 4, "batch": 1, "exact": True}, "me")
            waits = service.submit(QUICK, "me")
            for _ in range(5):  # of the third picture one step
                gate.wait()
                gate.go()
            gate.wait()
            service.worker._ending.set()
            gate.go(10)
    assert 2 <= len(kept) < 4
    with open_service() as service:
        done = ended(service, job)
        assert done.state == "done" and ended(service, waits).state == "done"
        assert sorted(kept) == sorted([(job.id, place) for place in range(4)] + [(waits.id, 0)])
        wanted = [result.picture.pixels for result in scenes.results(service.understanding.request(done.asked))]
        assert all((a == b).all() for a, b in zip(pixels(service, done), wanted, strict=True))


def test_a_picture_that_nobody_told_of_is_found_again(
    open_service: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As if the server had been killed between the file and its row."""
    with open_service() as service:
        job = made(service, QUICK | {"count": 2})
        before = [path.stat().st_mtime_ns for path in sorted(service.gallery.folder.iterdir())]
        service.jobs._db.execute("delete from pictures where place=0")
        service.jobs._db.execute("update jobs set state='running', ended=null")
    monkeypatch.setattr(Gallery, "keep", lambda *_: pytest.fail("made again"))
    with open_service() as service:
        again = ended(service, job)
        assert again.state == "done" and again.pictures == job.pictures
        assert [path.stat().st_mtime_ns for path in sorted(service.gallery.folder.iterdir())] == before


def test_what_fails_fails_alone_and_says_why(
    open_service: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    own = tmp_path / "mine" / "own.safetensors"
    shutil.copyfile(shipped_adapters()["emoji-fast"], own)
    with open_service(adapters=tmp_path / "mine") as service:
        first = service.submit(QUICK, "me")
        gate.wait()
        gone = service.submit(QUICK | {"model": "emoji", "loras": [{"name": "own"}]}, "me")
        wrong = service.submit(QUICK | {"loras": [{"name": "emoji-fast"}]}, "me")  # made for another model
        own.unlink()
        gate.go(100)
        assert ended(service, first).state == "done"
        told = [ended(service, job) for job in (gone, wrong)]
        assert [job.state for job in told] == ["failed", "failed"]
        assert all(job.error and job.error["what"] and job.error["fix"] for job in told)
        assert "own" in json.dumps(told[0].error)

        def full(*_: Any) -> Any:
            raise LdmError(Code.RESOURCE, "It could not be written.", "No space left on device.", "Free some.")

        with monkeypatch.context() as patched:
            patched.setattr(service.gallery.__class__, "keep", full)
            job = ended(service, service.submit(QUICK, "me"))
            assert job.state == "failed" and job.error and "No space" in job.error["why"]
        with monkeypatch.context() as patched:
            patched.setattr(service.jobs.__class__, "made", lambda *_: 1 / 0)
            job = ended(service, service.submit(QUICK, "me"))
            assert job.state == "failed" and job.error and "error of this program" in job.error["why"]
        assert list((tmp_path / "outputs").glob("ldm-error-*.log"))
        assert made(service, QUICK).pictures


def test_a_look_that_fails_and_a_database_that_is_full_end_nobody(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, take = [True], Jobs.next

    def full(self: Jobs, kind: str | None = None) -> Job | None:
        if broken:
            broken.clear()
            raise LdmError(Code.RESOURCE, "The list of jobs cannot be written.", "It is full.", "Free some space.")
        return take(self, kind)

    monkeypatch.setattr(Jobs, "next", full)
    monkeypatch.setattr(Step, "preview", lambda step: 1 / 0)
    monkeypatch.setattr("app.server.together.PREVIEW_SECONDS", 0.0)
    monkeypatch.setattr(Hub, "watched", lambda *_: True)
    assert made(service, QUICK).state == "done" and not broken and service.worker.alive


def test_models_make_room_for_each_other() -> None:
    shelf, one, two = Shelf(memory=1, device="cpu"), find_model("scenes"), find_model("emoji")
    first = shelf.pipeline(one)
    alone = shelf.held
    assert shelf.pipeline(one) is first and shelf.loads == 1 and alone > 1e6
    shelf.pipeline(two)
    assert shelf.held != alone and shelf.pipeline(one) is not first and (shelf.loads, shelf.held) == (3, alone)
    wide = Shelf(memory=1e9, device="cpu")
    assert [wide.pipeline(path) for path in (one, two, one)] and wide.loads == 2


def test_missing_pictures_are_asked_for_by_their_own_seeds() -> None:
    assert list(_spans([0, 1, 2, 5, 7, 8])) == [(0, 3), (5, 1), (7, 2)] and list(_spans([])) == []
    whole = Request(prompt="a", seed=10, count=9)
    assert _part(whole, 0, 9) is whole
    assert (_part(whole, 7, 2).seed, _part(whole, 7, 2).count) == (17, 2)
    varied = Request(prompt="a", seed=10, variation_seed=3, variation=0.5, count=9)
    part = _part(varied, 7, 2)
    assert (part.seed, part.variation_seed, part.count) == (10, 10, 2)
