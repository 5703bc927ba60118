"""The pictures of all jobs: found by their words, thrown away, taken back, removed for good and never made again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.server import tables
from app.server.gallery import Gallery
from app.server.pictures import Pictures, Search
from app.server.service import Service
from app.server.store import Job, Jobs, Made
from ldm.errors import Code, LdmError
from ldm.images import open_image
from pipelines.recipe import read_recipe
from tests.app.server.conftest import QUICK, Open, ended, listened, made
from tests.app.server.test_worker import Gate

OLD = """
create table jobs (
  number integer primary key, id text unique not null, client text not null, state text not null, kind text not null,
  asked text not null, count integer not null, cost real not null, turn real not null,
  created real not null, started real, ended real, error text, tries integer not null default 0, unwanted integer
);
create index jobs_by_state on jobs (state, turn);
create index jobs_by_client on jobs (client, state);
create table pictures (
  job integer not null references jobs (number) on delete cascade, place integer not null,
  file text not null, told text not null, partial integer not null, primary key (job, place)
);
insert into jobs (id, client, state, kind, asked, count, cost, turn, created, started, ended) values
  ('a', 'me', 'done', 'k', '{"model": "scenes", "prompt": "a Red circle"}', 2, 1, 0, 10, 11, 12),
  ('b', 'me', 'running', 'k', '{"model": "emoji"}', 2, 1, 1, 13, 14, null);
insert into pictures values (1, 0, 'a-0000.png', '{"seed": 4}', 0), (1, 1, 'a-0001.png', '{"seed": 5}', 1),
  (2, 1, 'b-0001.png', '{"seed": 9}', 0);
pragma user_version=1;
"""


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    opened = Jobs(tmp_path / "jobs.sqlite", longest=100)
    yield opened
    opened.close()


@pytest.fixture
def pictures(jobs: Jobs, tmp_path: Path) -> Pictures:
    (tmp_path / "pictures").mkdir()
    return Pictures(jobs, Gallery(tmp_path / "pictures"))


def kept(pictures: Pictures, prompt: str, count: int = 1, model: str = "scenes", partial: bool = False) -> Job:
    """A job that has its pictures, each of them a file."""
    job = pictures.jobs.submit("me", "", {"model": model, "prompt": prompt, "negative": "blur"}, count, 1)
    for place in range(count):
        file = f"{job.id}-{place:04d}.png"
        (pictures.gallery.folder / file).write_bytes(b"picture")
        told = {"seed": 7 + place, "width": 32, "height": 24, "steps": 2}
        pictures.jobs.made(job.id, Made(place, file, told, partial))
    return pictures.jobs.job(job.id)


def found(pictures: Pictures, **asked: Any) -> list[str]:
    """As JOB/PLACE."""
    return [f"{told['job']}/{told['place']}" for told in pictures.search(Search(**asked))["pictures"]]


def test_pictures_are_newest_first_and_go_on_where_the_last_page_ended(pictures: Pictures) -> None:
    first, second, third = kept(pictures, "one", 2), kept(pictures, "two"), kept(pictures, "three", 2)
    order = [f"{third.id}/1", f"{third.id}/0", f"{second.id}/0", f"{first.id}/1", f"{first.id}/0"]
    assert found(pictures) == order
    assert found(pictures, limit=2) == order[:2]
    for at in range(5):
        assert found(pictures, before=order[at], limit=2) == order[at + 1 : at + 3]
    answer = pictures.search(Search(limit=1))
    assert answer["total"] == 5 and answer["models"] == ["scenes"]
    told = answer["pictures"][0]
    assert told.pop("created") == pytest.approx(third.created, abs=60)
    assert told == {
        "job": third.id, "place": 1, "url": f"/v1/jobs/{third.id}/pictures/1", "prompt": "three", "negative": "blur",
        "model": "scenes", "seed": 8, "width": 32, "height": 24, "steps": 2, "partial": False, "trashed": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("", "RSPG"),
        ("red", "RS"),
        ("RED circle", "R"),
        ("circle red", "R"),
        ('"red circle"', "R"),
        ('"circle red"', ""),
        ("circ", "R"),
        ("100%", "P"),
        ("%", "P"),
        ("_", "P"),
        ("r_d", ""),
        ("STRASSE", "G"),
        ("straße", "G"),
        ("Ärger", "G"),
        ("a\u0308rger", "G"),
        ("'; drop table pictures; --", ""),
        ('"', ""),
        ('""', ""),
        ("   ", "RSPG"),
    ],
)
def test_every_word_occurs_in_the_prompt(pictures: Pictures, query: str, wanted: str) -> None:
    texts = {"R": "a Red\n circle", "S": "red square", "P": "100% snake_case", "G": "\u00c4RGER in der Stra\u00dfe"}
    names = {name: f"{kept(pictures, text).id}/0" for name, text in texts.items()}
    assert found(pictures, query=query) == [names[name] for name in reversed("RSPG") if name in wanted]
    assert pictures.search(Search(query=query))["total"] == len(wanted)


def test_models_and_unfinished_pictures_are_told_apart(pictures: Pictures) -> None:
    one, two = kept(pictures, "red", model="emoji"), kept(pictures, "red", partial=True)
    assert found(pictures, model="emoji") == [f"{one.id}/0"] and found(pictures, model="other") == []
    assert found(pictures, partial=True) == [f"{two.id}/0"] and found(pictures, partial=False) == [f"{one.id}/0"]
    answer = pictures.search(Search(model="emoji"))
    assert (answer["total"], answer["models"]) == (1, ["emoji", "scenes"])  # another one may be chosen
    assert pictures.search(Search(partial=True))["models"] == ["scenes"]


def test_what_is_thrown_away_is_shown_in_the_trash_alone_and_comes_back(pictures: Pictures) -> None:
    job = kept(pictures, "red", 3)
    told = pictures.throw(job.id, 1)
    assert told["trashed"] and told["place"] == 1 and pictures.throw(job.id, 1) == told
    assert found(pictures) == [f"{job.id}/2", f"{job.id}/0"] and found(pictures, trash=True) == [f"{job.id}/1"]
    now = pictures.jobs.job(job.id)
    assert [made.place for made in now.pictures] == [0, 2] and now.missing == []
    assert pictures.gallery.path(now, 1).is_file()
    assert not pictures.restore(job.id, 1)["trashed"] and pictures.jobs.job(job.id) == job
    assert found(pictures, trash=True) == []


def test_what_was_removed_is_gone_and_not_missed(pictures: Pictures) -> None:
    job, other = kept(pictures, "red", 3), kept(pictures, "blue")
    for place in (0, 2):
        pictures.throw(job.id, place)
    assert (pictures.empty(), pictures.empty()) == (2, 0)
    assert len(list(pictures.gallery.folder.iterdir())) == 2 and found(pictures, trash=True) == []
    assert found(pictures) == [f"{other.id}/0", f"{job.id}/1"]
    now = pictures.jobs.job(job.id)
    assert now.missing == [] and pictures.gallery.left(now) == []
    for call in (pictures.throw, pictures.restore, pictures.recipe):
        with pytest.raises(LdmError, match="removed") as caught:
            call(job.id, 0)
        assert caught.value.code is Code.FILE
    pictures.jobs.made(job.id, Made(0, "again.png", {}))
    assert pictures.jobs.job(job.id) == now  # nothing takes its place


def test_more_pictures_than_are_removed_at_once(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.server.pictures.AT_ONCE", 2)
    job = kept(pictures, "red", 5)
    for place in range(5):
        pictures.throw(job.id, place)
    assert pictures.empty() == 5 and not list(pictures.gallery.folder.iterdir())


def test_a_kill_while_the_trash_is_emptied_leaves_nothing_half_done(
    jobs: Jobs, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        """As if the process had ended there."""

    job, unlink, removed = kept(pictures, "red", 3), Path.unlink, list[str]()
    for place in range(3):
        pictures.throw(job.id, place)

    def killed(path: Path, missing_ok: bool = False) -> None:
        if len(removed) == 2:
            raise KilledError
        removed.append(path.name)
        unlink(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(KilledError):
            pictures.empty()
    assert len(found(pictures, trash=True)) == 3  # rows without files, for now
    again = Pictures(jobs, pictures.gallery)
    left = found(again, trash=True)
    assert len(left) == 1 and jobs.job(job.id).missing == []
    assert not again.restore(job.id, int(left[0].rpartition("/")[2]))["trashed"]
    assert again.empty() == 0 and len(list(pictures.gallery.folder.iterdir())) == 1


def test_a_file_that_cannot_be_removed_is_told_of(pictures: Pictures) -> None:
    job = kept(pictures, "red")
    path = pictures.gallery.path(job, 0)
    path.unlink()
    path.mkdir()
    pictures.throw(job.id, 0)
    with pytest.raises(LdmError, match="cannot be removed") as caught:
        pictures.empty()
    assert caught.value.code is Code.RESOURCE and str(pictures.gallery.folder) not in str(caught.value)
    path.rmdir()
    with pytest.raises(LdmError, match="gone"):
        pictures.restore(job.id, 0)
    assert pictures.empty() == 1


def test_a_file_of_version_1_becomes_one_of_version_2(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    with sqlite3.connect(path) as old:
        old.executescript(OLD)
    old.close()
    jobs = Jobs(path, longest=8)
    (tmp_path / "a-0001.png").write_bytes(b"picture")
    pictures = Pictures(jobs, Gallery(tmp_path))
    assert jobs.read("pragma user_version")[0][0] == 2
    assert found(pictures) == ["b/1", "a/1", "a/0"] and found(pictures, query="red") == ["a/1", "a/0"]
    told = pictures.search(Search(query="RED"))["pictures"]
    assert {(one["created"], one["model"]) for one in told} == {(12, "scenes")} and told[0]["partial"]
    assert jobs.again() == 1 and jobs.job("b").missing == [0] and jobs.job("a").missing == [1]
    assert pictures.throw("a", 1)["trashed"] and jobs.job("a").missing == []
    fresh = Jobs(tmp_path / "fresh.sqlite", longest=8)
    tables_of = "select name, sql from sqlite_master where name not like 'sqlite%' order by name"
    assert [[*row] for row in jobs.read(tables_of)] == [[*row] for row in fresh.read(tables_of)]
    fresh.close()
    jobs.close()


def test_a_step_to_a_newer_version_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "jobs.sqlite"
    with sqlite3.connect(path) as old:
        old.executescript(OLD)
    old.close()
    Jobs(path, longest=8).close()
    monkeypatch.setattr(tables, "STEPS", (*tables.STEPS, lambda db: db.execute("create table more (number integer)")))
    for _ in range(2):
        jobs = Jobs(path, longest=8)
        assert jobs.read("pragma user_version")[0][0] == 3
        assert [row["model"] for row in jobs.read("select model from searched order by job")] == ["scenes", "emoji"]
        jobs.close()


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "jobs.sqlite"
    with sqlite3.connect(path) as old:
        old.executescript(OLD)
    with monkeypatch.context() as patched:
        patched.setattr(tables, "searchable", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Jobs(path, longest=8)
    assert old.execute("pragma user_version").fetchone()[0] == 1
    assert len(old.execute("select * from pictures").fetchone()) == 5
    old.close()
    Jobs(path, longest=8).close()


@pytest.mark.parametrize("varied", [{}, {"variation": 0.5, "variation_seed": 9}])
def test_what_was_asked_for_makes_the_same_picture_alone(service: Service, varied: dict[str, Any]) -> None:
    job = made(service, QUICK | {"count": 3, "exact": True, "prompt": "a {red|blue|green} circle"} | varied)
    told = service.pictures.recipe(job.id, 2)
    path = service.gallery.path(job, 2)
    assert told["recipe"] == json.loads(read_recipe(path).to_json())
    assert told["asked"]["count"] == 1
    again = made(service, told["asked"])
    assert (open_image(service.gallery.path(again, 0)).pixels == open_image(path).pixels).all()
    assert again.pictures[0].told["pixels"] == job.pictures[2].told["pixels"]


def test_the_worker_never_makes_again_what_was_thrown_away(open_service: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        gate = Gate(patched)
        with open_service() as service:
            job = service.submit(QUICK | {"count": 4, "batch": 1, "exact": True}, "me")
            for _ in range(5):  # of the third picture one step
                gate.wait()
                gate.go()
            gate.wait()
            assert [service.pictures.throw(job.id, place)["trashed"] for place in (0, 1)] == [True, True]
            service.worker._ending.set()
            gate.go(10)
    with open_service() as service:  # what ran goes on
        done = ended(service, job)
        assert done.state == "done" and [made.place for made in done.pictures] == [2, 3]
        assert service.pictures.empty() == 2
        service.jobs._db.execute("update jobs set state='running', ended=null")
    with open_service() as service:
        again = ended(service, job)
        assert again.state == "done" and again.pictures == done.pictures
        assert len(list(service.gallery.folder.iterdir())) == 2


@pytest.mark.loopback
def test_the_trash_over_http(http: httpx.Client, service: Service) -> None:
    job = made(service, QUICK | {"count": 2})
    home = f"/v1/jobs/{job.id}"
    shown = http.get("/v1/pictures", params={"query": '"red circle"', "model": "scenes", "partial": False}).json()
    assert [told["url"] for told in shown["pictures"]] == [f"{home}/pictures/1", f"{home}/pictures/0"]
    assert (shown["total"], shown["models"], shown["pictures"][0]["seed"]) == (2, ["scenes"], 2)
    recipe = http.get(f"{home}/pictures/1/recipe").json()
    assert recipe["recipe"]["seed"] == 2 and recipe["asked"] == QUICK | {"seed": 2, "count": 1}
    thrown = http.delete(f"{home}/pictures/1")
    assert thrown.status_code == 200 and thrown.json()["trashed"]
    assert http.get("/v1/pictures").json()["total"] == 1
    assert [told["url"] for told in http.get("/v1/pictures?trash=true").json()["pictures"]] == [f"{home}/pictures/1"]
    assert [told["place"] for told in http.get(home).json()["pictures"]] == [0]
    assert http.get(f"{home}/pictures/1").headers["content-type"] == "image/png"
    assert not http.post(f"{home}/pictures/1/restore").json()["trashed"]
    for place in (0, 1):
        http.delete(f"{home}/pictures/{place}")
    assert http.delete("/v1/trash").json() == {"removed": 2}
    for call in (f"{home}/pictures/1", f"{home}/pictures/1/recipe"):
        answer = http.get(call)
        assert answer.status_code == 404 and "was removed" in answer.json()["title"]
    empty = http.get(f"{home}/result")
    assert empty.status_code == 404 and "thrown away" in empty.json()["detail"]


@pytest.mark.loopback
@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/v1/pictures?limit=0", 422, "limit"),
        ("GET", "/v1/pictures?limit=201", 422, "limit"),
        ("GET", "/v1/pictures?query=" + "x" * 301, 422, "query"),
        ("GET", "/v1/pictures?before=nobody/0", 404, "no job"),
        ("GET", "/v1/pictures?before=0", 404, "no job"),
        ("GET", "/v1/pictures?before=a/b", 422, "JOB/PLACE"),
        ("GET", "/v1/pictures?before=" + "9" * 99, 422, "JOB/PLACE"),
        ("GET", "/v1/pictures?partial=maybe", 422, "partial"),
        ("DELETE", "/v1/jobs/nobody/pictures/0", 404, "no job"),
        ("POST", "/v1/jobs/nobody/pictures/0/restore", 404, "no job"),
        ("GET", "/v1/jobs/nobody/pictures/0/recipe", 404, "no job"),
        ("DELETE", "/v1/jobs/JOB/pictures/7", 404, "no picture 7"),
        ("DELETE", "/v1/jobs/JOB/pictures/-1", 404, "no picture -1"),
        ("DELETE", "/v1/jobs/JOB/pictures/99999999999999999999999999", 404, "no picture"),
        ("POST", "/v1/jobs/JOB/pictures/7/restore", 404, "no picture 7"),
        ("GET", "/v1/jobs/JOB/pictures/x/recipe", 422, "place"),
    ],
)
def test_what_is_wrong_is_told(open_service: Open, method: str, path: str, status: int, said: str) -> None:
    with open_service() as service, listened(service) as http:
        job = service.jobs.submit("me", "", QUICK, 1, 1)
        answer = http.request(method, path.replace("JOB/p", f"{job.id}/p"))
        assert answer.status_code == status and said in answer.text, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
