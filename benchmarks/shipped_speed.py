"""How long a picture of a shipped model takes: beside stock diffusers, by its student, and from a cold shell.

python -m benchmarks.shipped_speed --model emoji --student emoji-fast --prompt "crying face, noto style" [--write]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import write
from benchmarks.startup import LDM
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
        "diffusers, its defaults": lambda: stock(prompt),
        "ours, its own settings": lambda: ours(prompt, seed=1),
    }
    if student:
        fast = Pipeline.load(model, device="cpu", dtype="float32")
        use = (LoraUse(path=Path(student)),)  # which brings the settings that suit it
        calls["student"] = lambda: fast(prompt, loras=use, seed=1)
    return taking_turns(calls)


# What `ldm generate` does, as its users write it on diffusers.
STOCK = """
import sys, torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
folder, prompt, steps, scale, out = sys.argv[1:]
told = {"safety_checker": None, "local_files_only": True, "torch_dtype": torch.float32}
pipeline = StableDiffusionPipeline.from_pretrained(folder, **told)
pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
pipeline.set_progress_bar_config(disable=True)
draw = torch.Generator().manual_seed(1)
picture = pipeline(prompt, num_inference_steps=int(steps), guidance_scale=float(scale), generator=draw).images[0]
picture.save(out)
"""


def cold(model: str, prompt: str) -> dict[str, float]:
    """Seconds of a process of its own, from its start to the PNG, with the same settings."""
    with tempfile.TemporaryDirectory() as folder:
        told = ("--steps", str(STEPS), "--solver", "ddim", "--guidance", str(SCALE), "--seed", "1", "--quiet")
        ours = (LDM, "generate", prompt, "--model", model, "--out", folder, *told)
        stock = (sys.executable, "-c", STOCK, str(find_model(model)), prompt, str(STEPS), str(SCALE), f"{folder}/a.png")
        calls = {"ldm generate": ours, "a script on diffusers": stock}
        spent = taking_turns(
            {name: partial(subprocess.run, call, check=True, capture_output=True) for name, call in calls.items()}
        )
    return spent | {"ratio": round(spent["ldm generate"] / spent["a script on diffusers"], 2)}


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
        "times the defaults of diffusers (50 steps)": {
            name: round(spent["diffusers, its defaults"] / spent[name], 2)
            for name in ("ours, its own settings", "student")
            if name in spent
        },
        "from a cold shell to the PNG, seconds": cold(model, prompt),
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
