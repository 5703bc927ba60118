"""`ldm serve --ray`: the same API, and the same pictures, whoever makes them and whatever becomes of those."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from app.cluster import room
from app.server.crew import numbers
from app.server.service import Service
from ldm.errors import Code, LdmError
from tests.app.conftest import Ldm, ldm  # noqa: F401
from tests.app.server.conftest import made, submitted
from tests.app.server.on_a_cluster import words_of
from tests.app.server.test_api import events
from tests.app.server.test_serve import soon

EXACT = {"exact": True, "steps": 20}


@contextmanager
def serving(folder: Path, root: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """The command on a cluster of its own. The guard of tests is not there: Ray asks for the address of its machine."""
    command = [sys.executable, "-m", "app.entry", "serve", "--port", "0", "--ray", "local", "--ray-cpus", "1", *words]
    own = {name: value for name, value in os.environ.items() if not name.startswith("LDM_TEST")}
    with (folder / "said").open("a+") as said:
        process = subprocess.Popen(command, cwd=folder, env=own | {"PYTHONPATH": str(root)}, stderr=said, text=True)
        try:
            until, found = time.monotonic() + 240, list[str]()
            while not found:
                assert time.monotonic() < until and process.poll() is None, (folder / "said").read_text()
                time.sleep(0.1)
                found = re.findall(r"(http://127\.0\.0\.1:\d+) ", (folder / "said").read_text())
            with httpx.Client(base_url=found[-1], timeout=60, trust_env=False) as client:
                yield process, client
        finally:
            process.terminate()
            try:
                process.wait(60)
            finally:
                process.kill()
        (folder / "said").write_text("")


def children(process: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    """The processes of a name in the cluster of a server: they are its descendants."""
    there = psutil.Process(process.pid).children(recursive=True)
    return [one for one in there if any(word.startswith(name) for word in words_of(one)[:1])]


def told(http: httpx.Client, job: str) -> dict[str, Any]:
    answer: dict[str, Any] = http.get(f"/v1/jobs/{job}").json()
    return answer


def told_of(http: httpx.Client, job: str) -> list[tuple[str, int]]:
    """The pictures of a job, each as often as it is told of from now on."""
    return [(job, data["place"]) for kind, data in events(http, job) if kind == "picture"]


def ends(http: httpx.Client, jobs: list[str]) -> list[dict[str, Any]]:
    until = time.monotonic() + 240
    while any(told(http, job)["state"] in ("queued", "running") for job in jobs):
        assert time.monotonic() < until
        time.sleep(0.05)
    return [told(http, job) for job in jobs]


@pytest.fixture(scope="module")
def two(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server with two replicas that have made something."""
    folder = tmp_path_factory.mktemp("two")
    with serving(folder, root, "--replicas", "2") as (process, http):
        assert all(job["state"] == "done" for job in ends(http, [submitted(http, **EXACT) for _ in range(4)]))
        yield process, http, folder / "outputs" / "server" / "pictures"


@pytest.mark.torture
@pytest.mark.loopback
def test_two_replicas_make_the_pictures_of_one_worker(two: Any, service: Service) -> None:
    _, http, _ = two
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "PNG")
    upload = http.post("/v1/uploads", content=file.getvalue(), headers={"content-type": "image/png"}).json()["id"]
    service.uploads.add(file.getvalue())
    more = [{"seed": n, "steps": 40} for n in range(5)] + [{"image": upload, "strength": 0.5}]
    jobs, at_once = [submitted(http, **EXACT | one) for one in more], 0
    while (counts := http.get("/v1/jobs", params={"limit": 1}).json()["counts"]).keys() & {"queued", "running"}:
        at_once = max(at_once, counts.get("running", 0))
    assert at_once == 2
    for job in ends(http, jobs):
        assert job["state"] == "done", job
        alone = made(service, job["request"])
        assert [m.told for m in alone.pictures] == [
            {name: m[name] for name in alone.pictures[0].told} for m in job["pictures"]
        ]
        one, other = (http.get(job["pictures"][0]["url"]).content, service.gallery.path(alone, 0).read_bytes())
        assert one == other
    together = ends(http, [submitted(http, seed=n, steps=9) for n in range(8)])  # of one kind: they share calls
    assert {job["state"] for job in together} == {"done"}


@pytest.mark.torture
@pytest.mark.loopback
def test_a_replica_is_killed_in_the_middle(two: Any) -> None:
    process, http, folder = two
    pictures = list[tuple[str, int]]()  # as they were told of, which the files do not show: the first one stays
    jobs = [submitted(http, seed=10 * n, count=4, batch=1, **EXACT | {"steps": 60}) for n in range(4)]
    heard = [Thread(target=lambda job=job: pictures.extend(told_of(http, job))) for job in jobs]
    for one in heard:
        one.start()
    soon(http, jobs[0], lambda told: bool(told["pictures"]))
    (first, *_) = children(process, "ray::ServeReplica")
    first.send_signal(signal.SIGKILL)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    for job in ends(http, jobs):
        assert job["state"] == "done" and [m["place"] for m in job["pictures"]] == [0, 1, 2, 3]
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert before.items() <= after.items()
    assert {f"{job}-{place:04d}.png" for job in jobs for place in range(4)} <= after.keys()
    assert not [name for name in after if "partial" in name or name.startswith(".")]
    assert http.get("/healthz").status_code == 200
    for one in heard:
        one.join(60)
    assert len(pictures) == len(set(pictures)) and len(pictures) >= 12, "one was made twice"


@pytest.mark.torture
@pytest.mark.loopback
@pytest.mark.parametrize("keep", [True, False])
def test_a_job_is_cancelled_within_a_step(two: Any, keep: bool) -> None:
    """It takes the way to the replica: a step or two of 17 ms."""
    _, http, _ = two
    job = submitted(http, steps=150, count=20)
    soon(http, job, lambda told: told.get("progress", {}).get("step", 0) > 2)
    at = told(http, job)["progress"]["step"]
    began = time.monotonic()
    http.post(f"/v1/jobs/{job}/cancel", params={"keep": keep})
    soon(http, job, lambda told: told["state"] == "cancelled")
    assert time.monotonic() - began < 1
    pictures = told(http, job)["pictures"]
    assert bool(pictures) is keep
    if keep:
        assert all(one["partial"] and at <= one["steps"] <= at + 12 for one in pictures)


@pytest.mark.torture
@pytest.mark.loopback
def test_serve_listens_nowhere_and_ray_to_those_who_have_the_token(two: Any) -> None:
    """Its proxy is not begun, nor Ray's dashboard; the other ports of Ray are not ours to close."""
    process, _, _ = two
    there = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    names = " ".join(" ".join([one.name(), *words_of(one)[:1]]) for one in there)
    assert "ServeReplica" in names and "ServeController" in names
    assert "Proxy" not in names and "haproxy" not in names
    pids = {one.pid for one in there}
    ports = {
        one.laddr.port for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN and one.pid in pids
    }
    assert ports and not ports & {8000, 8265, 9000}  # of Serve's HTTP, the dashboard, Serve's gRPC
    (address,) = {word for one in there for word in words_of(one) if word.startswith("--gcs-address=")}
    code = "import ray, sys; ray.init(address=sys.argv[1])"
    command = [sys.executable, "-c", code, address.partition("=")[2]]
    own = {name: value for name, value in os.environ.items() if not name.startswith("LDM_TEST")}
    stranger = subprocess.run(command, env=own | {"RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True)
    assert stranger.returncode != 0 and "token" in stranger.stderr


@pytest.mark.torture
@pytest.mark.loopback
def test_replicas_come_as_the_work_wants_and_a_killed_server_goes_on(root: Path, tmp_path: Path) -> None:
    with serving(tmp_path, root, "--replicas", "1:2") as (process, http):
        jobs = [submitted(http, seed=n, count=10, batch=1, **EXACT | {"steps": 60}) for n in range(4)]
        soon(http, jobs[0], lambda told: bool(told["pictures"]))
        until = time.monotonic() + 120
        while len(children(process, "ray::ServeReplica")) < 2:
            assert time.monotonic() < until
            time.sleep(0.1)
        process.kill()
        process.wait()
    folder = tmp_path / "outputs" / "server" / "pictures"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if not path.name.startswith(".")}
    with serving(tmp_path, root) as (_, http):
        assert [(job["state"], len(job["pictures"])) for job in ends(http, jobs)] == [("done", 10)] * 4
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert before and before.items() <= after.items() and len(after) == 40


@pytest.mark.torture
def test_what_the_server_has_in_its_hands(root: Path, tmp_path: Path) -> None:
    """Others have all of the cluster; a job is cancelled while it is sent; a replica meets a bug."""
    command = [sys.executable, "-m", "tests.app.server.on_a_cluster", str(tmp_path / "server")]
    own = {name: value for name, value in os.environ.items() if not name.startswith("LDM_TEST")}
    done = subprocess.run(
        command, cwd=tmp_path, env=own | {"PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.torture
def test_a_cluster_without_room_is_told_at_once(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app.entry", "serve", "--port", "0", "--ray", "local", "--ray-cpus", "4096"]
    own = {name: value for name, value in os.environ.items() if not name.startswith("LDM_TEST")}
    done = subprocess.run(
        command, cwd=tmp_path, env=own | {"PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == Code.RESOURCE and "no room" in done.stderr and "--ray-cpus" in done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.loopback
@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--replicas", "2"), Code.USAGE, "--ray"),
        (("--ray", "local", "--replicas", "3:1"), Code.USAGE, "MIN:MAX"),
        (("--ray", "local", "--replicas", "0:1"), Code.USAGE, "MIN:MAX"),
        (("--ray", "local", "--replicas", "many"), Code.USAGE, "MIN:MAX"),
        (("--ray", "local", "--ray-cpus", "0"), Code.USAGE, "--ray-cpus"),
        (("--ray", "nothing"), Code.USAGE, "No Ray cluster"),
        (("--ray", "ray://127.0.0.1:10001"), Code.USAGE, "on a machine of the cluster"),
    ],
)
def test_what_cannot_be_is_said(ldm: Ldm, words: tuple[str, ...], status: Code, said: str) -> None:  # noqa: F811
    done = ldm("serve", "--port", 0, *words)
    assert (done.status, said in done.err) == (status, True), done
    assert not Path("outputs").exists()


@pytest.mark.loopback
def test_an_address_where_nobody_listens_is_said_within_seconds(ldm: Ldm) -> None:  # noqa: F811
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    began = time.monotonic()
    done = ldm("serve", "--port", 0, "--ray", address)
    assert done.status == Code.USAGE and address in done.err and "ray start --head" in done.err
    assert time.monotonic() - began < 30


@pytest.mark.loopback
@pytest.mark.parametrize("lacking", ["ray", "ray.serve"])
def test_what_is_not_installed_is_said(ldm: Ldm, monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:  # noqa: F811
    monkeypatch.setitem(sys.modules, lacking, None)
    done = ldm("serve", "--port", 0, "--ray", "local")
    assert done.status == Code.USAGE and lacking in done.err and "pip install 'ldm[ray]'" in done.err


def test_numbers_of_replicas() -> None:
    assert numbers("3") == (3, 3) and numbers("1:4") == (1, 4)
    for wrong in ("", ":", "1:", ":2", "-1", "1:2:3", "1.5", "2:100000"):
        with pytest.raises(LdmError):
            numbers(wrong)


def test_room_is_counted_on_machines_with_cards_where_there_are_some() -> None:
    def node(alive: bool = True, **there: float) -> dict[str, Any]:
        return {"Alive": alive, "Resources": there}

    assert room([node(CPU=5), node(CPU=2), node(CPU=1), node(False, CPU=64)], 2) == (3, False)
    assert room([node(CPU=64), node(CPU=8, GPU=4), node(CPU=4, GPU=4)], 2) == (6, True)
    assert room([], 1) == (0, False)
