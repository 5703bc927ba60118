"""The pictures of a job in the order of the CLIP that ships, which stays in memory between two calls."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from app.server.ranking import ranking
from app.server.service import Service
from ldm.errors import Code, LdmError
from ldm.images import open_image
from pipelines.ranking import Ranker
from pipelines.recipe import read_recipe
from pipelines.steps import Result
from tests.app.server.conftest import QUICK, ended, made

SOME = {"model": "emoji", "prompt": "a (red:1.2) apple <lora:emoji-fast:1>", "seed": 7, "count": 4, "steps": 2}


def test_pictures_are_ranked_as_the_command_ranks_them(service: Service) -> None:
    job = made(service, SOME)
    told = ranking(service, job.id)
    results = []
    for picture in job.pictures:
        path = service.gallery.path(job, picture.place)
        results.append(Result(open_image(path), read_recipe(path), 0, picture.place))
    wanted = Ranker.load("emoji-clip").scores(results)
    assert told["ranker"] == "emoji-clip" and sorted(each["place"] for each in told["scores"]) == [0, 1, 2, 3]
    assert {each["place"]: each["score"] for each in told["scores"]} == dict(enumerate(wanted))
    scores = [each["score"] for each in told["scores"]]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 4 and all(-1 <= s <= 1 for s in scores)


def test_the_ranker_stays_and_nothing_is_looked_at_twice(service: Service) -> None:
    job, other = made(service, SOME | {"count": 2}), made(service, SOME | {"count": 1, "seed": 1})
    first = ranking(service, job.id)
    ranker = service.rankings._ranker
    assert ranker is not None
    ranking(service, other.id)
    assert service.rankings._ranker is ranker
    service.rankings._ranker = None
    assert ranking(service, job.id) == first and service.rankings._ranker is None


def test_it_goes_on_beside_the_worker_and_beside_itself(service: Service) -> None:
    job = made(service, SOME | {"count": 3})
    busy = service.submit(SOME | {"steps": 20}, "me")
    told = list[dict[str, Any]]()
    threads = [threading.Thread(target=lambda: told.append(ranking(service, job.id))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(told) == 4 and all(each == told[0] for each in told)
    assert ended(service, busy).state == "done"


def refused(service: Service, job: str, ranker: str | None = None) -> LdmError:
    with pytest.raises(LdmError) as caught:
        ranking(service, job, ranker)
    assert caught.value.what and caught.value.why and caught.value.fix
    return caught.value


def test_what_cannot_be_ranked_says_why(service: Service) -> None:
    assert refused(service, "nothing").code is Code.FILE
    silent = made(service, {"model": "emoji", "prompt": " <lora:emoji-fast:1>", "steps": 1})
    assert "no prompt" in refused(service, silent.id).why
    other = made(service, QUICK)
    missing = refused(service, other.id)
    assert missing.code is Code.MODEL and "emoji-clip" in missing.why
    assert ranking(service, other.id, "emoji-clip")["scores"][0]["place"] == 0
    for name in ("emoji", "../emoji-clip", "/etc"):
        assert refused(service, other.id, name).code is Code.USAGE


def test_an_unfinished_job_is_not_ranked(service: Service) -> None:
    job = service.submit(SOME | {"steps": 150, "count": 50}, "me")
    early = refused(service, job.id)
    assert early.code is Code.DIFFERENT and "not done" in early.what
    service.cancel(job.id)
    assert ended(service, job).state == "cancelled"
    assert refused(service, job.id).code is Code.FILE


def test_a_picture_that_is_gone_is_told_of(service: Service) -> None:
    job = made(service, SOME | {"count": 1})
    service.gallery.path(job, 0).unlink()
    assert "gone" in refused(service, job.id).what


@pytest.mark.loopback
def test_it_is_asked_over_http(http: httpx.Client, service: Service) -> None:
    job = made(service, SOME | {"count": 2})
    told = http.post(f"/v1/jobs/{job.id}/ranking")
    assert told.status_code == 200 and told.json() == ranking(service, job.id)
    assert http.post("/v1/jobs/nothing/ranking").status_code == 404
    assert http.post(f"/v1/jobs/{job.id}/ranking", params={"ranker": "nobody"}).status_code == 422
    assert http.post(f"/v1/jobs/{made(service, QUICK).id}/ranking").status_code == 422
