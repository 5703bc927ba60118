"""How long a picture of a shipped model takes: beside stock diffusers, by its student, and from a cold shell.

python -m benchmarks.shipped_speed --model emoji --student emoji-fast --prompt "crying face, noto style" [--write]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import write
from benchmarks.startup import LDM, seconds
from ldm.store.find import find_adapter, find_model, shipped
from ldm.store.sampling import read_sampling
from pipelines.pipeline import Pipeline
from pipelines.request import LoraUse

REPEATS, STEPS, SCALE = 7, 25, 4.0  # those of ours and of diffusers


def taking_turns(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each; one after another in every round, so that whatever else runs meets all alike."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPEATS + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            spent[name].append(time.perf_counter() - begin)
    return {name: round(statistics.median(times[1:]), 4) for name, times in spent.items()}


def warm(model: str, student: str | None, prompt: str) -> dict[str, float]:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    ours, folder = Pipeline.load(model, device="cpu", dtype="float32"), find_model(model)
    stock = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, torch_dtype=torch.float32)
    stock.scheduler = DDIMScheduler.from_config(stock.scheduler.config)
    stock.set_progress_bar_config(disable=True)
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(prompt, steps=STEPS, solver="ddim", guidance={"scale": SCALE}, seed=1),
        "diffusers": lambda: stock(prompt, num_inference_steps=STEPS, guidance_scale=SCALE),
        "ours, its own settings": lambda: ours(prompt, seed=1),
    }
    if student:
        fast = Pipeline.load(model, device="cpu", dtype="float32")
        use = (LoraUse(path=Path(student)),)  # which brings the settings that suit it
        calls["student"] = lambda: fast(prompt, loras=use, seed=1)
    return taking_turns(calls)


def cold(model: str, prompt: str) -> float:
    """Seconds of `ldm generate` as a process of its own, from its start to the PNG."""
    with tempfile.TemporaryDirectory() as folder:
        return seconds(LDM, "generate", prompt, "--model", model, "--seed", "1", "--out", folder, "--quiet", runs=3)


def measure(model: str, student: str | None, prompt: str) -> dict[str, Any]:
    spent = warm(model, student, prompt)
    return {
        "model": model,
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "ours and diffusers": {"solver": "ddim", "steps": STEPS, "guidance": SCALE},
        "its own settings": read_sampling(find_model(model)).model_dump(exclude_none=True),
        **({"student": read_sampling(find_adapter(student)).model_dump(exclude_none=True)} if student else {}),
        "seconds a picture, warm": spent,
        "times diffusers": round(spent["diffusers"] / spent["ours"], 2),
        "ldm generate from a cold shell, seconds": cold(model, prompt),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help=f"one of {', '.join(shipped())}, or a folder")
    parser.add_argument("--student", help="a few-step adapter of it")
    parser.add_argument("--prompt", default="crying face, noto style")
    parser.add_argument("--write", action="store_true", help="write docs/results/shipped_speed.json")
    args = parser.parse_args()
    figures = measure(args.model, args.student, args.prompt)
    print(figures)
    if args.write:
        print(write("shipped_speed", figures))
