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


COLLECTOR = """
import gc, sys, time
from app import entry
begin, spent = [0.0], []
def noted(phase, info):
    if phase == "start":
        begin[0] = time.perf_counter()
    else:
        spent.append(time.perf_counter() - begin[0])
gc.callbacks.append(noted)
if sys.argv.pop(1) == "stock":
    entry.THRESHOLDS = gc.get_threshold()
try:
    entry.main()
finally:
    print("collector", sum(spent), file=sys.stderr)
"""


def collecting(thresholds: str, *arguments: str, runs: int) -> float:
    """Median seconds that Python's collector of cycles takes of a command, with our thresholds or the stock ones.

    Its own clock: from outside, the difference drowns in what else a machine does.
    """
    spent = []
    for _ in range(runs + 1):
        command = (sys.executable, "-c", COLLECTOR, thresholds, *arguments)
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        spent.append(float(done.stderr.rpartition("collector ")[2]))
    return round(statistics.median(spent[1:]), 3)


def measure() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        generate = (LDM, "generate", "a red circle", "--model", "scenes", "--seed", "1", "--out", folder, "--quiet")
        return {
            "python -c pass": seconds(sys.executable, "-c", "pass", runs=9),
            "ldm --help": seconds(LDM, "--help", runs=9),
            "ldm models show scenes": seconds(LDM, "models", "show", "scenes", runs=5),
            "import torch": seconds(sys.executable, "-c", "import torch", runs=3),
            "ldm generate (scenes, 32 px, 25 steps)": seconds(*generate, runs=3),
            "of it, the collector of cycles": collecting("ours", *generate[1:], runs=3),
            "the same with Python's own thresholds": collecting("stock", *generate[1:], runs=3),
            "ldm doctor": seconds(LDM, "doctor", runs=3),
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/results/startup.json")
    figures = measure()
    print(figures)
    if parser.parse_args().write:
        print(write("startup", figures))
