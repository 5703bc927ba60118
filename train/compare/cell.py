"""One cell: train a family, draw from it, measure what it drew. In a process of its own, so that the memory it takes is
its own, and what ends it ends nothing else.

python -m train.compare.cell FOLDER FAMILY SEED
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.baselines.family import Family
from ldm.baselines.stored import load_family
from ldm.data.draws import Draws
from ldm.errors import Code, LdmError
from ldm.metrics.interval import around
from ldm.metrics.measured import FEWEST, Measured, measure
from ldm.store.write import staged, write_weights
from train.compare.accuracy import accuracy_score
from train.compare.cells import RESULT, RUN, SAMPLES, Cell, cell_in, file_of
from train.compare.counting import planned
from train.compare.reference import Pictures, extractor_of, pictures_of, real, reference_of
from train.compare.wish import Wish
from train.lock import Lock
from train.report import read_story
from train.run import finished, opened
from train.signals import Stop, Stopped

log = logging.getLogger("train.compare")
AT_ONCE = 50  # pictures drawn together, between looks at the clock
JUDGED = 256  # held-out pictures whose bits are told
BETWEEN = 8  # pictures of a row of interpolations


def run_cell(wish: Wish, cell: Cell, stop: Stop) -> dict[str, Any]:
    """What was measured; written when all of it is there. Whoever else works on the cell is not disturbed."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    with Lock(cell.folder):
        if (before := cell.result) is not None:
            return before
        plan = planned(wish, cell)
        told: dict[str, Any] = {"family": cell.family, "seed": cell.seed, "plan": plan}
        try:
            told |= _trained(wish, cell, plan["steps"], stop)
            told |= _judged(wish, cell, stop)
        except LdmError as error:
            if error.code not in (Code.NUMERIC, Code.RESOURCE):
                raise
            told["failed"] = f"{error.what} {error.why}"
        with staged(cell.folder / RESULT) as stage:
            stage.write_text(json.dumps(told, indent=2) + "\n", "utf-8")
        return told


def _trained(wish: Wish, cell: Cell, steps: int, stop: Stop) -> dict[str, Any]:
    file = file_of(wish, cell, steps)
    if finished(file) is None:
        with opened(file, stop=stop) as run:
            run.fit()
    story = read_story(cell.folder / RUN)
    losses = story.losses
    return {
        "images": steps * file.run.batch,
        "train_seconds": round(sum(story.spent.values()), 1),
        "step_seconds": round(_middle([seconds for _, seconds in story.figures["seconds"]]), 5),
        "parameters": sum(story.starts[-1]["parameters"].values()),
        "loss": {name: [[step, round(value, 6)] for step, value in story.figures[name]] for name in losses},
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }


def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def _judged(wish: Wish, cell: Cell, stop: Stop) -> dict[str, Any]:
    stored, kept = load_family(cell.folder / RUN / "model"), pictures_of(wish)
    samples, seconds = drawn(stored.model, len(stored.classes), wish.samples, wish.cap, cell.seed, stop)
    if not (cell.folder / SAMPLES).is_file():
        extra = interpolated(stored.model, real(kept.held_out[:2]), stored.classes)
        write_weights(cell.folder / SAMPLES, {"samples": samples, **extra}, {})
    told: dict[str, Any] = {"drawn": len(samples), "draw_seconds": round(seconds / len(samples), 5)}
    if len(samples) < wish.samples:
        told["capped"] = f"{len(samples)} of {wish.samples} samples in {wish.cap} s"
    told |= bits(stored.model, kept, stop)
    if len(samples) < FEWEST:
        return told | {"notes": [f"{len(samples)} samples are too few for a statistic, which needs {FEWEST}"]}
    measured = as_json(measure(real(samples), reference_of(kept, extractor_of(wish, kept, stop)), cell.seed))
    measured["figures"] |= _named(samples, stored.classes, stored.model.conditional, kept, cell.seed)
    return told | measured


def _named(samples: Tensor, classes: Sequence[str], told: bool, kept: Pictures, seed: int) -> dict[str, Any]:
    """What a classifier that has seen these samples alone knows of real pictures, where both have classes."""
    if not classes or not told or kept.held_out_labels is None or len(samples) < 10 * len(classes):
        return {}
    labels = torch.arange(len(samples)) % len(classes)
    score = accuracy_score(real(samples), labels, real(kept.held_out), kept.held_out_labels, len(classes), seed)
    return {"accuracy_score": asdict(score)}


def drawn(model: Family, classes: int, samples: int, cap: int, seed: int, stop: Stop) -> tuple[Tensor, float]:
    """[n,3,H,W] uint8, classes in turn, and the seconds it took; as many as the cap allows, and one lot at least."""
    made, began = list[Tensor](), time.monotonic()
    while sum(map(len, made)) < samples:
        first = sum(map(len, made))
        count = min(AT_ONCE, samples - first)
        label = torch.arange(first, first + count) % classes if classes and model.conditional else None
        lot = model.sample(count, label, torch.Generator().manual_seed(seed * 1_000_003 + first))
        made.append(((torch.nan_to_num(lot).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
        stop.check()
        if time.monotonic() - began > cap:
            break
    return torch.cat(made), time.monotonic() - began


def bits(model: Family, kept: Pictures, stop: Stop) -> dict[str, Any]:
    """Bits per dimension of held-out pictures, where the family tells them."""
    if model.facts.likelihood == "none":
        return {}
    x, found = 2 * real(kept.held_out[:JUDGED]) - 1, list[Tensor]()
    labels = None if kept.held_out_labels is None or not model.conditional else kept.held_out_labels[:JUDGED]
    for start in range(0, len(x), 32):
        rows = slice(start, start + 32)
        places = torch.arange(start, min(start + 32, len(x)))
        draws = Draws(0, places, len(places), "likelihood")
        found.append(model.bits_per_dim(x[rows], None if labels is None else labels[rows], draws).detach())
        stop.check()
    each = torch.cat(found).double()
    estimate = around(float(each.mean()), float(each.std()) / len(each) ** 0.5)
    return {"bits_per_dim": {**asdict(estimate), "kind": model.facts.likelihood, "pictures": len(each)}}


@torch.no_grad()
def interpolated(model: Family, ends: Tensor, classes: Sequence[str]) -> dict[str, Tensor]:
    """Pictures between two held-out ones, along a line of latents, where the family has such."""
    encode, decode = getattr(model, "encode", None), getattr(model, "decode", None)
    if encode is None or decode is None:
        return {}
    z: Tensor = encode(2 * ends - 1)
    if not z.is_floating_point():  # codes have nothing between them
        return {}
    shares = torch.linspace(0, 1, BETWEEN).view(-1, *[1] * (z.ndim - 1))
    row = decode((1 - shares) * z[:1] + shares * z[1:2])
    return {"between": ((torch.nan_to_num(row).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)}


def as_json(measured: Measured) -> dict[str, Any]:
    any_figure = next(iter(measured.figures.values()))
    told: dict[str, Any] = {
        "figures": {name: asdict(figure.estimate) for name, figure in measured.figures.items()},
        "protocol": asdict(any_figure.protocol),
        "notes": list(measured.notes),
        "nearest": measured.copies.nearest[:16].tolist(),
        "memorisation": {"bound": measured.copies.bound, "z": round(measured.copies.z, 3)},
    }
    if measured.balance is not None:
        told["classes"] = {"shares": measured.balance.shares, "lost": measured.balance.lost}
    return told


def main() -> None:
    folder, family, seed = sys.argv[1:4]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from train.compare.lab import read_wish

    wish = read_wish(Path(folder))
    try:
        with Stop() as stop:
            run_cell(wish, cell_in(wish.out, family, int(seed)), stop)
    except Stopped as stopped:
        raise SystemExit(stopped.code) from None
    except LdmError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(int(error.code)) from None


if __name__ == "__main__":
    main()
