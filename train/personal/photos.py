"""The photos as they are trained on: upright, sRGB, without a word of EXIF, no larger than helps, each with its words.

They are written once into the folder of the run, so that it goes on to the same end whatever becomes of the originals,
and so that everybody sees what was learned from. One of four or more is kept aside, to judge by.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ldm.data.doctor import check
from ldm.data.examples import open_photos
from ldm.data.facts import CLEAR
from ldm.data.reader import check_shape
from ldm.data.source import Source, grey, srgb
from ldm.data.subject import FEWEST, for_photos
from ldm.data.survey import Finding
from ldm.data.transforms import shrunk
from ldm.errors import Code, LdmError
from ldm.images import from_rgb, save_image
from ldm.metrics.subject import subject_check
from ldm.models.prompt import says
from ldm.store.shards import read_json
from ldm.store.write import staged

KEPT = "photos.json"
DIGESTED = 64  # pixels of training: which, does not matter to a digest
Alike = Mapping[int, Sequence[int]]  # of each photo all places of its file
TIMES = 2  # as large as the side of training, at most: random crops and zooms need no more


@dataclass(frozen=True)
class Photos:
    """What was prepared: `train/` and, where one is kept to judge by, `aside/`."""

    folder: Path
    names: tuple[str, ...]  # of the originals, all readable ones in order
    aside: str | None
    masked: bool
    findings: tuple[dict[str, Any], ...] = ()  # what was worth saying of them
    digest: str = ""  # of the originals; empty: nobody has taken it

    @classmethod
    def read(cls, folder: Path) -> Photos | None:
        """What an earlier command has prepared; None where there is nothing yet."""
        kept = folder / KEPT
        if not kept.is_file():
            return None
        told = read_json(kept)
        names, findings = tuple(told["names"]), tuple(told["findings"])
        return cls(folder, names, told["aside"], told["masked"], findings, told.get("digest", ""))

    @property
    def training(self) -> Path:
        return self.folder / "train"

    def files(self) -> list[Path]:
        """All pictures, in the order of `names`."""
        found = [*self.training.glob("*.png"), *(self.folder / "aside").glob("*.png")]
        return sorted(found, key=lambda path: path.name)


def looked_at(
    photos: Path, size: int, token: str, see: Callable[[Tensor], Tensor] | None = None
) -> tuple[Source, tuple[Finding, ...]]:
    """The photos, and what is worth saying of them; an error where nothing could be learned, or a mask is of no use.
    `see`: what a CLIP makes of pictures, where one is at hand."""
    source = open_photos(photos, size)
    in_front = f"nothing: it is put in front of them ({token}, ...)"
    report = check(source, size, masks=True, more=subject_check(source, size, token, see, in_front))
    found = for_photos(report.findings)
    worst = next((finding for finding in found if finding.level == "stop" or finding.kind == "mask"), None)
    if worst is not None:
        cases = "; ".join(map(str, worst.cases[:3]))
        raise LdmError(Code.FILE, f"{photos}: {worst.what}.", f"{cases or 'Nothing could be learned'}.", worst.fix)
    return source, found


def digest_of(photos: Path) -> str:
    """sha256 of all that is learned from a folder: names, pictures, captions, masks. Of one that cannot be read: none
    that a readable one has."""
    try:
        return digest(open_photos(photos, DIGESTED))
    except LdmError as error:
        return str(error.what)


def digest(source: Source) -> str:
    """Of pictures that were opened."""
    told = hashlib.sha256()
    for place in range(len(source)):
        mask = source.mask(place)
        shown = "" if mask is None else hashlib.sha256(grey(mask).tobytes()).hexdigest()
        each = [source.name(place), source.content(place), list(source.about(place).captions), shown]
        told.update(json.dumps(each).encode() + b"\n")
    return told.hexdigest()


def prepared(
    source: Source,
    folder: Path,
    size: int,
    captions: Sequence[str],
    token: str,
    findings: Sequence[Finding] = (),
    alike: Alike | None = None,
) -> Photos:
    """Writes the folder. `captions` are what pictures without words of their own get, in turn; `alike`, where the
    photos were sorted already."""
    alike = taken(source) if alike is None else alike
    places = list(alike)
    names = tuple(source.name(place) for place in places)
    masked = _masked(source, places)
    aside = _middle(places) if len(places) >= FEWEST else None
    told = tuple(finding.as_dict() for finding in findings)
    made = Photos(folder, names, None if aside is None else source.name(aside), masked, told, digest(source))
    with staged(folder) as stage:
        for number, place in enumerate(places):
            home = stage / ("aside" if place == aside else "train")
            (home / "masks").mkdir(parents=True, exist_ok=True) if masked else home.mkdir(parents=True, exist_ok=True)
            pixels = _sized(srgb(source.picture(place)), size)
            save_image(from_rgb(pixels.astype(np.float32) / 255), home / f"{number:04d}.png")
            said = (text for same in alike[place] for text in source.about(same).captions)
            words = list(dict.fromkeys(_called(text, token) for text in said if text.strip()))
            (home / f"{number:04d}.txt").write_text("\n".join(words or captions) + "\n", "utf-8")
            if masked:
                mask = _sized(_mask(source, place), size)
                shown = np.repeat(mask[..., None], 3, 2).astype(np.float32) / 255
                save_image(from_rgb(shown), home / "masks" / f"{number:04d}.png")
        about = {"names": names, "aside": made.aside, "masked": made.masked, "findings": told}
        about["digest"] = made.digest
        (stage / KEPT).write_text(json.dumps(about, indent=2) + "\n", "utf-8")
    return made


def taken(source: Source) -> Alike:
    """Which are learned from: those that can be read, each once, and all places that its file lies at. The same file
    again is no other photo: one that is kept aside would be trained on all the same. What is said of any counts."""
    same: dict[str, list[int]] = {}
    for place in range(len(source)):
        content = source.content(place)
        if content in same or _readable(source, place):
            same.setdefault(content, []).append(place)
    groups = same.values()
    return {next((p for p in group if source.mask(p) is not None), group[0]): tuple(group) for group in groups}


def _readable(source: Source, place: int) -> bool:
    """As the check and the loader see it: what the one leaves out the other would stop at."""
    try:
        check_shape(source.name(place), source.picture(place).size, 1)
    except LdmError:
        return False
    return True


def _masked(source: Source, places: Sequence[int]) -> bool:
    """Whether masks lie beside the pictures (all, or `looked_at` has refused them), or some are partly transparent."""
    if any(source.mask(place) is not None for place in places):
        return True
    return any(float((_opaque(source, place) < 255).mean()) > CLEAR for place in places)


def _mask(source: Source, place: int) -> np.ndarray:
    """What of a picture counts, [H,W] of 0..255: the mask beside it, else what is opaque."""
    mask = source.mask(place)
    return _opaque(source, place) if mask is None else grey(mask)


def _opaque(source: Source, place: int) -> np.ndarray:
    picture = source.picture(place)
    if picture.alpha is None:
        return np.full(picture.pixels.shape[:2], 255, np.uint8)
    return np.asarray(np.rint(picture.alpha / np.iinfo(picture.alpha.dtype).max * 255), np.uint8)


def _middle(places: Sequence[int]) -> int:
    """The one to judge by: as good as any, and always the same."""
    return places[len(places) // 2]


def _called(text: str, token: str) -> str:
    text = " ".join(text.split())
    return text if says(text, token) else f"{token}, {text}"


def _sized(pixels: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(shrunk(np.asarray(pixels), TIMES * size / min(pixels.shape[:2])))
