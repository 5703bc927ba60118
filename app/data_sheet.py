"""A sheet that shows what `ldm data check` found: a row for each finding, its first pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ldm.errors import LdmError
from ldm.images import Picture, save_image

if TYPE_CHECKING:
    from ldm.data.doctor import Report
    from ldm.data.source import Source

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
ACROSS, SIDE, GAP, TEXT = 8, 120, 8, 13  # pictures in a row; pixels


def draw(source: Source, report: Report, path: Path) -> None:
    """Writes the sheet into a new file; findings without pictures to show are left out."""
    rows = [
        (f"{finding.level}: {finding.what}", [place for case in finding.cases for place in case.places])
        for finding in report.findings
    ]
    rows = [row for row in rows if row[1]] or [(report.verdict, [])]
    line = TEXT + GAP
    height = sum(line + (SIDE + line + GAP if cases else 0) for _, cases in rows) + GAP
    page = Image.new("RGB", (ACROSS * (SIDE + GAP) + GAP, height), "white")
    pen, font, top = ImageDraw.Draw(page), ImageFont.load_default(TEXT), GAP
    for title, cases in rows:
        pen.text((GAP, top), fitting(title, font, page.width - 2 * GAP), fill="black", font=font)
        top += line
        show(page, source, cases[:ACROSS], top, font)
        top += SIDE + line + GAP if cases else 0
    save_image(Picture(np.asarray(page)), path)


def show(page: Image.Image, source: Source, places: Sequence[int], top: int, font: Font) -> None:
    """One row of pictures, each with its name below."""
    pen = ImageDraw.Draw(page)
    for column, place in enumerate(places):
        left = GAP + column * (SIDE + GAP)
        try:
            small = thumbnail(source.read(place))
            page.paste(small, (left + (SIDE - small.width) // 2, top + (SIDE - small.height) // 2))
        except LdmError:
            pen.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), fill="#eee", outline="#c00")
            pen.line((left, top, left + SIDE - 1, top + SIDE - 1), fill="#c00")
        pen.text((left, top + SIDE + 2), fitting(source.name(place), font, SIDE), fill="#555", font=font)


def thumbnail(rgb: np.ndarray) -> Image.Image:
    """[H,W,3] of 0..255 so that its long side is SIDE; small pictures are enlarged without smoothing."""
    image = Image.fromarray(np.ascontiguousarray(rgb))
    scale = SIDE / max(image.size)
    how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), how)


def fitting(text: str, font: Font, width: int) -> str:
    """The text, or its end (names differ there) after three dots."""
    text = "".join(c if c.isprintable() and c.isascii() else "?" for c in text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"...{text}") > width:
        text = text[1:]
    return f"...{text}"
