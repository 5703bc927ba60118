"""What the loop adds to the bare scheduler calls of diffusers, with a network that costs nothing.

python -m benchmarks.loop [--write]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import Tensor

from benchmarks.machine import write
from ldm.diffusion.denoise import Guidance, guided
from ldm.diffusion.level import Level
from ldm.diffusion.sample import Prediction, sample
from ldm.diffusion.solver import Run, Solver

STEPS, REPEATS = 25, 21
CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
}
STOCK: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpm++ 2m": DPMSolverMultistepScheduler,
}


def bare(name: str, x: Tensor) -> float:
    """Seconds of the scheduler's own calls with guidance, as a stock pipeline makes them; set-up not counted."""
    scheduler = STOCK[name].from_config(CONFIG)
    scheduler.set_timesteps(STEPS)
    begin = time.perf_counter()
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        null, cond = scaled, scaled
        x = scheduler.step(null + 5.0 * (cond - null), t, x, return_dict=False)[0]
    return time.perf_counter() - begin


def loop(name: str, x: Tensor) -> float:
    """Seconds of the same through our loop."""
    solver = Solver(Run(name, STEPS), CONFIG)

    def branches(scaled: Tensor, level: Level, names: tuple[str, ...]) -> dict[str, Prediction]:
        level = level.expand(len(scaled))
        return {n: Prediction(level.clean(scaled, scaled, "epsilon")) for n in names}

    denoise = guided(branches, Guidance(scale=5.0))
    begin = time.perf_counter()
    for _ in sample(denoise, solver, x):
        pass
    return time.perf_counter() - begin


def median(call: Callable[[], float]) -> float:
    call()
    return statistics.median(call() for _ in range(REPEATS))


def measure() -> dict[str, dict[str, float]]:
    torch.set_num_threads(1)
    figures = {}
    for name in STOCK:
        x = torch.randn(1, 4, 64, 64)
        ours, theirs = median(lambda: loop(name, x)), median(lambda: bare(name, x))  # noqa: B023
        figures[name] = {
            "ours_ms_a_step": round(1000 * ours / STEPS, 3),
            "bare_ms_a_step": round(1000 * theirs / STEPS, 3),
            "added_ms_a_step": round(1000 * (ours - theirs) / STEPS, 3),
        }
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/results/loop.json")
    figures = measure()
    print(figures)
    if parser.parse_args().write:
        print(write("loop", figures))
