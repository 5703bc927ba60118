"""Any model or folder of pictures, measured against a data set by the yardsticks of a comparison."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.baselines.stored import CONFIG, Stored, load_family
from ldm.data.settings import DataSettings
from ldm.data.survey import many
from ldm.errors import Code, LdmError
from ldm.images import Picture, save_image
from ldm.metrics.extractors import Extractor
from ldm.metrics.interval import around
from ldm.metrics.measured import FEWEST, Reference, measure
from ldm.metrics.pictures import unit
from ldm.metrics.reconstruction import feature_distance, psnr, ssim
from ldm.models.autoencoder import Autoencoder
from ldm.store.folder import load_component
from ldm.store.shards import read_json
from ldm.store.write import refuse_existing, staged
from train.compare.drawing import asked_for, bits, drawn, notes_of
from train.compare.lab import Progress, prepare, remember_yardsticks
from train.compare.measured_json import as_json
from train.compare.measured_page import measured_page
from train.compare.prompted import drawn_for_captions
from train.compare.reference import Pictures, as_bytes, reference_of
from train.compare.scale import scale_of
from train.compare.wish import Yardsticks
from train.config import RunFile
from train.opening import data_of, processes_of
from train.processes import Processes
from train.report import rewrite
from train.signals import Stop
from train.tasks.latents import moments

Tell = Callable[[str], None]


def evaluate(
    made: str, yard: Yardsticks, samples: int, cap: int, seed: int, tell: Tell, stop: Stop,
    keep: Path | None = None, name: str | None = None,
) -> Path:  # fmt: skip
    """Writes NAME.json and a page of it into the folder of the yardsticks, which later measures share, and what was
    drawn into the new folder `keep`; returns the path of the first."""
    if keep is not None:
        refuse_existing(keep)
    if name is not None and (not name.strip() or Path(name).name != name):
        what, why = f"--name {name!r} is not understood.", "It becomes the name of a file."
        raise LdmError(Code.USAGE, what, why, "Give a name without slashes.")
    stored = _family(Path(made), yard.size)  # before a folder is begun, which is of one size for ever
    where = made if stored is not None else _in_run(Path(made))
    remember_yardsticks(yard, stop)
    path = yard.out / "measured" / f"{name or _name(Path(made))}.json"
    if path.exists():
        what, why = f"{made} has been measured already, or another one of its name.", f"{path} exists already."
        raise LdmError(Code.FILE, what, why, "Give the new measure another --name.")
    kept, extractor = prepare(yard, Progress(tell), stop)
    device, told, back, broken = Processes.start().device, dict[str, Any](), None, 0
    if stored is not None:
        tell(f"drawing {samples:,} pictures by {stored.family}")
        labels = asked_for(stored, kept, samples)
        pictures, seconds, broken = drawn(stored, samples, cap, seed, stop, device, labels)
        told = {"drawn": len(pictures), "draw_seconds": seconds / len(pictures)}
    elif _is_autoencoder(Path(where)):
        tell(f"encoding and decoding the held-out pictures by {made}")
        back = _come_back(where, kept, stop)
        pictures = (back * 255).round().to(torch.uint8)
    elif Path(where).is_dir() and not (Path(where) / "model_index.json").is_file():
        tell(f"reading the pictures of {made}")
        pictures = _folder(Path(where), yard.size, samples)
    else:
        tell(f"drawing {samples:,} pictures by {made}, for captions of the data set")
        pictures, told = drawn_for_captions(where, yard, samples, cap, seed, stop)
    if keep is not None:
        _save(pictures, keep)
    if back is not None:
        judged = _reconstructed(back, kept, extractor, seed)
    else:
        _check_drawn(made, len(pictures), samples, cap, bool(told))
        told |= {} if stored is None else bits(stored, kept, stop, device)
        judged = as_json(measure(pictures, reference_of(yard, kept, extractor), seed))
    judged["notes"] = [*notes_of(told, broken), *judged["notes"]]
    whole = {"name": path.stem, "made": made, "held_out": scale_of(yard.out), **told, **judged}
    path.parent.mkdir(exist_ok=True)
    rewrite(path.with_suffix(".html"), measured_page(whole, pictures, kept), "Free some space.")
    with staged(path) as stage:
        stage.write_text(json.dumps(whole, indent=2) + "\n", "utf-8")
    return path


def _check_drawn(made: str, count: int, samples: int, cap: int, by_model: bool) -> None:
    """A model that is too slow is told of as such."""
    if by_model and count < min(FEWEST, samples):
        what, why = f"{made} drew {many(count, 'picture')} in {cap} seconds.", f"{FEWEST} are needed for a statistic."
        raise LdmError(Code.USAGE, what, why, f"Give it more time with --cap, about {cap * FEWEST // count + 1}.")


def _save(pictures: Tensor, folder: Path) -> None:
    """A PNG each, numbered as they were drawn."""
    with staged(folder) as stage:
        stage.mkdir(parents=True)
        for i, one in enumerate(pictures):
            name = f"{i:0{len(str(len(pictures) - 1))}d}.png"
            save_image(Picture(one.permute(1, 2, 0).contiguous().numpy()), stage / name)


def _in_run(path: Path) -> str:
    """The model in the folder of a run, which is no folder of pictures."""
    model = path / "model"
    if not (path / "config.yaml").is_file() or not (model.is_dir() or (path / "log.jsonl").is_file()):
        return str(path)
    if not model.is_dir():
        what, why = f"{path} is a run that has not come to its end.", "It has no model yet."
        raise LdmError(Code.MODEL, what, why, f"Go on with it: ldm train {path / 'config.yaml'}")
    if not _is_autoencoder(model) and not (model / "model_index.json").is_file():
        what, why = f"{path} is a run of something that makes no pictures.", f"{model} is neither of a family nor"
        fix = "Name the run of one of these, or a folder of pictures."
        raise LdmError(Code.MODEL, what, f"{why} of a text-to-image model or an autoencoder.", fix)
    return str(model)


def _family(made: Path, size: int) -> Stored | None:
    """The family in a folder, or in that of its run or its cell, which draws pictures of that size; None where there is
    none."""
    for folder in (made, made / "model", made / "run" / "model"):
        if (folder / CONFIG).is_file() and "family" in read_json(folder / CONFIG, 1_000_000):
            break
    else:
        return None
    stored = load_family(folder)
    if (side := stored.model.form.side) != size:
        what, why = f"{made} draws {side} pixels, and --size is {size}.", "Both must be of one size."
        raise LdmError(Code.USAGE, what, why, f"Give --size {side}.")
    return stored


def _is_autoencoder(path: Path) -> bool:
    name = read_json(path / CONFIG, 1_000_000).get("_class_name") if (path / CONFIG).is_file() else None
    return name in ("AutoencoderKL", "VQModel")


@torch.no_grad()
def _come_back(made: str, kept: Pictures, stop: Stop) -> Tensor:
    """The held-out pictures in [0,1], encoded and decoded by an autoencoder."""
    vae, found = Autoencoder(load_component(Path(made), "vae", torch.float32)[0]), list[Tensor]()
    for some in torch.split(kept.held_out, 50):
        latents = (moments(vae, 2 * unit(some) - 1)[0] - vae.shift) * vae.scale
        found.append(((vae.decode(latents).clamp(-1, 1) + 1) / 2).float())
        stop.check()
    return torch.cat(found)


def _reconstructed(back: Tensor, kept: Pictures, extractor: Extractor, seed: int) -> dict[str, Any]:
    """What came back against what it was made of: the distance of the features of all of them (rFID), and of each."""
    shown = unit(kept.held_out)
    reference = Reference.of(extractor, shown, shown)
    each = {"psnr_db": psnr(back, shown), "ssim": ssim(back, shown)}
    each["feature_distance"] = feature_distance(extractor.seen(back), reference.training)
    told = as_json(measure(back, reference, seed))
    figures = {name: told["figures"][old] for old, name in (("fid", "rfid"), ("spectrum_db", "spectrum_db"))}
    for name, values in each.items():
        figures[name] = asdict(around(float(values.mean()), float(values.std()) / len(values) ** 0.5))
    return {"figures": figures, "protocol": told["protocol"], "notes": list[str](), "held_out": None}


def _name(made: Path) -> str:
    """As the folder or file is called; a part of a run as the run, a cell with the name of its comparison."""
    path = made.expanduser().resolve() if made.exists() else made
    while path.name in ("model", "run") and path.parent.name:
        path = path.parent
    name = path.name if path.is_dir() else path.stem
    name = f"{path.parent.name}-vae" if name == "vae" and path.parent.name else name  # of the model that it is part of
    return (f"{path.parents[1].name}-{name}" if path.parent.name == "cells" else name) or "measured"


def _folder(path: Path, size: int, most: int) -> Tensor:
    """uint8 [n,3,size,size], as a data set would be shown."""
    data = DataSettings(path=str(path), size=size, uncaptioned="empty", least_side=1)
    file = RunFile(task={"type": "classifier"}, data=data, run={"out": path / "none", "steps": 1, "batch": 1})
    loader = data_of(file, processes_of(file))[1]
    return as_bytes(list(loader.look(most)))
