"""The sheet of a grid: its pictures as one PNG with labels, a table for each value of z below the last."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.grids import CELL, GAP, TEXT, Axis, Grid
from app.server.axes import AskedAxis, labels_of
from ldm.images import open_image
from ldm.images.save import flat_image

if TYPE_CHECKING:
    from PIL import Image

PIXELS = 32_000_000  # of all cells together: larger pictures are drawn smaller


def sheet(axes: Mapping[str, AskedAxis], cells: Sequence[Mapping[str, Any]], paths: Sequence[Path | None]) -> bytes:
    """`cells` run along x first, then y, then z; where there is no finished picture stands what became of it."""
    side = math.isqrt(PIXELS // len(cells))
    there = [None if path is None else _picture(path, side) for path in paths]
    sizes = [picture.size for picture in there if picture is not None] or [(CELL, CELL)]
    factor = max(1, round(CELL / max(map(max, sizes))))  # of small ones, the same in all tables
    size = (factor * max(width for width, _ in sizes), factor * max(height for _, height in sizes))
    there = [None if picture is None else _enlarged(picture, factor) for picture in there]
    pictures = [
        _blank(size, "removed" if cell["state"] == "done" else cell["state"]) if picture is None else picture
        for cell, picture in zip(cells, there, strict=True)
    ]
    named = {name: Axis(name, "", tuple(labels_of(axis))) for name, axis in axes.items() if name != "z"}
    table, levels = Grid(**named), labels_of(axes["z"]) if "z" in axes else [""]
    many = len(cells) // len(levels)
    file = io.BytesIO()
    _below([table.draw(pictures[n * many : (n + 1) * many]) for n in range(len(levels))], levels).save(file, "PNG")
    return file.getvalue()


def _picture(path: Path, side: int) -> Image.Image:
    from PIL import Image

    picture = flat_image(open_image(path), "JPEG")[0]
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def _enlarged(picture: Image.Image, factor: int) -> Image.Image:
    from PIL import Image

    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _blank(size: tuple[int, int], state: str) -> Image.Image:
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", size, "lightgrey")
    ImageDraw.Draw(picture).text((GAP, GAP), state, fill="black", font=ImageFont.load_default(TEXT))
    return picture


def _below(tables: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
    """Each under its label, where it has one."""
    from PIL import Image, ImageDraw, ImageFont

    if len(tables) == 1 and not labels[0]:
        return tables[0]
    font, head = ImageFont.load_default(TEXT), TEXT + 2 * GAP
    width = max([table.width for table in tables] + [int(font.getlength(label)) + 2 * GAP for label in labels])
    whole = Image.new("RGB", (width, sum(head + table.height for table in tables)), "white")
    pen, top = ImageDraw.Draw(whole), 0
    for table, label in zip(tables, labels, strict=True):
        pen.text((GAP // 2, top + GAP // 2), label, fill="black", font=font)
        whole.paste(table, (0, top + head))
        top += head + table.height
    return whole
