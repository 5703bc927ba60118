"""/v1 over a real socket: jobs from request to picture, events, uploads, and every error as a problem."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from app.server.limits import Limits
from app.server.service import Service
from ldm.diffusion.solver import SOLVERS
from ldm.images import open_image
from tests.app.server.conftest import QUICK, Open, ended, listened, submitted
from tests.app.server.test_asking import png
from tests.app.server.test_worker import Gate

pytestmark = pytest.mark.loopback
ROOT = Path(__file__).parents[3]


def picture(data: bytes) -> np.ndarray:
    return open_image(data).pixels.astype(int)


def events(http: httpx.Client, job: str, **told: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    with http.stream("GET", f"/v1/jobs/{job}/events", params=told) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        kind = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield kind, json.loads(line.removeprefix("data: "))


def test_a_prompt_becomes_a_picture(http: httpx.Client) -> None:
    answer = http.post("/v1/jobs", json=QUICK)
    assert answer.status_code == 202 and answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    job = answer.json()["id"]
    result = http.get(f"/v1/jobs/{job}/result", params={"wait": 60})
    assert result.status_code == 200 and result.headers["content-type"] == "image/png", result.text
    told = http.get(f"/v1/jobs/{job}").json()
    assert told["state"] == "done" and told["request"] == QUICK and told["count"] == 1
    shown = http.get(told["pictures"][0]["url"])
    assert shown.content == result.content and shown.headers["x-content-type-options"] == "nosniff"
    assert Image.open(io.BytesIO(shown.content)).size == (32, 32)
    listed = http.get("/v1/jobs", params={"state": "done", "limit": 1}).json()
    assert [job["id"] for job in listed["jobs"]] == [job] and listed["counts"] == {"done": 1}
    assert http.get("/v1/jobs", params={"before": job}).json()["jobs"] == []


def test_several_pictures_come_as_an_archive(http: httpx.Client) -> None:
    job = submitted(http, count=3)
    result = http.get(f"/v1/jobs/{job}/result", params={"wait": 60})
    assert result.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(result.content)) as archive:
        assert len(archive.namelist()) == 3 and archive.testzip() is None
        first = archive.read(archive.namelist()[0])
    assert first == http.get(f"/v1/jobs/{job}/pictures/0").content


def test_an_answer_may_take_longer_than_a_body(open_service: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    with open_service(Limits(body_seconds=0.3)) as service, listened(service) as http:
        job = submitted(http, count=2)
        gate.wait()
        threading.Timer(1.0, gate.go, (9,)).start()
        result = http.get(f"/v1/jobs/{job}/result", params={"wait": 60})
    with zipfile.ZipFile(io.BytesIO(result.content)) as archive:
        assert len(archive.namelist()) == 2 and archive.testzip() is None


def test_why_a_job_failed_is_its_result(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr("pipelines.pipeline.Pipeline.run", full)
    answer = http.get(f"/v1/jobs/{submitted(http)}/result", params={"wait": 60})
    told = answer.json()
    assert answer.status_code == 507 and "memory" in told["title"] and "--" not in told["fix"]


def test_a_picture_that_somebody_removed_is_told_of(http: httpx.Client, service: Service) -> None:
    job = submitted(http, count=2)
    assert http.get(f"/v1/jobs/{job}/result", params={"wait": 60}).status_code == 200
    service.gallery.path(service.jobs.job(job), 1).unlink()
    for path in (f"/v1/jobs/{job}/pictures/1", f"/v1/jobs/{job}/result"):
        answer = http.get(path)
        assert answer.status_code == 404 and "removed" in answer.text and "/" not in answer.json()["title"]


def test_a_job_tells_how_it_goes_on(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    monkeypatch.setattr("app.server.together.PREVIEW_SECONDS", 0.0)
    job = submitted(http, steps=3)
    gate.wait()
    told = list[tuple[str, dict[str, Any]]]()
    for kind, data in events(http, job, previews=True):
        told.append((kind, data))
        gate.go()
    kinds = [kind for kind, _ in told]
    assert kinds[0] == "job" and kinds[-1] == "end" and kinds.count("picture") == 1
    assert told[-1][1] == {"state": "done"}
    progress = [data for kind, data in told if kind == "progress"]
    assert progress and progress[-1]["stage"] == "done" and all(data["count"] == 1 for data in progress)
    previews = [data for kind, data in told if kind == "preview"]
    assert previews and picture(base64.b64decode(previews[0]["png"])).shape[2] == 3
    again = list(events(http, job))
    assert [kind for kind, _ in again] == ["job", "end"]
    plain = list(events(http, submitted(http) if gate.go(9) is None else ""))
    assert "preview" not in [kind for kind, _ in plain]


def test_a_job_is_cancelled(http: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    job = submitted(http, steps=20)
    gate.wait()
    assert http.post(f"/v1/jobs/{job}/cancel").status_code == 200
    gate.go(20)
    assert ended(service, service.jobs.job(job)).state == "cancelled"
    told = http.get(f"/v1/jobs/{job}").json()
    assert [made["partial"] for made in told["pictures"]] == [True]
    assert http.get(f"/v1/jobs/{job}/result").headers["content-type"] == "image/png"


def test_a_result_that_is_not_there_is_not_there_yet(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    job = submitted(http)
    gate.wait()
    early = http.get(f"/v1/jobs/{job}/result", params={"wait": 0.05})
    assert early.status_code == 409 and "running" in early.json()["detail"]
    assert http.get(f"/v1/jobs/{job}/pictures/0").status_code == 404
    gate.go(9)


def test_pictures_come_by_upload_by_form_and_in_the_request(http: httpx.Client) -> None:
    red, white = png(), png(colour="white")
    image = http.post("/v1/uploads", content=red, headers={"content-type": "image/png"})
    assert image.status_code == 201 and (image.json()["width"], image.json()["height"]) == (32, 32)
    mask = http.post("/v1/uploads", files={"file": ("mask.png", white, "image/png")}).json()
    asked = QUICK | {"strength": 1.0, "exact": True}
    named = submitted(http, **asked, image=image.json()["id"], mask=mask["id"])
    brought = submitted(
        http, **asked, **{k: base64.b64encode(v).decode() for k, v in (("image", red), ("mask", white))}
    )
    form = http.post("/v1/jobs", files={"request": (None, json.dumps(asked)), "image": red, "mask": white}).json()["id"]
    made = [http.get(f"/v1/jobs/{job}/result", params={"wait": 60}).content for job in (named, brought, form)]
    assert (picture(made[0]) == picture(made[1])).all() and (picture(made[0]) == picture(made[2])).all()
    control = {"controls": [{"model": "edges", "hint": "canny"}]}
    form = {"request": (None, json.dumps(QUICK | control)), "controls.0.image": red}
    job = http.post("/v1/jobs", files=form)
    assert job.status_code == 202, job.text
    assert http.get(f"/v1/jobs/{job.json()['id']}/result", params={"wait": 60}).status_code == 200


def test_what_is_here_is_told(http: httpx.Client) -> None:
    models = {told["id"]: told for told in http.get("/v1/models").json()["data"]}
    assert (models["emoji"]["side"], models["emoji"]["controls"]) == (64, ["emoji-scribble"])
    assert (models["scenes"]["side"], models["scenes"]["controls"]) == (32, ["edges"])
    assert http.get("/v1/models/scenes").json() == models["scenes"]
    adapters = http.get("/v1/adapters").json()["adapters"]
    assert [(told["name"], told["kind"], told["model"]) for told in adapters] == [("emoji-fast", "lora", "emoji")]
    assert http.get("/v1/limits").json()["steps"] == 150
    assert http.get("/healthz").json() == {"status": "ok"}
    numbers = http.get("/metrics").text
    assert 'ldm_jobs{state="queued"} 0.0' in numbers and "ldm_queue_limit 32.0" in numbers


def test_the_documentation_needs_nobody_else(http: httpx.Client) -> None:
    told = http.get("/openapi.json").json()
    page = http.get("/docs").text
    assert all(path in page for path in told["paths"]) and "guidance" in page
    assert "<script" not in page and "http://" not in page and "https://" not in page


@pytest.mark.parametrize(
    ("method", "path", "more", "status", "said"),
    [
        ("GET", "/v1/jobs/nothing", {}, 404, "no job"),
        ("GET", "/v1/jobs/nothing/events", {}, 404, "no job"),
        ("GET", "/v1/jobs/nothing/result", {}, 404, "no job"),
        ("GET", "/v1/jobs/..%2f..%2fetc/pictures/0", {}, 404, ""),
        ("GET", "/v1/jobs?limit=0", {}, 422, "limit"),
        ("GET", "/v1/jobs?state=sleeping", {}, 422, "state"),
        ("DELETE", "/v1/jobs", {}, 405, "DELETE"),
        ("GET", "/nothing", {}, 404, "docs"),
        ("GET", "/v1/models/emojy", {}, 404, "Use emoji"),
        ("POST", "/v1/jobs", {"json": {"prompt": "a", "steps": 0}}, 422, "steps"),
        ("POST", "/v1/jobs", {"json": ["a"]}, 422, "object"),
        ("POST", "/v1/jobs", {"content": b"{", "headers": {"content-type": "application/json"}}, 422, "no JSON"),
        ("POST", "/v1/jobs", {"content": b"[" * 9000, "headers": {"content-type": "application/json"}}, 422, "JSON"),
        ("POST", "/v1/jobs", {"content": b"prompt=a", "headers": {"content-type": "text/plain"}}, 415, "text/plain"),
        ("POST", "/v1/jobs", {"content": b"prompt=a"}, 415, "No type"),
        ("POST", "/v1/jobs", {"files": {"../x": b"1"}}, 422, "no place"),
        ("POST", "/v1/jobs", {"files": {"image": b"<svg onload=alert(1)>"}}, 422, "SVG"),
        ("POST", "/v1/jobs", {"files": [("image", png())] * 20}, 422, "form cannot be read"),
        ("POST", "/v1/uploads", {"json": {}}, 415, "picture"),
        ("POST", "/v1/uploads", {"content": b"GIF89a", "headers": {"content-type": "image/gif"}}, 422, ""),
        ("POST", "/v1/uploads", {"files": {"a": png(), "b": png()}}, 422, "2 files"),
        ("POST", "/v1/uploads", {"files": [("a", png()), ("a", png())]}, 422, "2 files"),
        ("POST", "/v1/jobs", {"files": [("image", png()), ("image", png())]}, 422, "2 files"),
        ("POST", "/v1/jobs", {"data": {"prompt": "a"}, "files": {"image": png()}}, 422, "no file"),
    ],
)
def test_every_error_is_a_problem_with_a_fix(
    http: httpx.Client, method: str, path: str, more: dict[str, Any], status: int, said: str
) -> None:
    answer = http.request(method, path, **more)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert set(told) == {"type", "title", "status", "detail", "fix", "code"} and told["status"] == status
    assert said in answer.text and "Traceback" not in answer.text and str(ROOT) not in answer.text
    assert http.get("/healthz").status_code == 200


def test_a_bug_is_told_without_its_insides(
    http: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(type(service), "told", lambda *_: {}["secret"])
    answer = http.post("/v1/jobs", json=QUICK)
    assert answer.status_code == 500 and answer.json()["code"] == "bug"
    assert not any(inside in answer.text for inside in ("secret", "KeyError", "File ", str(tmp_path)))
    assert len(list((tmp_path / "outputs").glob("*.log"))) == 1


def test_a_full_queue_says_when_to_come_again(open_service: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """F15: of as many requests as may wait, one more than that is refused; the others are all made."""
    gate = Gate(monkeypatch)
    with open_service(Limits(waiting=4)) as service, listened(service) as http:
        jobs = [submitted(http, exact=True)]
        gate.wait()
        jobs += [submitted(http, seed=seed) for seed in range(4)]
        full = http.post("/v1/jobs", json=QUICK)
        assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1 and "fix" in full.json()
        gate.go(1000)
        assert [ended(service, service.jobs.job(job)).state for job in jobs] == ["done"] * 5
        assert http.post("/v1/jobs", json=QUICK).status_code == 202


def test_sixteen_at_once_are_those_that_come_one_after_another(http: httpx.Client) -> None:
    """F15: each solver, exact to the byte; those that may share calls within 2 of 255."""
    names = sorted(name for name in SOLVERS if not name.startswith("flow"))
    asked = [QUICK | {"solver": names[n % len(names)], "seed": n, "steps": 3, "exact": n % 2 == 0} for n in range(16)]

    def made(given: dict[str, Any]) -> bytes:
        job = http.post("/v1/jobs", json=given).json()["id"]
        answer = http.get(f"/v1/jobs/{job}/result", params={"wait": 60})
        assert answer.status_code == 200, answer.text
        return answer.content

    serial = [made(given) for given in asked]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(made, asked))
    for given, one, other in zip(asked, serial, together, strict=True):
        apart = np.abs(picture(one) - picture(other)).max()
        assert apart == 0 if given["exact"] else apart <= 2


def test_a_listener_that_leaves_is_forgotten(
    http: httpx.Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F16: of an event stream and of one who waits for a result; the job itself goes on."""
    gate = Gate(monkeypatch)
    job = submitted(http, steps=5)
    gate.wait()
    with http.stream("GET", f"/v1/jobs/{job}/events", params={"previews": True}) as stream:
        lines = stream.iter_lines()
        assert next(lines) == "event: job" and service.hub.watched(job)
    with pytest.raises(httpx.ReadTimeout):
        http.get(f"/v1/jobs/{job}/result", params={"wait": 60}, timeout=0.2)
    gate.go(100)
    assert ended(service, service.jobs.job(job)).state == "done"
    until = time.monotonic() + 30
    while service.hub._listeners and time.monotonic() < until:
        time.sleep(0.02)
    assert not service.hub._listeners and not service.hub._last
    assert threading.active_count() < 60
