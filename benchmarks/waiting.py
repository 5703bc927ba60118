"""How threads of OpenMP should wait for each other: by turning, for a while, or asleep; alone and on a busy machine.

python -m benchmarks.waiting [--write]

Whole commands in turns, median seconds. Beside each run stand none, or one busy program for each core.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from typing import Any

from benchmarks.machine import write
from benchmarks.startup import LDM

WAYS = {
    "300,000 turns, as libgomp has it": {"GOMP_SPINCOUNT": "300000", "OMP_WAIT_POLICY": ""},
    "1,000 turns, our default": {"GOMP_SPINCOUNT": "1000", "OMP_WAIT_POLICY": ""},
    "asleep": {"GOMP_SPINCOUNT": "", "OMP_WAIT_POLICY": "passive"},
}
ROUNDS, COUNT, STEPS = 3, 4, 15


def once(way: dict[str, str], busy: int) -> float:
    environment = {name: value for name, value in (os.environ | way).items() if value}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for _ in range(busy):
            other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            stack.callback(other.wait)
            stack.callback(other.kill)
        begin = time.perf_counter()
        command = [LDM, "generate", "red apple, noto style", "--seed", "1", "--count", str(COUNT), "--batch", "1"]
        subprocess.run(
            [*command, "--steps", str(STEPS), "--out", folder, "--quiet"],
            check=True,
            env=environment,
            capture_output=True,
        )
        return time.perf_counter() - begin


def measure() -> dict[str, Any]:
    told: dict[str, Any] = {"pictures": COUNT, "steps": STEPS}
    for name, busy in (("alone", 0), ("beside one busy program a core", os.cpu_count() or 1)):
        spent: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(ROUNDS):
            for way, environment in WAYS.items():
                spent[way].append(once(environment, busy))
        told[name] = {way: round(statistics.median(seconds), 2) for way, seconds in spent.items()}
    return told


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/results/waiting.json")
    figures = measure()
    print(figures)
    if parser.parse_args().write:
        print(write("waiting", figures))
