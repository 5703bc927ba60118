"""What the emoji models learned: is a picture that was asked for by name and style nearest to real ones of both?

python -m train.emoji_report --model runs/emoji/diffusion/model --pictures runs/emoji/pictures.parquet \\
  --judges runs/emoji/judge-1/model runs/emoji/judge-2/model --out runs/emoji/report

A hit: one of the five nearest real pictures of the style shows the thing, and the nearest of all is in the style. Two
kinds of features look: CLIPs that the model never saw, and plain colours and edges, which nothing could be trained to
please; each must reach the bar, and the share of pictures that both find stands beside them. Equal pictures are one,
skin tones are one name. Beside the model stand the ceiling (real pictures through the autoencoder), another style's
picture of the same thing (which is not looked at itself then), and the model's own pictures read against other words.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ldm.data.emoji import KEPT, Emoji
from ldm.data.emoji_table import read_table
from ldm.errors import Code, LdmError
from ldm.images import open_image
from ldm.metrics.features import Extractor, clips, colour_and_edges, extracted, squares
from ldm.metrics.retrieval import Gallery, Wanted, hits, mean_over_groups
from ldm.store.clip import load_clip
from ldm.store.write import free
from train.sampled import Pictures, Sampled, as_tensor, psnr
from train.scenes_check import save_sheet
from train.tasks.sampling import Look

log = logging.getLogger("train.emoji_report")
BARS = {"seen": 0.60, "unseen": 0.25}  # from processors alone; 0.85 and 0.45 from a graphics card
SIDE = 64
FEWEST = 10  # pairs of a split


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
    """Name-style pairs of a split: one picture each (the one without a skin tone, if there is one), and each picture
    once; of each group at most `each`, chosen by chance that is always the same. Signs without a group are no emoji."""
    groups: dict[str, dict[tuple[str, str], Pair]] = defaultdict(dict)
    for place, row in enumerate(rows):
        if (row.split == KEPT) != unseen or row.group is None:
            continue
        for name in row.bases:
            key, known = (name, row.style), groups[str(row.group)]
            if key not in known or (known[key].row.toned and not row.toned):
                known[key] = Pair(row, name, place)
    chosen: list[Pair] = []
    for group in sorted(groups):
        once = {groups[group][key].place: groups[group][key] for key in sorted(groups[group], reverse=True)}
        found = [once[place] for place in sorted(once)]
        chosen += found if each is None else random.Random(group).sample(found, min(each, len(found)))
    return chosen


class Judges:
    """Galleries of all real pictures, each once whoever uses it, for each kind of features."""

    def __init__(self, rows: Sequence[Emoji], real: Pictures, kinds: Mapping[str, Extractor]) -> None:
        self.kinds = kinds
        once: dict[bytes, int] = {}
        self.places = [once.setdefault(picture.tobytes(), len(once)) for picture in real]  # of each row's picture
        names: list[set[str]] = [set() for _ in once]
        styles: list[set[str]] = [set() for _ in once]
        for row, place in zip(rows, self.places, strict=True):
            names[place].update(row.bases)
            styles[place].add(row.style)
        every = tuple(map(frozenset, names)), tuple(map(frozenset, styles))
        shown = as_tensor(list(dict(zip(self.places, real, strict=True)).values()))
        self.galleries = {kind: Gallery(extracted(extract, shown), *every) for kind, extract in kinds.items()}
        self.of_name: dict[str, list[tuple[int, frozenset[str]]]] = defaultdict(list)  # rows, and who uses the picture
        for number, row in enumerate(rows):
            for name in row.bases:
                self.of_name[name].append((number, every[1][self.places[number]]))

    def shares(
        self, made: Pictures, asked: Sequence[Pair], shift: int = 0, without: Sequence[int] | None = None
    ) -> dict[str, float]:
        """The mean over groups of each kind of features, and of pictures that are a hit for all of them.

        With a `shift`, pictures are read as if others of the list had been asked for. `without`: a row for each
        picture whose real picture is not looked at.
        """
        wanted = [asked[(i + shift) % len(asked)].wanted for i in range(len(asked))]
        places = None if without is None else [self.places[row] for row in without]
        found = {
            kind: hits(extracted(extract, as_tensor(made)), wanted, self.galleries[kind], without=places)
            for kind, extract in self.kinds.items()
        }
        together = [all(each) for each in zip(*found.values(), strict=True)]
        told = {kind: mean_over_groups(each, wanted) for kind, each in found.items()}
        return {kind: round(share, 4) for kind, share in {**told, "all": mean_over_groups(together, wanted)}.items()}

    def elsewhere(self, asked: Sequence[Pair]) -> dict[int, int]:
        """For each pair, by its number, the row of another style's picture of the thing; not where that is the same."""
        told = {}
        for number, pair in enumerate(asked):
            others = (row for row, styles in self.of_name[pair.name] if pair.row.style not in styles)
            if (first := next(others, None)) is not None:
                told[number] = first
        return told


def report(
    model: Path, table: Path, judges: Sequence[Path], out: Path, *, each: int, look: Look, lora: Path | None = None
) -> dict[str, Any]:
    """Measures a model and writes report.json and sheets into a new folder."""
    rows, real = read(table)
    splits = {"seen": pairs(rows, False, each), "unseen": pairs(rows, True)}
    for split, asked in splits.items():
        if len(asked) < FEWEST:
            what, why = f"{table} has {len(asked)} {split} pairs.", f"Shares of fewer than {FEWEST} say nothing."
            fix = "Pairs are kept unseen where three styles know a name: prepare a table of three, and raise --each."
            raise LdmError(Code.USAGE, what, why, fix)
    judged, drawn = Judges(rows, real, kinds_of(judges)), Sampled(model, look, lora)
    result: dict[str, Any] = {
        "model": drawn.fingerprint,
        "sampling": asdict(look),
        **({} if lora is None else {"adapter": lora.stem}),
        "judges": len(judges),
        "pictures": len(rows),
    }
    out.mkdir(parents=True)
    for split, asked in splits.items():
        own = [real[pair.place] for pair in asked]
        made = drawn.pictures([pair.prompt for pair in asked])
        again = drawn.round_trip(own)
        other = judged.elsewhere(asked)
        copied, places = [asked[number] for number in other], list(other.values())
        result[split] = {
            "pairs": len(asked),
            "pairs of each group": dict(sorted(Counter(pair.wanted.group for pair in asked).items())),
            "model": judged.shares(made, asked),
            "ceiling": judged.shares(again, asked),
            "another style": judged.shares([real[place] for place in places], copied, without=places),
            "shuffled captions": judged.shares(made, asked, shift=len(asked) // 2),
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


def kinds_of(judges: Sequence[Path]) -> dict[str, Extractor]:
    """Who looks: what nothing was trained to please, and CLIPs."""
    return {"colour and edges": colour_and_edges, "clip": clips([load_clip(folder).eval() for folder in judges])}


def least(shares: Mapping[str, float]) -> float:
    """The share of the kind of features that finds fewest: each must reach a bar."""
    return min(share for kind, share in shares.items() if kind != "all")


def _judged(shares: Mapping[str, float], bar: float) -> str:
    share, both = least(shares), shares["all"]
    return f"{'reached' if share >= bar else 'missed'}: {share:.1%} of at least {bar:.0%} ({both:.1%} for both at once)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="the trained model, a folder")
    parser.add_argument("--pictures", type=Path, required=True, help="the prepared table")
    parser.add_argument("--judges", type=Path, nargs="+", required=True, help="CLIP folders of other seeds")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the report")
    parser.add_argument("--each", type=int, default=30, help="seen pairs of each group at most")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--scale", type=float, default=3.0)
    parser.add_argument("--solver", default="ddim")
    parser.add_argument("--lora", type=Path, help="an adapter over the model: the student, with its solver and scale")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    out = free(args.out)
    look = Look(args.solver, args.steps, args.scale)
    try:
        result = report(args.model, args.pictures, args.judges, out, each=args.each, look=look, lora=args.lora)
    except LdmError as error:
        raise SystemExit(f"error: {error}") from None
    for split, told in result["bars"].items():
        log.info("%s pairs: %s", split, told)
    log.info("the report: %s", out / "report.json")


if __name__ == "__main__":
    main()
