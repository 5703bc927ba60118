"""What `ldm serve` bears on the shipped model: callers at once, its memory, and callers who leave.

python -m benchmarks.serve [--write] [--pictures 2000] [--leaving 500] [--only-leaving]

Throughput is a ratio: so many callers at once against one after another, on the same server in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.machine import write
from benchmarks.startup import LDM

ASKED = {"prompt": "red apple, noto style"}
ROUNDS = 3


@contextmanager
def served(folder: Path, *words: str) -> Iterator[tuple[httpx.Client, psutil.Process]]:
    """The server in a process of its own, its model loaded."""
    command = (LDM, "serve", "--port", "0", "--out", str(folder), *words)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = next(found for line in process.stderr if (found := re.match(r"(http://\S+)", line)))
        limits = httpx.Limits(max_connections=256, max_keepalive_connections=256)
        with httpx.Client(base_url=found[1], timeout=120, trust_env=False, limits=limits) as http:
            drawn(http, "warm", 0)
            yield http, psutil.Process(process.pid)
        process.terminate()
        process.wait(120)


def drawn(http: httpx.Client, caller: str, seed: int, **more: Any) -> float:
    """Seconds from asking for a picture to having it."""
    began = time.perf_counter()
    asked = http.post("/v1/jobs", json=ASKED | {"seed": seed} | more, headers={"x-client": caller})
    asked.raise_for_status()
    while (answer := http.get(f"/v1/jobs/{asked.json()['id']}/result", params={"wait": 60})).status_code == 409:
        continue
    answer.raise_for_status()
    return time.perf_counter() - began


def load(http: httpx.Client, callers: int, each: int) -> dict[str, Any]:
    """So many callers at once, each asking for one picture after another."""

    def one(number: int) -> list[float]:
        return [drawn(http, f"caller {number}", 1000 * number + n) for n in range(each)]

    began = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        waits = list(pool.map(one, range(callers)))
    seconds = time.perf_counter() - began
    means = [statistics.mean(one) for one in waits]
    return {
        "pictures a second": callers * each / seconds,
        "median wait": statistics.median(means),
        "longest mean wait over the median": max(means) / statistics.median(means),
    }


def throughput(http: httpx.Client) -> dict[str, Any]:
    """One caller, eight and thirty-two, in turn."""
    found: dict[int, list[dict[str, Any]]] = {1: [], 8: [], 32: []}
    for _ in range(ROUNDS):
        for callers, rounds in found.items():
            rounds.append(load(http, callers, {1: 16, 8: 5, 32: 2}[callers]))
    told: dict[str, Any] = {}
    for callers, rounds in found.items():
        told[f"{callers} at once"] = {
            name: round(statistics.median(one[name] for one in rounds), 3) for name in rounds[0]
        }
    for callers in (8, 32):
        ratios = [
            many["pictures a second"] / one["pictures a second"]
            for many, one in zip(found[callers], found[1], strict=True)
        ]
        told[f"{callers} at once over one after another"] = [round(ratio, 2) for ratio in ratios]
    return told


def overflow(http: httpx.Client, callers: int = 48) -> dict[str, Any]:
    """More than may wait: who is refused is told when to come again."""

    def ask(number: int) -> httpx.Response:
        return http.post("/v1/jobs", json=ASKED | {"seed": number, "exact": True})

    with ThreadPoolExecutor(callers) as pool:
        answers = list(pool.map(ask, range(callers)))
    codes = [answer.status_code for answer in answers]
    refused = [answer for answer in answers if answer.status_code == 429]
    for answer in answers:
        if answer.status_code == 202:
            http.get(f"/v1/jobs/{answer.json()['id']}/result", params={"wait": 60})
    return {
        "asked at once": callers,
        "taken": codes.count(202),
        "refused with Retry-After": sum("retry-after" in answer.headers for answer in refused),
        "other answers": len(codes) - codes.count(202) - codes.count(429),
    }


def memory(http: httpx.Client, process: psutil.Process, pictures: int) -> dict[str, Any]:
    """After a first tenth, and after so many more; two steps each, for memory does not know how good they are."""
    sizes = []
    for jobs in (pictures // 1000, pictures // 100):
        for number in range(max(1, jobs)):
            job = http.post("/v1/jobs", json=ASKED | {"seed": number, "count": 100, "steps": 2}).json()["id"]
            while http.get(f"/v1/jobs/{job}/result", params={"wait": 60}).status_code == 409:
                continue
        sizes.append(process.memory_info().rss)
    return {"pictures": pictures, "MB before": sizes[0] >> 20, "growth": round(sizes[1] / sizes[0] - 1, 4)}


def leaving(http: httpx.Client, folder: Path, count: int) -> dict[str, Any]:
    """Jobs that are cancelled and calls that are dropped, in turn, each while its picture is drawn: how long the worker
    goes on, beside a step."""
    spent, step = list[float](), step_seconds(http)
    files = len(list((folder / "pictures").iterdir()))
    for number in range(count):
        if number % 2:
            job = http.post("/v1/jobs", json=ASKED | {"steps": 150, "seed": number}).json()["id"]
            until_running(http, job)
            began = time.perf_counter()
            http.post(f"/v1/jobs/{job}/cancel", params={"keep": False})
        else:
            job = dropped(http, number)
            began = time.perf_counter()
        until_over(http, job)
        spent.append(time.perf_counter() - began)
    counts = http.get("/v1/jobs", params={"limit": 1}).json()["counts"]
    return {
        "left": count,
        "seconds a step": round(step, 4),
        "median seconds to be free": round(statistics.median(spent), 4),
        "99 % within": round(sorted(spent)[int(0.99 * (count - 1))], 4),
        "files left behind": len(list((folder / "pictures").iterdir())) - files,
        "jobs left behind": counts.get("running", 0) + counts.get("queued", 0),
    }


def dropped(http: httpx.Client, number: int) -> str:
    """A call in the dialect of A1111 whose connection is closed in the middle; its job."""
    told = {"prompt": ASKED["prompt"], "steps": 150, "seed": number, "width": 64, "height": 64}
    body, last = json.dumps(told).encode(), newest(http)
    with socket.create_connection((http.base_url.host, http.base_url.port)) as raw:
        head = f"POST /sdapi/v1/txt2img HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        raw.sendall(head.encode() + body)
        while (job := newest(http)) == last:
            time.sleep(0.01)
        until_running(http, job)
    return job


def newest(http: httpx.Client) -> str:
    job: str = http.get("/v1/jobs", params={"limit": 1}).json()["jobs"][0]["id"]
    return job


def until_running(http: httpx.Client, job: str) -> None:
    while http.get(f"/v1/jobs/{job}").json().get("progress", {}).get("step", 0) < 1:
        time.sleep(0.01)


def until_over(http: httpx.Client, job: str) -> None:
    """Asked once: a server that is asked again and again takes longer for the step that is waited for."""
    while http.get(f"/v1/jobs/{job}/result", params={"wait": 60}).status_code == 409:
        continue


def step_seconds(http: httpx.Client) -> float:
    """Of one picture alone, by the difference of many steps and few."""
    few, many = (min(drawn(http, "alone", 1, steps=n, exact=True) for _ in range(3)) for n in (10, 50))
    return (many - few) / 40


def beside_slow_ones(http: httpx.Client) -> dict[str, Any]:
    """F17: fifty heads that dribble, ten connections on which nothing comes, ten bodies that stall; how long others
    wait for a list of jobs, at the 95th of 100, beside them and without."""

    def waits() -> float:
        spent = list[float]()
        for _ in range(200):
            began = time.perf_counter()
            http.get("/v1/jobs", params={"limit": 1}).raise_for_status()
            spent.append(time.perf_counter() - began)
        return sorted(spent)[int(0.95 * len(spent))]

    before = waits()
    where = (http.base_url.host, http.base_url.port)
    with ExitStack() as stack:
        raws = [stack.enter_context(socket.create_connection(where)) for _ in range(70)]
        for raw in raws[60:]:
            raw.sendall(b"POST /v1/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        ending = threading.Event()

        def dribble() -> None:
            while not ending.wait(0.2):
                for raw in raws[:50]:
                    with contextlib.suppress(OSError):
                        raw.sendall(b"G")

        thread = threading.Thread(target=dribble)
        thread.start()
        beside = waits()
        ending.set()
        thread.join()
    return {"95 % wait less than": round(before, 4), "beside 70 slow ones": round(beside / before, 2)}


def leaving_alone(count: int) -> dict[str, Any]:
    """That part anew, beside the others as they stand in docs/results/serve.json."""
    told: dict[str, Any] = json.loads(Path("docs/results/serve.json").read_text("utf-8"))["figures"]
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "server"
        with served(folder) as (http, _):
            drawn(http, "first", 1)
            return told | {"callers who leave": leaving(http, folder, count)}


def measure(pictures: int, count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "server"
        with served(folder) as (http, process):
            told = throughput(http)
            told["more than may wait"] = overflow(http)
            told["a list of jobs"] = beside_slow_ones(http)
            told["callers who leave"] = leaving(http, folder, count)
            told["memory"] = memory(http, process, pictures)
            return told


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/results/serve.json")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--leaving", type=int, default=500)
    parser.add_argument("--only-leaving", action="store_true", help="the callers who leave, and no other part")
    given = parser.parse_args()
    figures = leaving_alone(given.leaving) if given.only_leaving else measure(given.pictures, given.leaving)
    print(json.dumps(figures, indent=2))
    if given.write:
        print(write("serve", figures))
