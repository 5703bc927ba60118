"""How far half precision, batches and threads take a picture from fp32, one at a time, on one thread.

python -m benchmarks.precision [--write]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from benchmarks.machine import write
from pipelines.pipeline import Pipeline
from pipelines.request import GuidanceUse, Request

PROMPTS = ("a red circle", "two blue squares", "a green triangle on the left", "a yellow ring on a black background")
PICTURES = 8  # a prompt


def pictures(pipeline: Pipeline, batch: int) -> np.ndarray:
    """[N,H,W,3] samples of all prompts."""
    made = []
    for prompt in PROMPTS:
        request = Request(prompt=prompt, count=PICTURES, batch=batch, guidance=GuidanceUse(scale=4.0))
        made += [r.picture.pixels.astype(int) for r in pipeline.results(request)]
    return np.stack(made)


def against(reference: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Differences in levels of 255: the greatest, the mean, and the worst picture's PSNR."""
    diff = np.abs(reference - other)
    errors = (diff.astype(float) ** 2).mean(axis=(1, 2, 3))
    worst = float(10 * np.log10(255**2 / max(errors.max(), 1e-9)))
    return {"max": int(diff.max()), "mean": round(float(diff.mean()), 4), "worst_psnr_db": round(worst, 1)}


def measure() -> dict[str, dict[str, float]]:
    torch.set_num_threads(1)
    full = Pipeline.load("scenes", device="cpu", dtype="float32")
    reference = pictures(full, 1)
    figures = {"fp32, batch 8": against(reference, pictures(full, 8))}
    torch.set_num_threads(2)
    figures["fp32, 2 threads"] = against(reference, pictures(full, 1))
    torch.set_num_threads(1)
    for dtype in ("bfloat16", "float16"):
        half = Pipeline.load("scenes", device="cpu", dtype=dtype)
        figures[dtype] = against(reference, pictures(half, 1))
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/results/precision.json")
    figures = measure()
    print(figures)
    if parser.parse_args().write:
        print(write("precision", figures))
