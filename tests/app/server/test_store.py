"""Jobs outlive their server, take turns, and end once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.server.store import TRIES, Job, Jobs, Made
from ldm.errors import Code, LdmError


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    opened = Jobs(tmp_path / "jobs.sqlite", longest=8)
    yield opened
    opened.close()


def submit(jobs: Jobs, client: str, prompt: str = "a star", kind: str = "one", count: int = 1, cost: float = 1) -> Job:
    return jobs.submit(client, kind, {"prompt": prompt}, count, cost)


def order(jobs: Jobs) -> list[str]:
    """Prompts in the order in which the worker would take them."""
    taken = []
    while (job := jobs.next()) is not None:
        taken.append(str(job.asked["prompt"]))
        jobs.end(job.id, "done")
    return taken


def test_a_job_goes_from_queued_to_done(jobs: Jobs) -> None:
    asked = submit(jobs, "a", count=2)
    assert (asked.state, asked.missing, asked.started) == ("queued", [0, 1], None)
    running = jobs.next()
    assert running is not None and running.id == asked.id and running.state == "running" and running.started
    jobs.made(asked.id, Made(1, "b.png", {"seed": 8}))
    assert jobs.job(asked.id).missing == [0]
    assert jobs.end(asked.id, "done") and not jobs.end(asked.id, "failed")
    ended = jobs.job(asked.id)
    assert ended.state == "done" and ended.error is None and ended.pictures == (Made(1, "b.png", {"seed": 8}),)
    assert jobs.next() is None


def test_people_take_turns_however_many_jobs_one_of_them_has(jobs: Jobs) -> None:
    for number in range(4):
        submit(jobs, "many", f"many {number}")
    submit(jobs, "few", "few 0")
    submit(jobs, "few", "few 1")
    assert order(jobs) == ["many 0", "few 0", "many 1", "few 1", "many 2", "many 3"]


def test_who_asks_for_more_waits_longer(jobs: Jobs) -> None:
    for number in range(2):
        submit(jobs, "large", f"large {number}", cost=3)
    for number in range(4):
        submit(jobs, "small", f"small {number}")
    assert order(jobs) == ["large 0", "small 0", "small 1", "small 2", "large 1", "small 3"]


def test_who_comes_late_has_no_claim_on_what_was_done_before(jobs: Jobs) -> None:
    for number in range(4):
        submit(jobs, "early", f"early {number}")
    first = [job for _ in range(3) if (job := jobs.next()) is not None]
    submit(jobs, "late", "late 0")
    submit(jobs, "late", "late 1")
    assert len(first) == 3 and order(jobs) == ["late 0", "early 3", "late 1"]


def test_what_was_given_up_before_it_ran_took_nobodys_time(jobs: Jobs) -> None:
    for given_up in [submit(jobs, "a", cost=50) for _ in range(3)]:
        jobs.end(given_up.id, "cancelled")
    submit(jobs, "a", "mine")
    submit(jobs, "b", "other")
    assert order(jobs) == ["mine", "other"]


def test_only_jobs_of_one_kind_are_done_together_and_nobody_is_overtaken(jobs: Jobs) -> None:
    submit(jobs, "a", "first", kind="small")
    submit(jobs, "b", "second", kind="large")
    submit(jobs, "c", "third", kind="small")
    assert jobs.next() is not None
    assert jobs.next("small") is None  # the second is before the third
    assert jobs.next("large") is not None and jobs.next("small") is not None


def test_a_full_queue_says_so(jobs: Jobs) -> None:
    for _ in range(8):
        submit(jobs, "a")
    with pytest.raises(LdmError) as refused:
        submit(jobs, "b")
    assert refused.value.code == Code.BUSY and "8 jobs are waiting" in refused.value.why
    jobs.next()
    submit(jobs, "b")


def test_of_what_runs_one_job_is_queued_again_where_its_process_ended(jobs: Jobs) -> None:
    one, other, unwanted = (submit(jobs, name) for name in ("a", "b", "c"))
    turns = [job.id for job in iter(jobs.next, None)]
    jobs.unwanted(unwanted.id)
    assert jobs.again(one.id) == 1 and jobs.again(one.id) == 0 and jobs.again(unwanted.id) == 0
    assert [jobs.job(job.id).state for job in (one, other, unwanted)] == ["queued", "running", "cancelled"]
    again = jobs.next()
    assert again is not None and again.id == one.id == turns[0]
    for _ in range(TRIES):
        jobs.begun(one.id)
    assert jobs.again(one.id) == 0 and jobs.job(other.id).state == "running"
    given_up = jobs.job(one.id)
    assert given_up.state == "failed" and given_up.failure is not None and "process ended" in given_up.failure.what


def test_what_ran_when_the_server_ended_is_queued_again_with_its_pictures(jobs: Jobs, tmp_path: Path) -> None:
    first, second = submit(jobs, "a", count=3), submit(jobs, "b")
    jobs.next()
    jobs.made(first.id, Made(0, "0.png", {}))
    jobs.made(first.id, Made(2, "2.png", {}, partial=True))
    later = Jobs(tmp_path / "jobs.sqlite", longest=8)
    assert later.again() == 1
    goes_on = later.next()
    assert goes_on is not None and goes_on.id == first.id and goes_on.missing == [1, 2]
    assert later.ahead(second.id) == 0 and later.counts() == {"queued": 1, "running": 1}
    later.close()


def test_a_finished_picture_stands_in_the_place_of_a_partial_one_and_stays(jobs: Jobs) -> None:
    job = submit(jobs, "a")
    for picture in (Made(0, "p.png", {}, True), Made(0, "q.png", {}, True), Made(0, "f.png", {}), Made(0, "g.png", {})):
        jobs.made(job.id, picture)
    assert [made.file for made in jobs.job(job.id).pictures] == ["f.png"]


def test_an_error_is_told_as_it_was(jobs: Jobs) -> None:
    job = submit(jobs, "a")
    error = LdmError(Code.MODEL, "what", "why", "fix")
    jobs.end(job.id, "failed", error)
    assert jobs.job(job.id).error == error.as_dict()


def test_a_job_that_takes_its_server_along_is_not_tried_for_ever(jobs: Jobs) -> None:
    asked = submit(jobs, "a", count=2)
    for _ in range(TRIES - 1):
        assert jobs.next() is not None
        jobs.begun(asked.id)
        assert jobs.again() == 1
    assert jobs.next() is not None
    jobs.made(asked.id, Made(0, "a.png", {}))  # it gets on
    for turn in range(TRIES):
        jobs.begun(asked.id)
        assert jobs.again() == int(turn < TRIES - 1)
        assert turn == TRIES - 1 or jobs.next() is not None
    ended = jobs.job(asked.id)
    assert ended.state == "failed" and ended.error is not None and "not tried again" in ended.error["why"]


def test_what_nobody_wants_does_not_go_on_after_a_restart(jobs: Jobs) -> None:
    wanted, unwanted = submit(jobs, "a"), submit(jobs, "b")
    assert jobs.next() is not None and jobs.next() is not None
    jobs.unwanted(unwanted.id)
    assert jobs.again() == 1
    assert (jobs.job(wanted.id).state, jobs.job(unwanted.id).state) == ("queued", "cancelled")


def test_a_database_that_cannot_be_written_is_told_of_and_goes_on(jobs: Jobs) -> None:
    jobs._db.execute("pragma max_page_count=1")
    with pytest.raises(LdmError, match="list of jobs") as caught:
        for _ in range(1000):
            submit(jobs, "a", "x" * 1000)
            jobs.end(jobs.list(limit=1)[0].id, "cancelled")
    assert caught.value.code is Code.RESOURCE
    jobs._db.execute("pragma max_page_count=1000000")
    assert submit(jobs, "a").state == "queued"


def test_lists_are_newest_first_and_go_on_where_the_last_ended(jobs: Jobs) -> None:
    ids = [submit(jobs, "a", str(number)).id for number in range(5)]
    jobs.end(ids[1], "cancelled")
    page = jobs.list(limit=2)
    assert [job.id for job in page] == [ids[4], ids[3]]
    assert [job.id for job in jobs.list(limit=9, before=page[-1].id)] == [ids[2], ids[1], ids[0]]
    assert [job.id for job in jobs.list(("cancelled",))] == [ids[1]]
    with pytest.raises(LdmError, match="There is no job"):
        jobs.list(before="nobody")


def test_threads_take_each_job_once(jobs: Jobs) -> None:
    for number in range(8):
        submit(jobs, str(number % 3), str(number))
    taken: list[str] = []

    def take() -> None:
        while (job := jobs.next()) is not None:
            taken.append(job.id)

    workers = [threading.Thread(target=take) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(taken) == len(set(taken)) == 8


def test_a_file_of_another_version_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    opened = Jobs(path, longest=1)
    opened._db.execute("pragma user_version=99")
    opened.close()
    with pytest.raises(LdmError, match="another version"):
        Jobs(path, longest=1)
