"""How long the command line takes to answer, from a cold shell: whole processes, median of several runs.

python -m benchmarks.startup [--write]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import write

LDM = str(Path(sys.executable).with_name("ldm"))


def seconds(*command: str, runs: int) -> float:
    """Median wall time; one run before warms the disk cache."""
    times = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - begin)
    return round(statistics.median(times[1:]), 3)


def in_turns(arguments: Sequence[str], runs: int) -> dict[str, float]:
    """A first picture with our thresholds of Python's collector and with its own, one after another in each round."""
    stock = "import gc; from app import entry; entry.THRESHOLDS = gc.get_threshold(); entry.main()"
    ways = {"": (LDM, *arguments), ", Python's own collector": (sys.executable, "-c", stock, *arguments)}
    spent: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(runs + 1):
        for way, command in ways.items():
            begin = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            spent[way].append(time.perf_counter() - begin)
    name = "ldm generate (scenes, 32 px, 25 steps)"
    return {name + way: round(statistics.median(times[1:]), 3) for way, times in spent.items()}


def measure() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        generate = (LDM, "generate", "a red circle", "--model", "scenes", "--seed", "1", "--out", folder, "--quiet")
        return {
            "python -c pass": seconds(sys.executable, "-c", "pass", runs=9),
            "ldm --help": seconds(LDM, "--help", runs=9),
            "ldm models show scenes": seconds(LDM, "models", "show", "scenes", runs=5),
            "import torch": seconds(sys.executable, "-c", "import torch", runs=3),
            **in_turns(generate[1:], runs=5),
            "ldm doctor": seconds(LDM, "doctor", runs=3),
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/results/startup.json")
    figures = measure()
    print(figures)
    if parser.parse_args().write:
        print(write("startup", figures))
