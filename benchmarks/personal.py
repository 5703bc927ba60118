"""A new creature from five drawings, by `ldm personalize` with its defaults: is it learned, and what else has changed?

    python -m benchmarks.personal --creature-judge runs/emoji/creatures.safetensors \\
      --judges runs/emoji/judge-11/model runs/emoji/judge-12/model --pictures runs/emoji/pictures.parquet \\
      [--creatures 3 8] [--keep runs/personal] [--write]

Samples are drawn for prompts that training did not see, and looked for among drawings of the same creature in other
poses and 200 distractors: 100 other creatures of the same script, 100 emoji. A hit: the nearest of all is the creature.
The judge is a network that knows drawn creatures again (`python -m benchmarks.creatures`; it has seen none of these);
beside it stands how many real drawings it finds so. CLIPs that the command has not looked with tell how far unrelated
pictures moved; what they, and colours and edges, would call hits is told as well: of real drawings they find fewer.
Near copies are samples nearer to a drawing than the closest two of the five are to each other, as the report finds them
(`train/personal/copies.py`); beside them the share of real drawings of which that is true. Each bar is told as reached
or missed; a missed one ends with status 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.creatures import SIDE, drawings, load_judge
from benchmarks.machine import write
from benchmarks.startup import LDM
from ldm.data.emoji_table import read_table
from ldm.images import from_rgb, open_image
from ldm.metrics.features import clips, colour_and_edges, extracted, squares
from ldm.store.clip import load_clip
from pipelines.pipeline import Pipeline
from pipelines.request import LoraUse
from train.personal.copies import Shown, look, views
from train.personal.plan import ZOOM

log = logging.getLogger("benchmarks.personal")
TOKEN = "zwx"
PROMPTS = ("{}, noto style", "{}, twemoji style", "{}, blob style", "{} waving", "{} with a hat", "{} in the rain",
           "{} and a tree", "{} and a star", "{} and a cat", "{} with a heart", "{} with a flower", "{} in the snow",
           "{} on a boat", "{} reading a book", "happy {}", "angry {}", "sleepy {}", "smiling {}", "crying {}",
           "old {}")  # fmt: skip
UNRELATED = ("dog face, twemoji style", "airplane, noto style", "banana, blob style", "snowman, twemoji style",
             "guitar, noto style", "sun, twemoji style")  # fmt: skip
SEEDS, POSES, DISTRACTORS = 2, 20, 100
# What is asked of the defaults, by the name of the figure: at least, or at most.
LEAST, MOST = {"hits": 0.90}, {"seconds": 600.0, "drift": 0.25, "near_copies": 0.05}
Look = Callable[[Tensor], Tensor]


def stacked(pictures: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def drawn(
    pipeline: Pipeline, texts: Sequence[str], seeds: int, loras: Sequence[LoraUse] = (), first: int = 1000
) -> Tensor:
    """[texts * seeds,3,H,W] in [0,1]."""
    made = [
        np.asarray(picture, np.float32) / 255
        for text in texts
        for picture in pipeline(text, seed=first, count=seeds, loras=tuple(loras))
    ]
    return stacked(made)


def learned(creature: int, model: str, folder: Path) -> tuple[dict[str, Any], Path, float]:
    """The command's own report, its adapter, and its seconds. Where the folder holds them, nothing is learned again."""
    photos, made, took = folder / "photos", folder / "made", folder / "seconds.json"
    if not took.is_file():
        subprocess.run(
            [LDM, "data", "draw", photos, "--character", str(creature), "--count", "5", "--size", "256"], check=True
        )
        began = time.perf_counter()
        command = [LDM, "personalize", photos, "--token", TOKEN, "--model", model, "--out", made, "--quiet"]
        subprocess.run(command, check=True)
        took.write_text(json.dumps(time.perf_counter() - began), "utf-8")
    report = json.loads((made / "report.json").read_text("utf-8"))
    return report, made / report["files"][0], json.loads(took.read_text("utf-8"))


def own_and_photos(creature: int) -> tuple[Tensor, Tensor]:
    """Of one creature: drawings that nobody trains on, and those that are learned from."""
    own, photos = (drawings(creature, poses).float() / 255 for poses in (range(500, 500 + POSES), range(5)))
    return own, photos


def found(pictures: Tensor, own: Tensor, others: Tensor) -> float:
    """The share of pictures whose nearest drawing is of the creature, all as features; not itself, where it is one."""
    alike = pictures @ own.T
    if pictures is own:
        alike.fill_diagonal_(-1)
    return float((alike.amax(1) > (pictures @ others.T).amax(1)).float().mean())


def judged(creature: int, adapter: Path, model: str, looks: dict[str, Look], emoji: Tensor) -> dict[str, Any]:
    """Hits by the first of the looks, drift by the second; what the others say of both beside it."""
    pipeline, use = Pipeline.load(model), [LoraUse(path=adapter)]
    samples = drawn(pipeline, [text.format(TOKEN) for text in PROMPTS], SEEDS, use)
    after, before = (drawn(pipeline, UNRELATED, 2, loras) for loras in (use, []))
    again = drawn(pipeline, UNRELATED, 2, first=5000)
    others = torch.cat([drawings(creature + 1000 + i, range(i, i + 1)) for i in range(DISTRACTORS)]).float() / 255
    own, photos = own_and_photos(creature)
    shown = {"samples": samples, "own": own, "others": torch.cat([others, emoji]),
             "after": after, "before": before, "again": again}  # fmt: skip
    each = {
        name: _figures({key: extracted(look, value) for key, value in shown.items()}) for name, look in looks.items()
    }
    knows, clip = list(looks)[:2]
    return {
        "hits": each[knows]["hits"],
        "real_hits": each[knows]["real_hits"],
        "drift": each[clip]["drift"],
        **_copies(samples, own, photos),
        "by": each,
    }


def _figures(f: dict[str, Tensor]) -> dict[str, float]:
    moved, apart = (1 - (f[key] * f["before"]).sum(1) for key in ("after", "again"))
    told = {
        "hits": found(f["samples"], f["own"], f["others"]),
        "real_hits": found(f["own"], f["own"], f["others"]),
        "drift": float(moved.mean() / apart.mean()),
    }
    return {key: round(value, 4) for key, value in told.items()}


def _copies(samples: Tensor, own: Tensor, photos: Tensor) -> dict[str, float]:
    pictures = [from_rgb(photo.permute(1, 2, 0).numpy()) for photo in photos]
    shown = Shown(views(pictures, SIDE, ZOOM, flip=True, seed=0))
    near = {"near_copies": samples, "real_near_copies": own}
    return {
        name: round(float((shown.away(look(of)).amin(1) < shown.nearest).float().mean()), 4)
        for name, of in near.items()
    }


def bars(row: Mapping[str, Any]) -> dict[str, bool]:
    """Which of them a creature's row reaches."""
    return {name: row[name] >= least for name, least in LEAST.items()} | {
        name: row[name] <= most for name, most in MOST.items()
    }


def told(creature: str, row: Mapping[str, Any]) -> Iterator[str]:
    """The same in words, a line each."""
    for name, reached in bars(row).items():
        asked = f"at {'least' if name in LEAST else 'most'} {(LEAST | MOST)[name]:g}"
        yield f"{creature}: {name} {row[name]:g}, {asked}: {'reached' if reached else 'MISSED'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--pictures", type=Path, required=True, help="the prepared table of emoji")
    parser.add_argument("--creature-judge", type=Path, required=True)
    parser.add_argument("--judges", type=Path, nargs="+", required=True)
    parser.add_argument("--creatures", type=int, nargs="+", default=[3, 5, 8])
    parser.add_argument("--keep", type=Path, help="a folder for what is learned, which is judged again from there")
    parser.add_argument("--write", action="store_true", help="write docs/results/personal.json")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    looks: dict[str, Look] = {
        "creatures": load_judge(args.creature_judge),
        "clip": clips([load_clip(folder).eval() for folder in args.judges]),
        "colours and edges": colour_and_edges,
    }
    rows = random.Random(0).sample(list(read_table(args.pictures)), DISTRACTORS)
    emoji = squares([open_image(row.image) for row in rows], SIDE)
    rows_of = {}
    for creature in args.creatures:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (args.keep or Path(temporary)) / str(creature)
            folder.mkdir(parents=True, exist_ok=True)
            report, adapter, seconds = learned(creature, args.model, folder)
            row = {"seconds": round(seconds, 1), "step": report["step"],
                   **judged(creature, adapter, args.model, looks, emoji)}  # fmt: skip
        rows_of[str(creature)] = row | {"bars": bars(row)}
        log.info("%s: %s", creature, row)
    if args.write:
        print(write("personal", rows_of))
    print(*(line for creature, row in rows_of.items() for line in told(creature, row)), sep="\n")
    return 0 if all(all(row["bars"].values()) for row in rows_of.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
