"""What the emoji models learned: is a picture that was asked for by name and style nearest to real ones of both?

python -m train.emoji_report --model runs/emoji/diffusion/model --pictures runs/emoji/pictures.parquet \\
  --judges runs/emoji/judge-1/model runs/emoji/judge-2/model --out runs/emoji/report

A hit: one of the five nearest real pictures of the style shows the thing, and the nearest of all is in the style. Two
kinds of features look: CLIPs that the model never saw, and plain colours and edges, which nothing could be trained to
please. Beside the model stand the ceiling (real pictures through the autoencoder), another style's picture of the same
thing, and the model's own pictures read against other words.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.data.emoji import KEPT, Emoji
from ldm.data.emoji_table import read_table
from ldm.images import open_image
from ldm.metrics.features import Extractor, clips, colour_and_edges, extracted, squares
from ldm.metrics.retrieval import Gallery, Wanted, hits, mean_over_groups
from ldm.store.clip import load_clip
from train.sampled import Pictures, Sampled, as_tensor, psnr
from train.scenes_check import save_sheet
from train.scenes_report import free
from train.tasks.sampling import Look

log = logging.getLogger("train.emoji_report")
BARS = {"seen": 0.60, "unseen": 0.25}  # from processors alone; 0.85 and 0.45 from a graphics card
SIDE = 64


@dataclass(frozen=True)
class Pair:
    """A thing in a style, and the real picture of it that stands for both."""

    row: Emoji
    name: str
    place: int  # of the real picture in the gallery

    @property
    def prompt(self) -> str:
        return f"{self.name}, {self.row.style} style"

    @property
    def wanted(self) -> Wanted:
        return Wanted(frozenset(self.row.bases), self.row.style, str(self.row.group))


def read(path: Path) -> tuple[list[Emoji], list[np.ndarray]]:
    """The rows of a prepared table, and their pictures as training shows them."""
    rows = list(read_table(path))
    return rows, [squares([open_image(row.image)], SIDE)[0].permute(1, 2, 0).numpy() for row in rows]


def pairs(rows: Sequence[Emoji], unseen: bool, each: int | None = None) -> list[Pair]:
    """Name-style pairs of a split, one picture each (the one without a skin tone, if there is one); of each group at
    most `each`, chosen by chance that is always the same."""
    groups: dict[str, dict[tuple[str, str], Pair]] = defaultdict(dict)
    for place, row in enumerate(rows):
        if (row.split == KEPT) != unseen:
            continue
        for name in row.bases:
            key, known = (name, row.style), groups[str(row.group)]
            if key not in known or (known[key].row.toned and not row.toned):
                known[key] = Pair(row, name, place)
    chosen: list[Pair] = []
    for group in sorted(groups):
        found = [groups[group][key] for key in sorted(groups[group])]
        chosen += found if each is None else random.Random(group).sample(found, min(each, len(found)))
    return chosen


def elsewhere(rows: Sequence[Emoji], asked: Sequence[Pair]) -> list[int]:
    """For each pair the place of another style's picture of the same thing; its own where there is none."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        for name in row.bases:
            places[name].append(place)
    return [
        next((place for place in places[pair.name] if rows[place].style != pair.row.style), pair.place)
        for pair in asked
    ]


class Judges:
    """Galleries of all real pictures, one for each kind of features."""

    def __init__(self, rows: Sequence[Emoji], real: Pictures, kinds: Mapping[str, Extractor]) -> None:
        self.kinds, names, styles = kinds, tuple(frozenset(r.bases) for r in rows), tuple(r.style for r in rows)
        self.galleries = {
            kind: Gallery(extracted(extract, as_tensor(real)), names, styles) for kind, extract in kinds.items()
        }

    def shares(self, made: Pictures, asked: Sequence[Pair], shift: int = 0) -> dict[str, float]:
        """The mean over groups of each kind of features, and of pictures that are a hit for all of them.

        With a `shift`, pictures are read as if others of the list had been asked for.
        """
        wanted = [asked[(i + shift) % len(asked)].wanted for i in range(len(asked))]
        found = {
            kind: hits(extracted(extract, as_tensor(made)), wanted, self.galleries[kind])
            for kind, extract in self.kinds.items()
        }
        together = [all(each) for each in zip(*found.values(), strict=True)]
        told = {kind: mean_over_groups(each, wanted) for kind, each in found.items()}
        return {kind: round(share, 4) for kind, share in {**told, "all": mean_over_groups(together, wanted)}.items()}


def report(model: Path, table: Path, judges: Sequence[Path], out: Path, *, each: int, look: Look) -> dict[str, Any]:
    """Measures a model and writes report.json and sheets into a new folder."""
    rows, real = read(table)
    kinds = {"colour and edges": colour_and_edges, "clip": clips([load_clip(folder).eval() for folder in judges])}
    judged, drawn = Judges(rows, real, kinds), Sampled(model, look)
    result: dict[str, Any] = {"sampling": asdict(look), "judges": len(judges), "pictures": len(rows)}
    out.mkdir(parents=True)
    for split in ("seen", "unseen"):
        asked = pairs(rows, split == "unseen", each if split == "seen" else None)
        own = [real[pair.place] for pair in asked]
        made = drawn.pictures([pair.prompt for pair in asked])
        again = drawn.round_trip(own)
        result[split] = {
            "pairs": len(asked),
            "model": judged.shares(made, asked),
            "ceiling": judged.shares(again, asked),
            "another style": judged.shares([real[place] for place in elsewhere(rows, asked)], asked),
            "shuffled captions": judged.shares(made, asked, shift=len(asked) // 2 + 1),
            "psnr_db": psnr(own, again),
        }
        log.info("%s: %s", split, result[split])
        few = random.Random(0).sample(range(len(asked)), min(64, len(asked)))
        both = [picture for place in few for picture in (made[place], own[place])]
        save_sheet(out / f"{split}.png", both, columns=16, zoom=1)
        (out / f"{split}.txt").write_text("\n".join(asked[place].prompt for place in few) + "\n", "utf-8")
    result["bars"] = {split: _judged(result[split]["model"], bar) for split, bar in BARS.items()}
    result["machine"] = {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    (out / "report.json").write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return result


def _judged(shares: Mapping[str, float], bar: float) -> str:
    """Each kind of features must reach the bar."""
    least = min(share for kind, share in shares.items() if kind != "all")
    return f"{'reached' if least >= bar else 'missed'}: {least:.1%} of at least {bar:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the trained model, a folder")
    parser.add_argument("--pictures", type=Path, required=True, help="the prepared table")
    parser.add_argument("--judges", type=Path, nargs="+", required=True, help="CLIP folders of other seeds")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the report")
    parser.add_argument("--each", type=int, default=60, help="seen pairs of each group at most")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--scale", type=float, default=4.0)
    parser.add_argument("--solver", default="ddim")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    out = free(args.out)
    look = Look(args.solver, args.steps, args.scale)
    result = report(args.model, args.pictures, args.judges, out, each=args.each, look=look)
    for split, told in result["bars"].items():
        log.info("%s pairs: %s", split, told)
    log.info("the report: %s", out / "report.json")


if __name__ == "__main__":
    main()
