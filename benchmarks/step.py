"""A step of the U-Net beside that of diffusers: the same weights in the same memory, in turns.

python -m benchmarks.step [--only small sd-256 sd-512] [--write]

`small` is the shipped model as guidance calls it (two rows); `sd` has the shape of Stable Diffusion 1.5 and random
weights, at 256 and 512 pixels, one row. Speed does not depend on the weights.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from benchmarks.machine import write
from ldm.models.nets.attention import Words
from ldm.models.nets.known import ours
from ldm.store.parts import load_parts

SD = {
    "block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8, "cross_attention_dim": 768,
}  # fmt: skip


class Case(NamedTuple):
    side: int  # of the latent
    rows: int
    tokens: int
    repeats: int


CASES = {"small": Case(16, 2, 24, 41), "sd-256": Case(32, 1, 77, 7), "sd-512": Case(64, 1, 77, 3)}


def stock_of(name: str) -> UNet2DConditionModel:
    if name != "small":
        torch.manual_seed(0)
        return UNet2DConditionModel(**SD).eval()
    mine = load_parts("emoji", components=("unet",)).unet
    with torch.device("meta"):
        stock = UNet2DConditionModel.from_config(dict(mine.config))
    stock.load_state_dict(mine.state_dict(), assign=True)
    return stock.eval()


@torch.no_grad()
def beside(name: str) -> dict[str, Any]:
    case, stock = CASES[name], stock_of(name)
    mine = ours(stock)
    x = torch.randn(case.rows, 4, case.side, case.side)
    t, states = torch.full((case.rows,), 500), torch.randn(case.rows, case.tokens, stock.config.cross_attention_dim)
    words = Words(states)  # one for all steps of a prompt
    calls: dict[str, Callable[[], Tensor]] = {
        "diffusers": lambda: stock(x, t, states, return_dict=False)[0],
        "ours": lambda: mine(x, t, words),
    }
    difference = float((calls["ours"]() - calls["diffusers"]()).abs().max())
    spent: dict[str, list[float]] = {side: [] for side in calls}
    for _ in range(case.repeats + 1):
        for side, call in calls.items():
            begin = time.perf_counter()
            call()
            spent[side].append(time.perf_counter() - begin)
    ratios = [a / b for a, b in zip(spent["diffusers"][1:], spent["ours"][1:], strict=True)]
    return {
        "milliseconds": {side: round(1000 * statistics.median(times[1:]), 1) for side, times in spent.items()},
        "times diffusers": round(statistics.median(ratios), 2),
        "greatest difference": difference,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--write", action="store_true", help="write docs/results/step.json")
    args = parser.parse_args()
    figures: dict[str, Any] = {"threads": torch.get_num_threads(), "dtype": "float32"}
    for each in args.only:
        figures[each] = beside(each)
        print(each, figures[each], flush=True)
    if args.write:
        print(write("step", figures))
