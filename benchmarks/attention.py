"""A turn of training in bf16 on a processor: attention written out over few tokens beside the stock fused one.

python -m benchmarks.attention [--write]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import write
from ldm.models.nets import attention
from ldm.models.nets.unet import UNet2D

CONFIG, BATCH, REPEATS = Path("configs/models/emoji-unet.json"), 128, 7


def turn(unet: UNet2D, few: int) -> float:
    """Seconds of one forward and backward pass, with attention written out over so many tokens or fewer."""
    attention.FEW = few
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    x, t, words = torch.randn(BATCH, 4, side, side), torch.randint(0, 1000, (BATCH,)), torch.randn(BATCH, 24, width)
    begin = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        out = unet(x, t, words)
    out.float().square().mean().backward()
    return time.perf_counter() - begin


def measure() -> dict[str, Any]:
    unet, few = UNet2D.from_config(json.loads(CONFIG.read_text("utf-8"))), attention.FEW
    spent: dict[str, list[float]] = {"written out": [], "fused": []}
    for _ in range(REPEATS + 1):  # in turns, so that whatever else runs meets both alike
        spent["written out"].append(turn(unet, few))
        spent["fused"].append(turn(unet, 0))
    seconds = {name: round(statistics.median(times[1:]), 3) for name, times in spent.items()}
    share = round(seconds["written out"] / seconds["fused"], 2)
    return {"model": CONFIG.stem, "batch": BATCH, "seconds": seconds, "share": share}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/results/attention.json")
    figures = measure()
    print(figures)
    if parser.parse_args().write:
        print(write("attention", figures))
