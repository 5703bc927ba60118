"""Whether `ldm train FILE --dry-run` is right: forecasts of seven runs beside what they really take.

python -m benchmarks.forecast [NAME ...]       writes docs/results/forecast.json

Each side is a process of its own. Memory is the growth of the resident set from the moment when the libraries are
loaded to the highest point (VmHWM); time is the median of real steps. The forecast knows nothing of the run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.machine import write

STEPS, WARM = 6, 2
COMMON = "run: {out: OUT, steps: 1000, batch: BATCH, threads: 1, preview: 0, evaluate: 0, save: 100000}"
VAE = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 8,
    "mid_block_add_attention": False,
}
VQ = {**VAE, "_class_name": "VQModel", "num_vq_embeddings": 256}
UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [96, 192],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D"] * 2,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["CrossAttnUpBlock2D"] * 2,
    "cross_attention_dim": 64,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
CLIP = {
    "embed_dim": 128,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 4, "width": 192, "head_width": 32, "layers": 6},
    "text_cfg": {"context_length": 32, "width": 128, "heads": 4, "layers": 4},
}
# name -> task, data, batch, and further keys of run
RUNS: dict[str, tuple[str, str, int, str]] = {
    "autoencoder": ("{type: autoencoder, vae: VAE}", "{path: scenes, size: 64, count: 512}", 16, ""),
    "vq with critic": (
        "{type: autoencoder, vae: VQ, critic: {start: 0, guard: 10.0, channels: 32, layers: 2}}",
        "{path: scenes, size: 64, count: 512}",
        16,
        "",
    ),
    "clip": ("{type: clip, model: CLIP, vocabulary: 640}", "{path: scenes, size: 32, count: 2048}", 256, "micro: 64"),
    "diffusion": (
        "{type: diffusion, unet: UNET, vae: scenes, text: scenes}",
        "{path: scenes, size: 64, count: 1024}",
        32,
        "",
    ),
    "diffusion, cache": (
        "{type: diffusion, unet: UNET, vae: scenes, text: scenes}",
        "{path: scenes, size: 64, count: 1024}",
        32,
        "cache: CACHE",
    ),
    "diffusion, checkpointing": (
        "{type: diffusion, unet: UNET, vae: scenes, text: scenes}",
        "{path: scenes, size: 64, count: 1024}",
        64,
        "micro: 32, checkpointing: true",
    ),
    "controlnet": (
        "{type: controlnet, model: scenes}",
        "{path: scenes, size: 64, hint: canny, count: 1024}",
        128,
        "",
    ),
}


def settings(name: str, folder: Path) -> Any:
    """The run file of a name, with its architectures written into `folder`."""
    from ldm.config import loads
    from train.config import RunFile

    task, data, batch, more = RUNS[name]
    for key, config in (("VAE", VAE), ("VQ", VQ), ("UNET", UNET), ("CLIP", CLIP)):
        path = folder / f"{key.lower()}.json"
        path.write_text(json.dumps(config))
        task = task.replace(f": {key}", f": {path}")
    run = COMMON.replace("OUT", str(folder / "run")).replace("BATCH", str(batch))
    run = run.replace("}", f", {more}}}") if more else run
    run = run.replace("CACHE", str(folder / "cache"))
    return loads(f"task: {task}\ndata: {data}\n{run}\n", RunFile, name=name)


def child(name: str, side: str, busy: bool) -> dict[str, float]:
    """One side of one run, in this process."""
    import torch

    import train.run
    from ldm.store.parts import load_parts

    torch.set_num_threads(1)
    if busy:  # of one thread, the processor's time is what the clock would show on a free machine
        time.perf_counter = time.process_time
    layer = torch.nn.Conv2d(3, 8, 3)  # what the first optimiser of a process imports is not the run's
    torch.optim.AdamW(layer.parameters(), fused=True)
    layer(torch.zeros(1, 3, 8, 8)).sum().backward()
    load_parts("scenes")
    with tempfile.TemporaryDirectory() as folder:
        file = settings(name, Path(folder))
        if side == "forecast":
            began = time.perf_counter()
            made = train.run.forecasted(file)
            told = {"bytes": float(made.memory.total), "seconds": float(made.step_seconds or 0)}
            return told | {"took": time.perf_counter() - began}
        Path("/proc/self/clear_refs").write_text("5")
        before, ends = resident("VmRSS"), [time.perf_counter()]
        with train.run.opened(file) as run:
            for step in run.trainer.steps():
                ends.append(time.perf_counter())
                if step.step == STEPS:
                    break
        each = [b - a for a, b in pairwise(ends)][WARM:]
        grown = float(resident("VmHWM") - before)
        return {"bytes": grown, "seconds": statistics.median(each), "after": float(resident("VmRSS") - before)}


def resident(key: str) -> int:
    """Bytes of this process by the system's count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def compare(name: str, busy: bool) -> dict[str, Any]:
    """Forecast beside measure: the mean of one forecast before the run and one after it."""
    told: dict[str, list[dict[str, float]]] = {"forecast": [], "run": []}
    for side in ("forecast", "run", "forecast"):  # a machine that becomes slower meanwhile favours neither
        command = [sys.executable, "-m", "benchmarks.forecast", "--child", name, side, *(["--busy"] if busy else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        told[side].append(json.loads(done.stdout.splitlines()[-1]))
    sides = {side: {key: statistics.mean(row[key] for row in rows) for key in rows[0]} for side, rows in told.items()}
    ratio = {key: round(sides["forecast"][key] / sides["run"][key], 3) for key in ("bytes", "seconds")}
    return {**sides, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--child", nargs=2)
    parser.add_argument("--busy", action="store_true", help="processor time instead of the clock")
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(*given.child, given.busy)))
        return
    figures = {}
    for name in given.names or RUNS:
        figures[name] = compare(name, given.busy)
        print(name, json.dumps(figures[name]), flush=True)
    if not given.names:
        clock = "processor time of one thread" if given.busy else "clock"
        write("forecast", {"seconds are": clock, "runs": figures})


if __name__ == "__main__":
    main()
