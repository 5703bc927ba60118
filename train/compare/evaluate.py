"""Any model or folder of pictures, measured against a data set by the yardsticks of a comparison."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ldm.baselines.stored import CONFIG, Stored, load_family
from ldm.data.settings import DataSettings
from ldm.errors import Code, LdmError
from ldm.images import from_rgb, save_image
from ldm.metrics.extractors import Extractor
from ldm.metrics.interval import around
from ldm.metrics.measured import Reference, measure
from ldm.metrics.reconstruction import feature_distance, psnr, ssim
from ldm.models.autoencoder import Autoencoder
from ldm.store.clip import load_clip
from ldm.store.find import find_model
from ldm.store.folder import load_component
from ldm.store.shards import read_json
from ldm.store.write import refuse_existing, staged
from pipelines.pipeline import Pipeline
from train.compare.drawing import asked_for, bits, drawn
from train.compare.lab import Progress, prepare, remember_yardsticks
from train.compare.measured_json import as_json
from train.compare.reference import Pictures, as_bytes, captions_of, extractor_of, pictures_of, real, reference_of
from train.compare.scale import scale_of
from train.compare.wish import Yardsticks
from train.config import RunFile
from train.opening import data_of, processes_of
from train.signals import Stop
from train.tasks.latents import moments

Tell = Callable[[str], None]


def evaluate(
    made: str, yard: Yardsticks, samples: int, cap: int, seed: int, tell: Tell, stop: Stop, keep: Path | None = None
) -> Path:
    """Writes NAME.json into the folder of the yardsticks, which later measures share, and what was drawn into the new
    folder `keep`; returns the path of the former."""
    if keep is not None:
        refuse_existing(keep)
    stored = _family(Path(made), yard.size)  # before a folder is begun, which is of one size for ever
    remember_yardsticks(yard, stop)
    path = yard.out / "measured" / f"{_name(made)}.json"
    refuse_existing(path)
    prepare(yard, Progress(tell), stop)
    told, pictures = _measured(made, stored, yard, samples, cap, seed, tell, stop)
    if keep is not None:
        _save(pictures, keep)
    with staged(path) as stage:
        stage.write_text(json.dumps({"made": made, "held_out": scale_of(yard.out), **told}, indent=2) + "\n", "utf-8")
    return path


def _measured(
    made: str, stored: Stored | None, yard: Yardsticks, samples: int, cap: int, seed: int, tell: Tell, stop: Stop
) -> tuple[dict[str, Any], Tensor]:
    """What was measured, and uint8 pictures [n,3,H,W] that it was measured of."""
    kept = pictures_of(yard)
    if stored is not None:
        tell(f"drawing {samples:,} pictures by {stored.family}")
        labels = asked_for(stored, kept, samples)
        pictures, seconds, _ = drawn(stored, samples, cap, seed, stop, labels=labels)
        told = {"drawn": len(pictures), "draw_seconds": seconds / len(pictures), **bits(stored, kept, stop)}
    elif _is_autoencoder(Path(made)):
        tell(f"encoding and decoding the held-out pictures by {made}")
        return _reconstructed(made, kept, extractor_of(yard, kept, stop), seed, stop)
    elif Path(made).is_dir() and not (Path(made) / "model_index.json").is_file():
        tell(f"reading the pictures of {made}")
        pictures, told = _folder(Path(made), yard.size, samples), {}
    else:
        texts = captions_of(yard)
        if not texts:
            why = "A text-to-image model draws for the captions of the data set, and this one has none."
            raise LdmError(Code.USAGE, f"{made} cannot be asked for anything.", why, "Give a data set with captions.")
        tell(f"drawing {samples:,} pictures by {made}, for captions of the data set")
        pictures, told = _drawn_for(made, yard, texts, samples, cap, seed, stop)
    reference = reference_of(yard, kept, extractor_of(yard, kept, stop))
    return told | as_json(measure(real(pictures), reference, seed)), pictures


def _save(pictures: Tensor, folder: Path) -> None:
    """A PNG each, numbered as they were drawn."""
    with staged(folder) as stage:
        stage.mkdir(parents=True)
        for i, one in enumerate(pictures):
            name = f"{i:0{len(str(len(pictures) - 1))}d}.png"
            save_image(from_rgb(real(one).permute(1, 2, 0).numpy()), stage / name)


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
def _reconstructed(
    made: str, kept: Pictures, extractor: Extractor, seed: int, stop: Stop
) -> tuple[dict[str, Any], Tensor]:
    """What an autoencoder makes of the held-out pictures, against these themselves: the distance of the features of all
    of them (rFID), and of each one what came back."""
    vae = Autoencoder(load_component(Path(made), "vae", torch.float32)[0])
    shown, found = real(kept.held_out), list[Tensor]()
    for some in torch.split(shown, 50):
        latents = (moments(vae, 2 * some - 1)[0] - vae.shift) * vae.scale
        found.append(((vae.decode(latents).clamp(-1, 1) + 1) / 2).float())
        stop.check()
    back = torch.cat(found)
    reference = Reference.of(extractor, shown, shown)
    each = {"psnr_db": psnr(back, shown), "ssim": ssim(back, shown)}
    each["feature_distance"] = feature_distance(extractor.seen(back), reference.training)
    told = as_json(measure(back, reference, seed))
    figures = {name: told["figures"][old] for old, name in (("fid", "rfid"), ("spectrum_db", "spectrum_db"))}
    for name, values in each.items():
        figures[name] = asdict(around(float(values.mean()), float(values.std()) / len(values) ** 0.5))
    told = {"figures": figures, "protocol": told["protocol"], "notes": [], "held_out": None}
    return told, (back * 255).round().to(torch.uint8)


def _name(made: str) -> str:
    path = Path(made)
    while path.name in ("model", "run", "vae") and path.parent.name:
        path = path.parent
    return path.stem or "measured"


def _folder(path: Path, size: int, most: int) -> Tensor:
    """uint8 [n,3,size,size], as a data set would be shown."""
    data = DataSettings(path=str(path), size=size, uncaptioned="empty", least_side=1)
    file = RunFile(task={"type": "classifier"}, data=data, run={"out": path / "none", "steps": 1, "batch": 1})
    loader = data_of(file, processes_of(file))[1]
    return as_bytes(list(loader.look(most)))


def _drawn_for(
    made: str, yard: Yardsticks, texts: Sequence[str], samples: int, cap: int, seed: int, stop: Stop
) -> tuple[Tensor, dict[str, Any]]:
    """One picture a caption, in their order and round again, as many as the cap allows; with a CLIP also how well each
    fits its words."""
    pipeline = Pipeline.load(made)
    clip = None if yard.clip is None else load_clip(find_model(yard.clip)).eval()
    found, fits, began = list[Tensor](), list[float](), time.monotonic()
    for place in range(samples):
        text = texts[place % len(texts)]
        (picture,) = pipeline(text, seed=seed * 1_000_003 + place)
        square = ImageOps.fit(picture.convert("RGB"), (yard.size, yard.size), Image.Resampling.BICUBIC)
        tensor = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
        found.append(tensor.view(yard.size, yard.size, 3).permute(2, 0, 1))
        if clip is not None:
            fits.append(float(clip.similarity(2 * real(found[-1][None]) - 1, [text])))
        stop.check()
        if time.monotonic() - began > cap:
            break
    told: dict[str, Any] = {"drawn": len(found)}
    if fits:
        each = torch.tensor(fits, dtype=torch.float64)
        told["clip_score"] = asdict(around(float(each.mean()), float(each.std()) / len(each) ** 0.5))
    return torch.stack(found), told
