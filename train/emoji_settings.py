"""Which average of the weights, solver, number of steps and guidance suit the emoji model: measured, not believed.

python -m train.emoji_settings --models runs/emoji/average-* --pictures runs/emoji/pictures.parquet \\
  --judges runs/emoji/judge-11/model runs/emoji/judge-12/model --out runs/emoji/settings.json

A few pairs of each group are drawn with every setting; what counts is the smaller share of both kinds of features. They
are pairs that the model has seen and that the report does not ask for, so that no figure of the report chooses itself.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ldm.data.emoji import Emoji
from ldm.errors import Code, LdmError
from ldm.store.write import refuse_existing
from train.emoji_report import FEWEST, Judges, Pair, kinds_of, least, pairs, read
from train.sampled import Sampled
from train.tasks.sampling import Look

log = logging.getLogger("train.emoji_settings")
EACH = 20  # pairs of a group


def measured(model: Path, look: Look, judged: Judges, asked: Sequence[Pair]) -> dict[str, Any]:
    """Shares of hits, the least of them, and seconds a picture."""
    drawn, began = Sampled(model, look), time.perf_counter()
    shares = judged.shares(drawn.pictures([pair.prompt for pair in asked]), asked)
    seconds = round((time.perf_counter() - began) / len(asked), 3)
    return {"model": str(model), **asdict(look), **shares, "score": least(shares), "seconds": seconds}


def others(rows: Sequence[Emoji], reported: int) -> list[Pair]:
    """Some seen pairs of each group that the report leaves out; of a group that it asks for whole, none."""
    asked = {(pair.name, pair.row.style) for pair in pairs(rows, False, reported)}
    left: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs(rows, False):
        if (pair.name, pair.row.style) not in asked:
            left[str(pair.row.group)].append(pair)
    return [
        pair for group in sorted(left) for pair in random.Random(group).sample(left[group], min(EACH, len(left[group])))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--judges", type=Path, nargs="+", required=True)
    parser.add_argument("--solvers", nargs="+", default=["ddim", "dpm++ 2m"])
    parser.add_argument("--steps", type=int, nargs="+", default=[25])
    parser.add_argument("--scales", type=float, nargs="+", default=[2.0, 3.0, 4.0, 6.0])
    parser.add_argument("--reported", type=int, default=60, help="--each of the report: pairs that are left to it")
    parser.add_argument("--out", type=Path, required=True, help="a new JSON file")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        best = compare(args)
    except LdmError as error:
        raise SystemExit(f"error: {error}") from None
    log.info("best: %s", best)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Measures every setting, and keeps those that are done after each: a stop loses one."""
    refuse_existing(args.out)
    rows, real = read(args.pictures)
    judged, asked = Judges(rows, real, kinds_of(args.judges)), others(rows, args.reported)
    if len(asked) < FEWEST:
        what, why = f"{len(asked)} seen pairs are left.", f"The report asks for up to {args.reported} of each group."
        raise LdmError(Code.USAGE, what, why, "Give the report fewer (--each there, --reported here).")
    log.info("%d pairs", len(asked))
    told: list[dict[str, Any]] = []
    for model, solver, steps, scale in itertools.product(args.models, args.solvers, args.steps, args.scales):
        told.append(measured(model, Look(solver, steps, scale), judged, asked))
        log.info("%s", told[-1])
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(sorted(told, key=lambda row: -row["score"]), indent=2) + "\n", "utf-8")
    return max(told, key=lambda row: float(row["score"]))


if __name__ == "__main__":
    main()
