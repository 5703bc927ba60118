"""Trainings over HTTP: planned, watched, cancelled, gone on with after any end, and used at once."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from app.server.learning import trainings
from app.server.limits import Limits
from app.server.service import Service
from ldm.data.characters import character, draw_character, pose
from ldm.errors import Code, LdmError
from tests.app.server.conftest import QUICK, Open, listened

pytestmark = pytest.mark.loopback
SHORT = {"token": "zwx circle", "model": "quick", "steps": 6, "checkpoints": 2, "prior": 2, "batch": 2,
         "prompts": ["{}", "{} <img src=x onerror=alert(1)>"], "unrelated": ["a blue square"]}  # fmt: skip


@pytest.fixture
def models(tmp_path: Path, quick_scenes: Path) -> Path:
    """A folder of the user's with one model, that draws in two steps."""
    shutil.copytree(quick_scenes, tmp_path / "models" / "quick")
    return tmp_path / "models"


def photo(number: int, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    draw_character(character(1), pose(number), 96).convert("RGB").save(file, format)
    return file.getvalue()


def brought(service: Service) -> list[str]:
    return [service.uploads.add(photo(n, "JPEG" if n == 4 else "PNG")).id for n in range(5)]


def until(true: Callable[[], Any], seconds: float = 240) -> Any:
    """What it says, as soon as that is something."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.05)
    return found


def events(http: httpx.Client, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    with http.stream("GET", f"/v1/trainings/{name}/events", timeout=240) as stream:
        kind = ""
        for line in stream.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield kind, json.loads(line.removeprefix("data: "))


@pytest.mark.torture
def test_photos_in_a_plan_first_then_live_curves_a_report_and_an_adapter_at_once(
    open_service: Open, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, free = trainings.published, list[bool]()

    def watched(*given: Any) -> None:
        """Whoever asks is told while an adapter is copied."""
        thread = threading.Thread(target=service.trainings.listed)
        thread.start()
        thread.join(10)
        free.append(not thread.is_alive())
        published(*given)

    monkeypatch.setattr(trainings, "published", watched)
    with open_service(models=models) as service, listened(service) as http:
        photos = [http.post("/v1/uploads", files={"file": photo(n)}).json()["id"] for n in range(5)]
        small = http.post("/v1/uploads", files={"file": ("x", _tiny())}).json()["id"]
        asked = SHORT | {"photos": [*photos, small], "name": "mine", "licence": "CC0-1.0"}

        plan = http.post("/v1/trainings", json=asked | {"dry": True}, timeout=240)
        assert plan.status_code == 200, plan.text
        told = plan.json()
        assert told["steps"] == 6 and told["cost"]["training"] > 0 and told["cost"]["total"] and told["room"] > 0
        finding = next(f for f in told["findings"] if any(small in case["photos"] for case in f["cases"]))
        assert finding["level"] in ("warn", "note") and finding["what"] and finding["fix"]
        assert http.get("/v1/trainings").json() == {"trainings": []}
        assert [path.name for path in (tmp_path / "server" / "trainings").iterdir()] == []

        answer = http.post("/v1/trainings", json=asked)
        assert answer.status_code == 202, answer.text
        name = answer.json()["id"]
        assert answer.headers["location"] == f"/v1/trainings/{name}" and answer.json()["state"] in (
            "queued",
            "planning",
        )
        assert http.get(f"/v1/trainings/{name}/report").status_code == 404
        assert http.delete(f"/v1/trainings/{name}").status_code == 409
        heard = list(events(http, name))
        kinds = [kind for kind, _ in heard]
        assert kinds[0] == "state" and kinds[-1] == "end" and kinds.count("measured") == 2, kinds
        assert heard[-1][1] == {"state": "done", "adapter": "mine", "embedding": None} and free == [True]
        states = [data["state"] for kind, data in heard if kind == "state"]
        assert list(dict.fromkeys(states))[-3:] == ["planning", "running", "done"]
        assert [data["step"] for kind, data in heard if kind == "progress"][-1] == 6

        drawn = list((tmp_path / "server" / "trainings" / "class-pictures").glob("*/*.png"))
        assert len(drawn) == 2  # for all trainings of this model
        one = http.get(f"/v1/trainings/{name}").json()
        assert (one["state"], one["step"], one["steps"], one["eta"]) == ("done", 6, 6, None)
        assert [step for step, _ in one["curves"]["validation"]] == [3, 6] and one["curves"]["loss"][-1][0] == 6
        assert one["plan"]["findings"][0]["cases"][0]["photos"] and one["measures"]["step"] == 6 and one["verdict"]
        assert [shown["step"] for shown in one["samples"]] == [0, 3, 6] and len(one["samples"][1]["pictures"]) == 8
        picture = http.get(one["samples"][1]["pictures"][0])
        assert picture.headers["content-type"] == "image/png" and picture.content.startswith(b"\x89PNG")
        for wrong in ("3/99", "4/0", "3/-1"):
            assert http.get(f"/v1/trainings/{name}/samples/{wrong}").status_code == 404, wrong
        report = http.get(one["report"])
        assert report.status_code == 200 and "zwx circle" in report.text and "CC0" not in report.text
        assert "<img src=x" not in report.text and "&lt;img src=x" in report.text
        policy = report.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "sandbox" in policy and "script" not in policy
        assert "frame-ancestors 'none'" in policy and report.headers["x-frame-options"] == "DENY"
        for text in (report.text, json.dumps(one), plan.text, http.get("/v1/trainings").text):
            assert str(tmp_path) not in text

        listed = {found["name"]: found for found in http.get("/v1/adapters").json()["adapters"]}
        assert (
            listed["mine"]["word"] == "zwx circle" and listed["mine"]["model"] == "scenes"
        )  # whose weights `quick` has
        for use in ({"loras": [{"name": "mine"}]}, {"prompt": "a red circle <lora:mine:0.5>"}):
            job = http.post("/v1/jobs", json=QUICK | {"model": "quick"} | use).json()["id"]
            assert http.get(f"/v1/jobs/{job}/result", params={"wait": 60}).headers["content-type"] == "image/png"

        assert http.post(f"/v1/trainings/{name}/resume").status_code == 409
    file = tmp_path / "server" / "trainings" / name / "training.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"state": "running", "adapter": None}))
    with open_service(models=models) as service, listened(service) as http:  # killed just before it could tell
        until(lambda: http.get(f"/v1/trainings/{name}").json()["state"] == "done")
        assert http.get(f"/v1/trainings/{name}").json()["adapter"] == "mine"
        assert http.post(f"/v1/trainings/{name}/cancel").json()["state"] == "done"
        kept = tmp_path / "server" / "trainings" / name / "photos"
        assert sorted(path.name for path in kept.iterdir()) == [f"{n:04d}.png" for n in range(1, 7)]
        assert http.delete(f"/v1/trainings/{name}").status_code == 204
        assert http.get(f"/v1/trainings/{name}").status_code == 404
        assert (tmp_path / "server" / "trainings" / "trash" / name / "photos" / "0001.png").is_file()
        assert "mine" in http.get("/v1/adapters").text
    with open_service(models=models) as service:
        assert service.trainings.listed() == []


def _tiny() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (12, 12), "red").save(file, "PNG")
    return file.getvalue()


@pytest.mark.torture
def test_a_server_that_ends_goes_on_later_and_what_was_cancelled_may_be_gone_on_with(
    open_service: Open, models: Path, tmp_path: Path
) -> None:
    with open_service(models=models) as service:
        long = SHORT | {"steps": 400, "checkpoints": 50, "photos": brought(service)}
        name = service.trainings.submit(long).id
        other = service.trainings.submit(long | {"seed": 1}).id
        until(lambda: service.trainings.told(name)["measures"])
        child = service.trainings.training(name).child
        assert service.trainings.told(other)["state"] == "queued"  # one at a time
        assert psutil.Process(int(child["pid"])).nice() >= 10
    assert not psutil.pid_exists(int(child["pid"]))
    home = tmp_path / "server" / "trainings" / name
    assert json.loads((home / "training.json").read_text())["state"] == "running"
    measured = len(list((home / "out" / "measures").iterdir()))
    with open_service(models=models) as service:
        told = service.trainings.told(name)
        assert told["step"] > 0 and told["measures"] and told["plan"]["cost"]  # of before
        until(lambda: service.trainings.told(name)["state"] == "running")
        until(lambda: len(service.trainings.told(name)["curves"]["validation"]) > measured)
        service.trainings.cancel(name)
        service.trainings.cancel(name)  # asked twice, it saves all the same
        until(lambda: service.trainings.told(name)["state"] == "cancelled")
        step = service.trainings.told(name)["step"]
        service.trainings.cancel(other)
        service.trainings.resume(name)
        until(lambda: (now := service.trainings.told(name))["state"] == "running" and now["step"] > step)
        runs = [json.loads(line) for line in (home / "told.jsonl").read_text().splitlines() if '"run"' in line]
        assert next(run["run"]["done"] for run in runs) == 0 and runs[-1]["run"]["done"] >= step > 0


@pytest.mark.torture
def test_a_killed_server_leaves_no_training_behind_and_the_next_one_goes_on(tmp_path: Path, models: Path) -> None:
    command = [sys.executable, "-c", "from app.cli import main; main()", "serve", "--port", "0", "--models", "models"]

    def start() -> tuple[subprocess.Popen[str], httpx.Client]:
        process = subprocess.Popen([*command, "--out", "server"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        found = re.match(r"(http://127\.0\.0\.1:\d+) ", process.stderr.readline())
        assert found
        return process, httpx.Client(base_url=found[1], timeout=60, trust_env=False)

    server, http = start()
    try:
        photos = [http.post("/v1/uploads", files={"file": photo(n)}).json()["id"] for n in range(2)]
        name = http.post("/v1/trainings", json=SHORT | {"photos": photos}).json()["id"]
        kept = tmp_path / "server" / "trainings" / name / "training.json"
        child = until(lambda: json.loads(kept.read_text())["child"])
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        until(lambda: not psutil.pid_exists(int(child["pid"])), 30)
        assert json.loads(kept.read_text())["state"] == "planning"
        http.close()
        server, http = start()
        again = until(lambda: json.loads(kept.read_text())["child"] != child and json.loads(kept.read_text())["child"])
        assert json.loads(kept.read_text())["tries"] == 2
        until(lambda: http.get(f"/v1/trainings/{name}").json()["plan"])
        server.terminate()
        server.wait(60)
        assert not psutil.pid_exists(int(again["pid"]))
    finally:
        http.close()
        server.kill()
        server.wait()
        assert server.stderr is not None
        server.stderr.close()


@pytest.mark.torture
def test_what_only_the_trainer_can_know_is_said_in_the_words_of_a_request(open_service: Open, models: Path) -> None:
    with open_service(models=models) as service:
        asked = SHORT | {"photos": brought(service)}
        with pytest.raises(LdmError, match="32") as refused:
            service.trainings.plan(asked | {"size": 33}, threading.Event())
        assert refused.value.code is Code.USAGE and "--" not in str(refused.value)
        record = service.trainings.submit(asked | {"size": 33})
        until(lambda: record.state == "failed")
        told = service.trainings.told(record.id)
        assert told["error"]["what"] == refused.value.what and told["error"]["code"] == "usage"
        gone = threading.Event()
        gone.set()
        with pytest.raises(LdmError, match="given up"):
            service.trainings.plan(asked, gone)
        assert not list(service.trainings.folder.glob(".plan-*"))


def test_whoever_asks_wrongly_is_told_before_anything_begins(open_service: Open, models: Path, tmp_path: Path) -> None:
    limits = Limits(training_photos=4, training_steps=10)
    with open_service(limits, models=models) as service, listened(service) as http:
        photos = [http.post("/v1/uploads", files={"file": photo(n)}).json()["id"] for n in range(5)]
        good = SHORT | {"photos": photos[:3]}
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"photos": []}, "no photos"),
            ({"photos": photos[:1]}, "only one photo"),
            ({"photos": [photos[0]] * 3}, "only one photo"),
            ({"photos": photos}, "too many"),
            ({"photos": [*photos[:2], "0" * 64]}, "no upload"),
            ({"photos": ["../../etc/passwd", *photos[:2]]}, "no picture"),
            ({"model": "nothing"}, "no model"),
            ({"model": "../models/quick"}, "no model"),
            ({"token": " \t"}, "token is empty"),
            ({"token": "sks\u202edog"}, "U+202E"),
            ({"token": "sks\u0000dog"}, "U+0000"),
            ({"token": "sks\u200bdog"}, "U+200B"),
            ({"token": "!!!"}, "letters"),
            ({"token": "(sks:1.5) dog"}, "syntax"),
            ({"token": "<lora:x:1>"}, "syntax"),
            ({"token": "犬" * 90}, "too long"),
            ({"token": 7}, "token"),
            ({"steps": 11}, "10 steps"),
            ({"steps": 0}, "steps"),
            ({"method": "magic"}, "method"),
            ({"method": "inversion", "prior": 4}, "prior"),
            ({"name": "../x"}, "no name"),
            ({"name": ""}, "no name"),
            ({"kind": "a\u0007"}, "U+0007"),
            ({"out": "elsewhere"}, "out"),
            ({"clip": "scenes-clip"}, "clip"),
            ({"dry": "perhaps"}, "dry"),
        ]
        for change, said in wrong:
            for dry in ({}, {"dry": True}) if "dry" not in change else ({},):
                answer = http.post("/v1/trainings", json=good | dry | change)
                assert answer.status_code == 422 and said in answer.text, (change, answer.text)
                assert {"title", "detail", "fix"} <= set(answer.json()) and "--" not in answer.text
        assert http.post("/v1/trainings", content=b"{", headers={"content-type": "application/json"}).status_code == 422
        for verb, where in (("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/resume"), ("DELETE", ""),
                            ("GET", "/report"), ("GET", "/samples/0/0")):  # fmt: skip
            for name in ("0" * 32, "trash", "..", "%2e%2e"):
                answer = http.request(verb, f"/v1/trainings/{name}{where}")
                assert answer.status_code in (404, 405), (verb, where, name)
        assert list((tmp_path / "server" / "trainings").iterdir()) == []
        limits_told = http.get("/v1/limits").json()
        assert (limits_told["training_photos"], limits_told["training_steps"]) == (4, 10)


def test_dry_is_what_it_is_read_as(open_service: Open, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainings, "TURN", 0.1)
    with open_service(models=models) as service, listened(service) as http:
        asked = SHORT | {"photos": brought(service)}
        with service.trainings._planning:  # so that a plan is known by its answer
            for dry in (True, "true", 1, "yes"):
                answer = http.post("/v1/trainings", json=asked | {"dry": dry})
                assert answer.status_code == 429 and "Other plans" in answer.text, (dry, answer.text)
        assert service.trainings.listed() == []
        for dry in (False, "false", 0):
            answer = http.post("/v1/trainings", json=asked | {"dry": dry})
            assert answer.status_code == 202, (dry, answer.text)
            service.trainings.cancel(answer.json()["id"])


def test_a_page_of_another_site_begins_nothing(open_service: Open) -> None:
    with open_service() as service, listened(service) as http:
        for verb, path in (("POST", "/v1/trainings"), ("DELETE", "/v1/trainings/x"), ("GET", "/v1/trainings/x/report")):
            assert http.request(verb, path, headers={"origin": "http://evil.example"}).status_code == 403
