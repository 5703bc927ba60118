"""How many pictures `ldm batch` makes in a second on the shipped model: alone, sharing calls, by two processes.

python -m benchmarks.batch [--write] [--requests 96]

Times are from the first picture to the last, so that loading a model is left out; rounds are in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.machine import write
from benchmarks.startup import LDM

ROUNDS = 2
# name -> processes, threads of each, requests that share calls
WAYS = {
    "one process of two threads, requests alone": (1, 2, 1),
    "one process of two threads, eight share calls": (1, 2, 8),
    "one process of one thread, eight share calls": (1, 1, 8),
    "two processes of one thread, eight share calls": (2, 1, 8),
}


def pictures_a_second(requests: int, processes: int, threads: int, together: int) -> tuple[float, float]:
    """And the seconds until the first picture was there."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        home.joinpath("prompts.jsonl").write_text('"red apple, noto style"\n' * requests)
        chunk = max(8, requests // (4 * processes))
        command = (LDM, "batch", "prompts.jsonl", "--out", "made", "--chunk", str(chunk), "--together", str(together))
        own = {"OMP_NUM_THREADS": str(threads), "WORLD_SIZE": str(processes)}
        began = time.time()
        running = [
            subprocess.Popen(command, cwd=home, env=os.environ | own | {"RANK": str(rank)}, stderr=subprocess.DEVNULL)
            for rank in range(processes)
        ]
        for process in running:
            assert process.wait(1200) == 0
        whens = sorted(path.stat().st_mtime for path in home.glob("made/pictures/*/*.png"))
        assert len(whens) == requests
        lots = processes * together  # that are there at once in the beginning: how long they took is not seen
        return (requests - lots) / (whens[-1] - whens[0]), whens[0] - began


def measure(requests: int) -> dict[str, object]:
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    first = list[float]()
    for _ in range(ROUNDS):
        for name, way in WAYS.items():
            rate, begun = pictures_a_second(requests, *way)
            found[name].append(rate)
            first.append(begun)
    rates: dict[str, object] = {name: round(statistics.median(each), 3) for name, each in found.items()}

    def ratio(one: str, other: str) -> list[float]:
        return [round(a / b, 2) for a, b in zip(found[one], found[other], strict=True)]

    alone, shared, single, two = WAYS
    return {
        "requests": requests,
        "pictures a second": rates,
        "sharing calls over alone": ratio(shared, alone),
        "two processes over one, a thread each": ratio(two, single),
        "two processes over one of two threads": ratio(two, shared),
        "seconds until the first picture": round(statistics.median(first), 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/results/batch.json")
    parser.add_argument("--requests", type=int, default=96)
    given = parser.parse_args()
    figures = measure(given.requests)
    print(json.dumps(figures, indent=2))
    if given.write:
        print(write("batch", figures))
