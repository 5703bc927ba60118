"""What `ldm serve --ray local` makes in a second with one replica and with two, of one thread each.

python -m benchmarks.replicas [--write] [--callers 16] [--each 4]

Servers are in turn, each warm before it is measured. On a machine that does other things the best rates say most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import write
from benchmarks.serve import drawn, load, served

ROUNDS, LOADS = 2, 3
WAYS = {"one replica": 1, "two replicas": 2}


def heaviest(server: psutil.Process) -> float:
    """MB of the largest replica."""
    names = ((one, " ".join(one.cmdline())) for one in server.children(recursive=True))
    return max(one.memory_info().rss for one, name in names if "ServeReplica" in name) / 1e6


def measure(callers: int, each: int) -> dict[str, Any]:
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    memory = list[float]()
    for _ in range(ROUNDS):
        for name, replicas in WAYS.items():
            words = ("--ray", "local", "--ray-cpus", "1", "--replicas", str(replicas))
            with tempfile.TemporaryDirectory() as folder, served(Path(folder), *words) as (http, server):
                with ThreadPoolExecutor(4 * replicas) as pool:  # until each replica has loaded its model
                    list(pool.map(lambda n: drawn(http, f"warm {n}", n, exact=True), range(4 * replicas)))
                found[name] += [load(http, callers, each)["pictures a second"] for _ in range(LOADS)]
                memory.append(heaviest(server))
    return {
        "callers at once": callers,
        "pictures a second": {name: [round(rate, 3) for rate in rates] for name, rates in found.items()},
        "the best": {name: round(max(rates), 3) for name, rates in found.items()},
        "medians": {name: round(statistics.median(rates), 3) for name, rates in found.items()},
        "MB of a replica": round(max(memory)),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/results/replicas.json")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--each", type=int, default=4)
    asked = parser.parse_args()
    figures = measure(asked.callers, asked.each)
    print(json.dumps(figures, indent=2))
    if asked.write:
        print(write("replicas", figures))
