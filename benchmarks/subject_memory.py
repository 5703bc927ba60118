"""Memory of a LoRA step on a model of the size of SD 1.5, 512 pixels: promised <= 12 GB on a processor, 8 GB on a card.

    python -m benchmarks.subject_memory [--precision fp32 bf16] [--disk FOLDER] [--write]

Random weights in true shapes, two steps of one picture, activations recomputed, latents cached or not; the peak is that
of the whole process, imports and reading the file included. On a card it is that of the card's memory besides.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.load_memory import make
from benchmarks.machine import write
from benchmarks.startup import LDM

RUN = """
task: {{type: lora, model: {model}, rank: 16, token: zwx}}
data: {{path: {photos}, size: 512, caption: "a photo of zwx"}}
optim: {{kind: adamw8bit, lr: 1.0e-4}}
run: {{out: {out}, {cache}steps: 2, batch: 1, precision: {precision}, checkpointing: true, save: 2, device: {device}}}
"""
CHILD = """
import sys
from app.cli import run
status = run(sys.argv[1:])
import torch
print(torch.cuda.max_memory_allocated())
sys.exit(status)
"""
PROMISED = {"cpu": 12.0, "cuda": 8.0}  # GB


def step(folder: Path, precision: str, cached: bool, device: str) -> dict[str, Any]:
    """Peak memory of a run of two steps, in GB, and the seconds of a step."""
    name = f"{precision}-{'cached' if cached else 'plain'}"
    cache = f"cache: {folder / f'cache-{name}'}, " if cached else ""
    run = folder / f"{name}.yaml"
    run.write_text(
        RUN.format(model=folder / "sd15.safetensors", photos=folder / "photos", out=folder / name, cache=cache,
                   precision=precision, device=device)
    )  # fmt: skip
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", CHILD, "train", str(run), "--quiet"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    said = child.stdout.read().split()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"ldm train {run} ended with {os.waitstatus_to_exitcode(status)}")
    told = {"peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2), "seconds": round(time.perf_counter() - began, 1)}
    return told | ({"card_gb": round(int(said[-1]) / 1e9, 2)} if device == "cuda" else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--device", default="cpu", choices=sorted(PROMISED))
    parser.add_argument("--disk", help="a folder with 4.5 GB to spare")
    parser.add_argument("--write", action="store_true", help="write docs/results/subject_memory.json")
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=args.disk) as temporary:
        folder = Path(temporary)
        make(folder / "sd15.safetensors", "F16")
        draw = [LDM, "data", "draw", folder / "photos", "--character", "3", "--count", "2", "--size", "512"]
        subprocess.run(draw, check=True)
        for precision, cached in itertools.product(args.precision, (True, False)):
            name = f"{precision}, latents {'cached' if cached else 'not cached'}"
            figures[name] = step(folder, precision, cached, args.device)
            print(name, figures[name], flush=True)
    if args.write:
        print(write("subject_memory", figures))
    key = "card_gb" if args.device == "cuda" else "peak_gb"
    if (worst := max(told[key] for told in figures.values())) > PROMISED[args.device]:
        raise SystemExit(f"{worst} GB, promised {PROMISED[args.device]}")


if __name__ == "__main__":
    main()
