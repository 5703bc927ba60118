"""Small data sets on the disk for tests: each picture has a colour of its own, by which it is known again."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def colour(number: int) -> tuple[int, int, int]:
    """Any two of the first 64 are far apart."""
    return 30 + 60 * (number % 4), 30 + 60 * (number // 4 % 4), 30 + 60 * (number // 16 % 4)


def which(image: np.ndarray) -> int:
    """The number of a picture [3,H,W] in [-1,1] by the colour in its middle."""
    middle = (image[:, image.shape[1] // 2, image.shape[2] // 2] + 1) * 127.5
    digits = np.rint((middle - 30) / 60).astype(int)
    return int(digits[0] + 4 * digits[1] + 16 * digits[2])


def picture(number: int, size: tuple[int, int] = (12, 12)) -> Image.Image:
    return Image.new("RGB", size, colour(number))


def png(number: int, size: tuple[int, int] = (12, 12)) -> bytes:
    file = io.BytesIO()
    picture(number, size).save(file, "PNG")
    return file.getvalue()


def folder(root: Path, count: int, size: tuple[int, int] = (12, 12), texts: bool = True) -> Path:
    """`00.png` with `00.txt` "picture 0", and so on."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(number, size).save(root / f"{number:02}.png")
        if texts:
            (root / f"{number:02}.txt").write_text(f"picture {number}", "utf-8")
    return root


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def rewritten(path: Path, data: bytes) -> None:
    """Other bytes in the same file, which is dated back: only its entry's time tells, once the clock has ticked."""
    then = path.stat()
    path.write_bytes(data)
    while True:
        os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
        if path.stat().st_ctime_ns != then.st_ctime_ns:
            return
