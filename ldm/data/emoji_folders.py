"""Emoji as their designers publish them: folders of pictures named by code points, and Unicode's names and keywords.

`emoji-test.txt` of Unicode names every emoji and its group; `annotations.json` of CLDR has the keywords. Nothing is
fetched: a user downloads what they want.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.data.emoji import LICENCES, Emoji
from ldm.data.source import PICTURES
from ldm.errors import Code, LdmError
from ldm.images import Picture, open_image
from ldm.images.picture import samples

SIDE = 128
Key = tuple[int, ...]
_LINE = re.compile(r"([0-9A-F ]+?)\s*;\s*([a-z-]+)\s*#\s*\S+\s+E[\d.]+\s+(.+)")
_CODES = re.compile(r"(?:emoji_)?u?([0-9a-f]{2,6}(?:[-_][0-9a-f]{2,6})*)", re.IGNORECASE)
_PRESENTATION = 0xFE0F  # asks for a coloured picture; designers leave it out of names


@dataclass(frozen=True)
class Named:
    """What Unicode says of an emoji."""

    name: str
    codepoints: str
    group: int
    subgroup: int


def read_names(path: Path) -> dict[Key, Named]:
    """emoji-test.txt: a name for each sequence of code points, without presentation marks."""
    names: dict[Key, Named] = {}
    group = subgroup = -1
    for line in _text(path).splitlines():
        if line.startswith("# group:"):
            group += 1
        elif line.startswith("# subgroup:"):
            subgroup += 1
        elif (found := _LINE.match(line)) and found[2] in ("fully-qualified", "component"):
            codes = "-".join(found[1].split())
            names.setdefault(key_of(codes), Named(found[3].strip(), codes, group, subgroup))
    if not names:
        what, why = f"{path} names no emoji", "no line reads like `1F600 ; fully-qualified # 😀 E1.0 grinning face`"
        raise LdmError(Code.FILE, what, why, "take emoji-test.txt from unicode.org/Public/emoji")
    return names


def read_keywords(path: Path) -> dict[Key, tuple[str, ...]]:
    """annotations.json of cldr-json: the keywords of each emoji."""
    try:
        told = json.loads(_text(path))
        table = next(iter(told.values()))["annotations"]
        return {tuple(c for c in map(ord, text) if c != _PRESENTATION): _words(row) for text, row in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError) as error:
        why = "it does not hold {annotations: {annotations: {emoji: {default: [...]}}}}"
        fix = "take annotations/en/annotations.json of the package cldr-annotations-full"
        raise LdmError(Code.FILE, f"{path} holds no keywords", why, fix) from error


def _words(row: Mapping[str, list[str]]) -> tuple[str, ...]:
    return tuple(str(word) for word in row.get("default", []))


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise LdmError(Code.FILE, f"{path} cannot be read", why, "check the path") from error


def key_of(codes: str) -> Key:
    """Code points as numbers: of "emoji_u1f469_200d_1f4bb", of "1f469-200d-1f4bb", of "1F469-200D-1F4BB"."""
    found = _CODES.fullmatch(codes)
    if found is None:
        return ()
    return tuple(c for c in (int(part, 16) for part in re.split("[-_]", found[1])) if c != _PRESENTATION)


def read_style(
    style: str, folder: Path, names: Mapping[Key, Named], keywords: Mapping[Key, tuple[str, ...]]
) -> Iterator[Emoji]:
    """The pictures of one style whose file names are code points that have a name."""
    if not folder.is_dir():
        raise LdmError(Code.FILE, f"{folder} is no folder", f"the pictures of {style} are looked for there", "check it")
    found = 0
    for path in sorted(folder.iterdir()):
        key = key_of(path.stem) if path.suffix.lower() in PICTURES else ()
        if not key or key not in names:
            continue
        found += 1
        told = names[key]
        tags = tuple(word for word in keywords.get(key, keywords.get(key[:1], ())) if word != told.name)
        yield Emoji(
            fitted(open_image(path)), told.name, style, tags, told.group, told.subgroup, told.codepoints,
            LICENCES.get(style, ""),
        )  # fmt: skip
    if not found:
        why = "no picture there is named by the code points of an emoji, such as emoji_u1f600.png or 1f600.png"
        fix = "name the folder that the pictures lie in; SVG must be turned into PNG first"
        raise LdmError(Code.FILE, f"{folder} holds no emoji", why, fix)


def fitted(picture: Picture) -> bytes:
    """The picture in a transparent square of 128 pixels, as lossless WebP."""
    rgb = samples(picture.rgb((0.0, 0.0, 0.0)), np.dtype(np.uint8)) if picture.alpha is None else _plain(picture)
    alpha = np.full(rgb.shape[:2], 255, np.uint8) if picture.alpha is None else _eight(picture.alpha)
    image = Image.fromarray(np.dstack([rgb, alpha]))
    share = SIDE / max(image.size)
    if share != 1:
        width, height = (max(1, round(side * share)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    square.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    file = io.BytesIO()
    square.save(file, "WEBP", lossless=True)
    return file.getvalue()


def _plain(picture: Picture) -> np.ndarray:
    """sRGB samples under the transparency, as they are."""
    opaque = Picture(picture.pixels, None, picture.icc)
    return samples(opaque.rgb(), np.dtype(np.uint8))


def _eight(alpha: np.ndarray) -> np.ndarray:
    return alpha if alpha.dtype == np.uint8 else np.asarray(alpha // 257, np.uint8)
