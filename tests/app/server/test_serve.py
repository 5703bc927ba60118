"""`ldm serve` as a command: where it listens, what it refuses, and what a kill leaves."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.server.limits import Limits
from app.server.serve import Asked, doors_of, listening, token_of
from ldm.errors import Code, LdmError
from pipelines.recipe import read_recipe
from tests.app.conftest import Ldm, ldm  # noqa: F401
from tests.app.server.conftest import submitted
from tests.thin import thinned

pytestmark = pytest.mark.loopback
TOKEN = "0123456789abcdef"
LOCAL = Asked("127.0.0.1", 0, Path("out"), None, (), None, None, None, None, "cpu", "auto", Limits())


@contextmanager
def serving(
    folder: Path, *words: str, env: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """The command in a process of its own."""
    command = [sys.executable, "-c", "from app.cli import main; main()", "serve", "--port", "0", *words]
    process = subprocess.Popen(command, cwd=folder, env=os.environ | dict(env or {}), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = process.stderr.readline()
        found = re.match(r"(http://127\.0\.0\.1:\d+) ", said)
        assert found, said + process.stderr.read()
        with httpx.Client(base_url=found[1], timeout=60, trust_env=False) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--host", "0.0.0.0"), Code.USAGE, "needs a token"),
        (("--host", "::"), Code.USAGE, "needs a token"),
        (("--host", "example.org"), Code.USAGE, "needs a token"),
        (("--token-file", "nothing"), Code.FILE, "--token-file"),
        (("--token-file", "short"), Code.USAGE, "not long"),
        (("--token-file", "blank"), Code.USAGE, "empty"),
        (("--port", "70000"), Code.USAGE, "--port"),
        (("--models", "nowhere"), Code.FILE, "--models"),
        (("--adapters", "short"), Code.FILE, "--adapters"),
        (("--compare", "short"), Code.FILE, "--compare"),
        (("--memory", "0"), Code.USAGE, "--memory"),
        (("--device", "tpu"), Code.USAGE, "tpu"),
    ],
)
def test_what_cannot_be_served_is_said(ldm: Ldm, words: tuple[str, ...], status: Code, said: str) -> None:  # noqa: F811
    Path("short").write_text("secret\n")
    Path("blank").write_text("\n")
    done = ldm("serve", *words)
    assert (done.status, said in done.err) == (status, True), done
    assert not Path("outputs").exists() and "secret" not in done.err


def test_a_server_answers_before_torch_is_there() -> None:
    """What is heavy is brought in by the worker's thread."""
    heavy = ("torch", "diffusers", "transformers", "gradio")
    code = f"import sys, app.server.serve; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr


def test_a_port_that_is_taken_is_said(ldm: Ldm) -> None:  # noqa: F811
    with listening("127.0.0.1", 0) as taken:
        done = ldm("serve", "--port", taken.getsockname()[1])
    assert done.status == Code.BUSY and "in use" in done.err and not Path("outputs").exists()


def test_a_token_opens_other_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert token_of(file) == TOKEN and token_of(None) is None
    monkeypatch.setenv("LDM_TOKEN", TOKEN)
    assert token_of(None) == TOKEN
    doors = doors_of(replace(LOCAL, host="0.0.0.0", names=("Mine.Example",)))
    assert doors.token == TOKEN and doors.addresses and {"mine.example", socket.gethostname().lower()} <= doors.hosts
    assert not doors_of(LOCAL).addresses
    assert "127.0.0.2" in doors_of(replace(LOCAL, host="127.0.0.2")).hosts
    assert "mine.example" in doors_of(replace(LOCAL, names=("mine.example.:443",))).hosts
    with pytest.raises(LdmError, match="long and plain"):
        monkeypatch.setenv("LDM_TOKEN", "ümlaut" * 8)
        token_of(None)


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, http):
        assert http.get("/healthz").status_code == 200
        command = [sys.executable, "-c", "from app.cli import main; main()", "serve", "--port", "0"]
        second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert second.returncode == Code.BUSY and "is in use" in second.stderr


@pytest.mark.parametrize(("number", "status"), thinned([(signal.SIGTERM, 143), (signal.SIGINT, 130)], 2))
def test_it_ends_when_it_is_told_to(tmp_path: Path, number: int, status: int) -> None:
    with serving(tmp_path) as (process, http):
        job = submitted(http, steps=150, count=50)
        soon(http, job, lambda told: told["state"] == "running")
        process.send_signal(number)
        assert process.wait(120) == status
        assert process.stderr is not None and "Traceback" not in process.stderr.read()
    with serving(tmp_path) as (_, http):
        (left,) = http.get("/v1/jobs").json()["jobs"]
        assert left["state"] in ("queued", "running")  # it goes on


def test_a_killed_server_loses_no_finished_picture_and_makes_none_twice(tmp_path: Path, torture: int) -> None:
    """Killed under load, again and again; every job comes to its end, and the pictures stay as they were."""
    made, jobs = dict[str, tuple[int, bytes]](), list[str]()
    for turn in range(1, 1 + min(20, torture)):
        with serving(tmp_path) as (process, http):
            jobs += [submitted(http, seed=turn * 10 + n, count=3, batch=1, steps=3) for n in range(3)]
            if turn % 2:
                soon(http, jobs[-3], lambda told: bool(told["pictures"]))  # in the middle of its work
            else:
                time.sleep(0.3 * (turn % 7))
            for job in jobs:
                for told in http.get(f"/v1/jobs/{job}").json()["pictures"]:
                    path = tmp_path / "outputs" / "server" / "pictures" / f"{job}-{told['place']:04d}.png"
                    made.setdefault(path.name, (path.stat().st_mtime_ns, path.read_bytes()))
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    with serving(tmp_path) as (_, http):
        for job in jobs:
            until = time.monotonic() + 240
            while (told := http.get(f"/v1/jobs/{job}").json())["state"] in ("queued", "running"):
                assert time.monotonic() < until
                time.sleep(0.05)
            assert told["state"] == "done" and [m["place"] for m in told["pictures"]] == [0, 1, 2]
    folder = tmp_path / "outputs" / "server" / "pictures"
    assert made  # some were there before the last kill
    assert {path.name for path in folder.iterdir()} == {f"{job}-{n:04d}.png" for job in jobs for n in range(3)}
    for name, (when, data) in made.items():
        assert ((folder / name).stat().st_mtime_ns, (folder / name).read_bytes()) == (when, data)
    assert all(read_recipe(path).pixels for path in folder.iterdir())


def soon(http: httpx.Client, job: str, condition: Callable[[dict[str, Any]], bool]) -> None:
    """Until it is so of a job."""
    until = time.monotonic() + 120
    while not condition(http.get(f"/v1/jobs/{job}").json()):
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.torture
def test_the_page_is_opened_in_the_browser_of_the_user(tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/shown\n')
    browser.chmod(0o755)
    with serving(tmp_path, "--open", env={"BROWSER": str(browser)}) as (_, http):
        until = time.monotonic() + 60
        while not (tmp_path / "shown").exists() or not (tmp_path / "shown").read_text():
            assert time.monotonic() < until
            time.sleep(0.05)
        assert (tmp_path / "shown").read_text().strip() == str(http.base_url).rstrip("/")
        assert "ldm" in http.get("/").text
