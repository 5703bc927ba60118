"""What every set of examples answers, wherever they lie: how many, what is known of one, its picture, its hash.

Each answer is a function of the index alone, so any process may ask for any example in any order. A source holds no
open file and no position, and travels to other processes as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ldm.errors import Code, LdmError
from ldm.images import Picture

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TEXT_FIELDS = ("text", "caption", "name")  # where a caption is looked for, in this order
SHOWN = 5  # how many bad ones an error lists
BESIDE_FIX = "put them there, or set data.hint or data.mask to another value"
MAX_TEXT = 1 << 20  # bytes of a caption or record: what is longer is none
MOST_CLASSES = 100_000  # a number beyond is an id, not a class
_WHOLE = re.compile(r"0|[1-9][0-9]{0,17}")
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class About:
    """What is known of an example without decoding it. Of several captions one is drawn each time it is shown."""

    name: str
    captions: tuple[str, ...] = ()
    label: int | None = None
    size: tuple[int, int] | None = None  # (width, height), upright; None: only `Source.size` tells
    weight: int = 1  # how often it comes in an epoch


class Source(Protocol):
    """Examples 0 .. len-1. `title` is what errors call the set; `labels` are the names of the classes, if any."""

    title: str
    labels: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()  # files of pictures that are not read, and have no version beside them that is
    quick: bool = False  # whether pictures are drawn here: threads would not help

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The same for the same example, also when others join the set."""
        ...

    def about(self, index: int) -> About: ...

    def content(self, index: int) -> str:
        """sha256 of all that decides the picture."""
        ...

    def picture(self, index: int) -> Picture:
        """Upright, in its own depth; an `LdmError` where it cannot be read."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """(width, height), upright, from the header."""
        return self.picture(index).size

    def weights(self) -> npt.NDArray[np.int64] | None:
        """How often each example comes in an epoch; None: once each."""
        return None

    def read(self, index: int) -> Pixels:
        """[H,W,3] sRGB over white."""
        return srgb(self.picture(index))

    def hint(self, index: int) -> Picture | None:
        """The hint picture beside it; None where the set has none."""
        return None

    def mask(self, index: int) -> Picture | None:
        """The mask beside it, white where it counts; None where the set has none."""
        return None


def srgb(picture: Picture, background: tuple[int, int, int] = (255, 255, 255)) -> Pixels:
    """[H,W,3] sRGB in 0..255: profile applied, alpha composed over `background`, 16 bits rounded to 8."""
    if picture.alpha is None and picture.icc is None and picture.pixels.dtype == np.uint8:
        height, width = picture.pixels.shape[:2]
        return np.broadcast_to(picture.pixels, (height, width, 3))  # the usual case: no copy
    rgb = picture.rgb((background[0] / 255, background[1] / 255, background[2] / 255))
    return np.asarray(np.rint(rgb * 255), np.uint8)


def grey(picture: Picture) -> Pixels:
    """[H,W] of 0..255, BT.601 luma of the samples as they are: for masks."""
    rgb = srgb(picture)
    return np.asarray(np.rint(rgb @ np.array([0.299, 0.587, 0.114], np.float32)), np.uint8)


def filled(templates: Sequence[str], fields: Mapping[str, object], title: str) -> tuple[str, ...]:
    """Captions from templates. `{name}` is a field as text, a list joined by commas; nothing else is interpreted."""
    return tuple(" ".join("".join(_parts(template, fields, title)).split()) for template in templates)


def _parts(template: str, fields: Mapping[str, object], title: str) -> Iterable[str]:
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        why = f"{str(error)[:1].lower()}{str(error)[1:]}"
        raise LdmError(Code.USAGE, f"caption {template!r}: not a template", why, "write {name} for a field") from None
    for text, name, form, convert in parts:
        yield text
        if name is None:
            continue
        if form or convert or name not in fields:
            why = f"{title} has {', '.join(map(str, fields)) or 'no fields'}"
            raise LdmError(Code.USAGE, f"caption {template!r}: no field {name!r}", why, "name one of these in braces")
        yield as_text(fields[name])


def as_text(value: object) -> str:
    """A field of a row in words."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(as_text(v) for v in value)
    return decoded(value) if isinstance(value, bytes) else str(value)


def decoded(data: bytes) -> str:
    """UTF-8, with or without its mark; UTF-16 by its mark. What is broken stays visible."""
    wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
    return data.decode("utf-16" if wide else "utf-8-sig", "replace")


def as_captions(value: object) -> tuple[str, ...]:
    """A caption column: text, or a list of equally good texts."""
    found = [as_text(v).strip() for v in (value if isinstance(value, list | tuple) else [value])]
    return tuple(text for text in found if text)


def text_column(wanted: str | None, known: Iterable[str], title: str) -> str | None:
    """The column that holds captions: the one that was asked for, or the first usual one."""
    columns = list(known)
    if wanted is not None and wanted not in columns:
        raise no_column(wanted, columns, title)
    return wanted or next((name for name in TEXT_FIELDS if name in columns), None)


def no_column(wanted: str, columns: Sequence[str], title: str) -> LdmError:
    why = f"its columns are {', '.join(columns) or 'none'}"
    return LdmError(Code.USAGE, f"{title}: no column {wanted!r}", why, "name one of these in data")


def numbered(values: Sequence[object]) -> tuple[list[int], tuple[str, ...]]:
    """Class numbers of a label column, and the names: numbers stay as they are, also written as text (a CSV knows no
    others); words, and numbers that count nothing (years, ids, -1), are counted in sorted order."""
    texts = [as_text(v) for v in values]
    names = sorted_names(texts)
    if names and all(_WHOLE.fullmatch(name) for name in names) and int(names[-1]) < MOST_CLASSES:
        return [int(text) for text in texts], tuple(str(n) for n in range(int(names[-1]) + 1))
    numbers = {name: n for n, name in enumerate(names)}
    return [numbers[text] for text in texts], tuple(names)


def sorted_names(names: Iterable[str]) -> list[str]:
    """Each once; whole numbers first, by size."""
    return sorted(set(names), key=lambda n: (0, int(n), n) if _WHOLE.fullmatch(n) else (1, 0, n))


def listed(names: Sequence[str]) -> str:
    """The first few of many, and how many more."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
