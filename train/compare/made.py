"""What is measured: pictures of a trained family, of a folder, of a text-to-image model, or come back from an
autoencoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ldm.baselines.stored import CONFIG, Stored, load_family
from ldm.data.settings import DataSettings
from ldm.errors import Code, LdmError
from ldm.metrics.extractors import Extractor
from ldm.metrics.interval import around
from ldm.metrics.measured import Reference, measure
from ldm.metrics.pictures import unit
from ldm.metrics.reconstruction import feature_distance, psnr, ssim
from ldm.models.autoencoder import Autoencoder
from ldm.store.folder import load_component
from ldm.store.shards import read_json
from train.compare.cells import CRASH, RESULT, Cell
from train.compare.counting import PLAN
from train.compare.drawing import asked_for, bits, drawn, notes_of
from train.compare.measured_json import as_json
from train.compare.prompted import drawn_for_captions
from train.compare.reference import Pictures, as_bytes, reference_of
from train.compare.wish import Yardsticks
from train.config import RunFile
from train.opening import data_of, processes_of
from train.processes import Processes
from train.signals import Stop
from train.tasks.latents import moments


@dataclass(frozen=True)
class Asked:
    """How many pictures, at most for how many seconds, and by which seed."""

    samples: int
    cap: int
    seed: int


@dataclass(frozen=True)
class Lot:
    """uint8 [n,3,size,size], and what is told of them besides figures."""

    pictures: Tensor
    told: dict[str, Any] = field(default_factory=dict)
    broken: int = 0  # held numbers that are none


@dataclass(frozen=True)
class Made(ABC):
    path: str
    yard: Yardsticks

    doing: ClassVar[str]  # of `samples` and `path`

    @abstractmethod
    def lot(self, asked: Asked, kept: Pictures, stop: Stop) -> Lot: ...

    def judged(self, lot: Lot, extractor: Extractor, asked: Asked, kept: Pictures, stop: Stop) -> dict[str, Any]:
        """Figures, their protocol and notes."""
        return as_json(measure(lot.pictures, reference_of(self.yard, kept, extractor), asked.seed))


@dataclass(frozen=True)
class OfFamily(Made):
    """Asked for each class as often as the data has it."""

    stored: Stored

    doing = "drawing {samples:,} pictures by {path}"

    def lot(self, asked: Asked, kept: Pictures, stop: Stop) -> Lot:
        labels, device = asked_for(self.stored, kept, asked.samples), Processes.start().device
        pictures, seconds, broken = drawn(self.stored, asked.samples, asked.cap, asked.seed, stop, device, labels)
        return Lot(pictures, {"drawn": len(pictures), "draw_seconds": seconds / len(pictures)}, broken)

    def judged(self, lot: Lot, extractor: Extractor, asked: Asked, kept: Pictures, stop: Stop) -> dict[str, Any]:
        """With the bits of held-out pictures, where the family tells them."""
        told = bits(self.stored, kept, stop, Processes.start().device)
        judged = super().judged(lot, extractor, asked, kept, stop)
        return {**told, **judged, "notes": [*notes_of(lot.told | told, lot.broken), *judged["notes"]]}


@dataclass(frozen=True)
class OfPrompts(Made):
    doing = "drawing {samples:,} pictures by {path}, for captions of the data set"

    def lot(self, asked: Asked, kept: Pictures, stop: Stop) -> Lot:
        pictures, told = drawn_for_captions(self.path, self.yard, asked.samples, asked.cap, asked.seed, stop)
        return Lot(pictures, told)


@dataclass(frozen=True)
class OfFolder(Made):
    doing = "reading the pictures of {path}"

    def lot(self, asked: Asked, kept: Pictures, stop: Stop) -> Lot:
        data = DataSettings(path=self.path, size=self.yard.size, uncaptioned="empty", least_side=1)
        out = Path(self.path) / "none"  # nothing is written there
        file = RunFile(task={"type": "classifier"}, data=data, run={"out": out, "steps": 1, "batch": 1})
        loader = data_of(file, processes_of(file))[1]
        return Lot(as_bytes(list(loader.look(asked.samples))))


@dataclass(frozen=True)
class OfAutoencoder(Made):
    """The held-out pictures, encoded and decoded."""

    doing = "encoding and decoding the held-out pictures by {path}"

    @torch.no_grad()
    def lot(self, asked: Asked, kept: Pictures, stop: Stop) -> Lot:
        vae, found = Autoencoder(load_component(Path(self.path), "vae", torch.float32)[0]), list[Tensor]()
        for some in torch.split(kept.held_out, 50):
            latents = (moments(vae, 2 * unit(some) - 1)[0] - vae.shift) * vae.scale
            back = (vae.decode(latents).clamp(-1, 1) + 1) / 2
            found.append((255 * back.float()).round().to(torch.uint8))
            stop.check()
        return Lot(torch.cat(found))

    def judged(self, lot: Lot, extractor: Extractor, asked: Asked, kept: Pictures, stop: Stop) -> dict[str, Any]:
        """Against what it was made of: the distance of the features of all of them (rFID), and of each."""
        back, shown = unit(lot.pictures), unit(kept.held_out)
        reference = Reference.of(extractor, shown, shown)
        each = {"psnr_db": psnr(back, shown), "ssim": ssim(back, shown)}
        each["feature_distance"] = feature_distance(extractor.seen(back), reference.training)
        told = as_json(measure(back, reference, asked.seed))
        figures = {name: told["figures"][old] for old, name in (("fid", "rfid"), ("spectrum_db", "spectrum_db"))}
        for name, values in each.items():
            figures[name] = asdict(around(float(values.mean()), float(values.std()) / len(values) ** 0.5))
        return {"figures": figures, "protocol": told["protocol"], "notes": list[str](), "held_out": None}


def made_by(path: str, yard: Yardsticks) -> Made:
    """Of whatever lies there, or in the run that lies there; a name is that of a text-to-image model."""
    if (stored := _family(Path(path), yard.size)) is not None:
        return OfFamily(path, yard, stored)
    _check_cell(Path(path))
    where = _in_run(Path(path))
    if _is_autoencoder(Path(where)):
        return OfAutoencoder(where, yard)
    is_model = not Path(where).is_dir() or (Path(where) / "model_index.json").is_file()
    return OfPrompts(where, yard) if is_model else OfFolder(where, yard)


def _family(path: Path, size: int) -> Stored | None:
    """The family in a folder, or in that of its run or its cell, which draws pictures of that size; None where there is
    none."""
    for folder in (path, path / "model", path / "run" / "model"):
        if (folder / CONFIG).is_file() and "family" in read_json(folder / CONFIG, 1_000_000):
            break
    else:
        return None
    stored = load_family(folder)
    if (side := stored.model.form.side) != size:
        what, why = f"{path} draws {side} pixels, and --size is {size}.", "Both must be of one size."
        raise LdmError(Code.USAGE, what, why, f"Give --size {side}.")
    return stored


def _check_cell(path: Path) -> None:
    """A cell of a comparison that has no model is no folder of pictures."""
    if not any((path / name).is_file() for name in (PLAN, RESULT, CRASH)):
        return
    told = Cell("", 0, path).told
    why = "It has no result yet." if told is None else told.get("failed") or "Its result was kept, its model was not."
    raise LdmError(Code.MODEL, f"{path} is a cell without a model.", why, "Choose a cell that has run/model.")


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


def _is_autoencoder(path: Path) -> bool:
    name = read_json(path / CONFIG, 1_000_000).get("_class_name") if (path / CONFIG).is_file() else None
    return name in ("AutoencoderKL", "VQModel")
