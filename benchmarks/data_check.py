"""Where the thresholds of `ldm data check` come from: known pictures are blurred and copied, and looked for again.

python -m benchmarks.data_check emoji.parquet cifar10.parquet [--write]

Each file is a parquet with a column `image`. Sharp pictures are blurred by known amounts: the area under the curve says
how well edge width (ours) and the plain variance of the Laplacian tell the two apart. Copies are made as copies come
about (JPEG, half size, brighter, a rim cut off, text on it); two different
pictures that are called alike are a false alarm.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.machine import write
from ldm.data.alike import near_duplicates
from ldm.data.facts import LUMA, Facts, edge_width, facts
from ldm.data.findings import EDGE
from ldm.images import Picture, open_image

COUNT, MANY = 800, 100_000


def pictures(path: Path) -> list[Image.Image]:
    """Some of the file, on white, no content twice."""
    column = parquet.read_table(path, columns=["image"])["image"]
    some = np.random.default_rng(0).permutation(len(column))[:COUNT]
    cells = (column[int(i)].as_py() for i in some)
    opened = {p.sha256: p for p in (open_image(c["bytes"] if isinstance(c, dict) else c) for c in cells)}
    return [Image.fromarray(np.rint(p.rgb() * 255).astype(np.uint8)) for p in opened.values()]


def enlarged(image: Image.Image, factor: int) -> Image.Image:
    small = image.resize((image.width // factor, image.height // factor), Image.Resampling.LANCZOS)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.fromarray(open_image(file.getvalue()).pixels)


def noisy(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image) + np.random.default_rng(0).normal(0, 5, (*image.size[::-1], 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def signed(image: Image.Image) -> Image.Image:
    image = image.copy()
    ImageDraw.Draw(image).text((2, image.height - 11), "(c) me", fill="grey")
    return image


def rim(image: Image.Image) -> Image.Image:
    edge = round(0.02 * image.width)
    return image.crop((edge, edge, image.width - edge, image.height - edge))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "none": lambda image: image,
    "JPEG 75": lambda image: jpeg(image, 75),
    "JPEG 30": lambda image: jpeg(image, 30),
    "noise 5": noisy,
    "enlarged 2x": lambda image: enlarged(image, 2),
    "enlarged 3x": lambda image: enlarged(image, 3),
    **{f"blur {s:g}": (lambda image, s=s: image.filter(ImageFilter.GaussianBlur(s))) for s in (1.0, 1.5, 2.0, 3.0)},
}
COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 75": CHANGES["JPEG 75"],
    "JPEG 30": CHANGES["JPEG 30"],
    "half size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
    "2 % brighter": lambda image: Image.fromarray((np.asarray(image) * 0.98 + 5).astype(np.uint8)),
    "signed": signed,
    "2 % of the rim cut off": rim,
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def blur(sharp: list[Image.Image]) -> dict[str, Any]:
    """For each change: share called blurred, and the area under the curve of both measures."""
    found, before = {}, [measures(image) for image in sharp]
    for name, change in CHANGES.items():
        after = [measures(change(image)) for image in sharp]
        found[name] = {
            "called blurred": round(float(np.mean([edge > EDGE for edge, _ in after])), 3),
            "edge width, 1st and 99th percentile": np.percentile([e for e, _ in after], [1, 99]).round(2).tolist(),
            "area, edge width": area([e for e, _ in before], [e for e, _ in after]),
            "area, variance of the Laplacian": area([v for _, v in before], [v for _, v in after]),
        }
    return found


def measures(image: Image.Image) -> tuple[float, float]:
    """Edge width, and minus the variance of the Laplacian: both rise with blur."""
    x = np.asarray(image, np.float32) @ LUMA
    lap = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:] - 4 * x[1:-1, 1:-1]
    return edge_width(x), -float(lap.var())


def area(low: list[float], high: list[float]) -> float:
    """The chance that a member of `high` lies above one of `low` (ties count half)."""
    a, b = np.array(low)[:, None], np.array(high)[None, :]
    return round(float((b > a).mean() + 0.5 * (b == a).mean()), 4)


def copies(images: list[Image.Image]) -> dict[str, Any]:
    """For each way to copy: the share of copies that are found beside their original."""
    size = min(images[0].size)
    known = [look(image, size) for image in images]
    apart = sum(len(group) - 1 for group in groups(known))
    found: dict[str, Any] = {"different pictures called alike": apart, "of": len(images)}
    for name, change in COPIES.items():
        pairs = [groups([own, look(change(image), size)]) for own, image in zip(known, images, strict=True)]
        found[name] = round(sum(map(bool, pairs)) / len(images), 3)
    return found


def look(image: Image.Image, size: int) -> Facts:
    return facts(Picture(np.asarray(image)), size)


def groups(known: list[Facts]) -> list[list[int]]:
    return near_duplicates([f.bits for f in known], [f.thumb for f in known])


def search() -> dict[str, float]:
    """Seconds to find the 1,000 copies among 100,000 random prints."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**63, MANY, dtype=np.uint64)
    bits[-1000:] = bits[:1000] ^ np.uint64(0b101)
    thumbs = rng.integers(0, 256, (MANY, 192), dtype=np.uint8)
    thumbs[-1000:] = thumbs[:1000]
    start = time.perf_counter()
    found = near_duplicates(bits.tolist(), [row.tobytes() for row in thumbs])
    return {"pictures": MANY, "pairs": len(found), "seconds": round(time.perf_counter() - start, 1)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="write docs/results/data_check.json")
    given = parser.parse_args()
    figures: dict[str, Any] = {"search": search()}
    for file in given.files:
        sharp = pictures(file)
        figures[file.stem] = {"blur": blur(sharp), "copies": copies(sharp)}
    print(figures)
    if given.write:
        print(write("data_check", figures))
