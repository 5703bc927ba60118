"""Any model or folder of pictures, measured against a data set by the yardsticks of a comparison."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.data.survey import many, percent
from ldm.errors import Code, LdmError
from ldm.images import Picture, save_image
from ldm.metrics.measured import FEWEST, NEARER_NOTE
from ldm.metrics.memorisation import NEARER
from ldm.store.write import refuse_existing, staged
from train.compare.lab import Progress, prepare, remember_yardsticks
from train.compare.made import Asked, Lot, made_by
from train.compare.measured_page import measured_page
from train.compare.ranking import Scale, reached
from train.compare.scale import scale_of
from train.compare.wish import Yardsticks
from train.report import rewrite
from train.signals import Stop

Tell = Callable[[str], None]
MANY = 3  # times as many copies as by chance


def evaluate(
    path: str, yard: Yardsticks, asked: Asked, tell: Tell, stop: Stop, keep: Path | None = None, name: str | None = None
) -> Path:
    """Writes NAME.json and a page of it into the folder of the yardsticks, which later measures share, and what was
    drawn into the new folder `keep`; returns the path of the first."""
    if keep is not None:
        refuse_existing(keep)
    _check_name(name)
    made = made_by(path, yard)  # before a folder is begun, which is of one size for ever
    remember_yardsticks(yard, stop)
    goal = yard.out / "measured" / f"{name or _name(Path(path))}.json"
    if goal.exists():
        what, why = f"{path} has been measured already, or another one of its name.", f"{goal} exists already."
        raise LdmError(Code.FILE, what, why, "Give the new measure another --name.")
    kept, extractor = prepare(yard, Progress(tell), stop)
    tell(made.doing.format(samples=asked.samples, path=path))
    lot = made.lot(asked, kept, stop)
    if keep is not None:
        _save(lot.pictures, keep)
    _check_drawn(path, lot, asked)
    judged = made.judged(lot, extractor, asked, kept, stop)
    scale = scale_of(yard.out)
    judged["notes"] = [*noted_of(lot, judged, scale, asked), *judged["notes"]]
    whole = {"name": goal.stem, "made": path, "held_out": scale, **lot.told, **judged}
    goal.parent.mkdir(exist_ok=True)
    rewrite(goal.with_suffix(".html"), measured_page(whole, lot.pictures, kept), "Free some space.")
    with staged(goal) as stage:
        stage.write_text(json.dumps(whole, indent=2) + "\n", "utf-8")
    return goal


def _check_name(name: str | None) -> None:
    if name is not None and (not name.strip() or Path(name).name != name):
        what, why = f"--name {name!r} is not understood.", "It becomes the name of a file."
        raise LdmError(Code.USAGE, what, why, "Give a name without slashes.")


def _check_drawn(path: str, lot: Lot, asked: Asked) -> None:
    """A model that is too slow is told of as such."""
    if "drawn" in lot.told and (count := len(lot.pictures)) < min(FEWEST, asked.samples):
        what, why = (
            f"{path} drew {many(count, 'picture')} in {asked.cap} seconds.",
            f"{FEWEST} are needed for a statistic.",
        )
        fix = f"Give it more time with --cap, about {asked.cap * FEWEST // count + 1}."
        raise LdmError(Code.USAGE, what, why, fix)


def noted_of(lot: Lot, judged: Mapping[str, Any], scale: Scale, asked: Asked) -> Iterator[str]:
    """Of what is easily overlooked among figures."""
    if "drawn" in lot.told and (count := len(lot.pictures)) < asked.samples:
        yield f"{count:,} of {asked.samples:,} pictures were drawn in {asked.cap} s: give --cap more for all of them"
    copied, own, real = judged["figures"].get("copies"), judged["figures"].get("authentic"), reached(scale)
    fewer = own is not None and "authentic" in real and own["high"] < real["authentic"].low
    if copied and copied["low"] > MANY * NEARER and fewer and NEARER_NOTE not in judged["notes"]:
        share = f"{percent(copied['value'])} of the pictures are nearer to a training picture"
        yield f"{share} than {percent(1 - NEARER)} of held-out ones are: look at them beside the nearest"


def _name(made: Path) -> str:
    """As the folder or file is called; a part of a run as the run, a cell with the name of its comparison."""
    path = made.expanduser().resolve() if made.exists() else made
    while path.name in ("model", "run") and path.parent.name:
        path = path.parent
    name = path.name if path.is_dir() else path.stem
    name = f"{path.parent.name}-vae" if name == "vae" and path.parent.name else name  # of the model that it is part of
    return (f"{path.parents[1].name}-{name}" if path.parent.name == "cells" else name) or "measured"


def _save(pictures: Tensor, folder: Path) -> None:
    """A PNG each, numbered as they were drawn."""
    with staged(folder) as stage:
        stage.mkdir(parents=True)
        for i, one in enumerate(pictures):
            name = f"{i:0{len(str(len(pictures) - 1))}d}.png"
            save_image(Picture(one.permute(1, 2, 0).contiguous().numpy()), stage / name)
