"""Emoji of several design teams as one table: which picture is which thing in which style, and what it may be called.

A row is a picture. Names repeat over styles and, with skin tones, within one: `base` is the name without tones. Some
(base, style) pairs are kept from training, so that "this thing in that style" can be asked of a model that saw the
thing and the style, and never both together.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

LICENCES = {"noto": "Apache-2.0", "blob": "Apache-2.0", "twemoji": "CC-BY-4.0"}
TONE = re.compile(r"(?:medium-light|medium-dark|light|medium|dark) skin tone")
UNSEEN = 12  # one base name in so many lacks one of its styles
FLAG = "flag: "
TRAIN, KEPT = "train", "unseen"


@dataclass(frozen=True)
class Emoji:
    """One picture. `image` are the bytes of a file; `names` has several where designers drew two names alike."""

    image: bytes
    name: str
    style: str
    tags: tuple[str, ...] = ()
    group: int | None = None
    subgroup: int | None = None
    codepoints: str = ""
    license: str = ""
    names: tuple[str, ...] = ()
    split: str = TRAIN
    captions: tuple[str, ...] = field(default=(), repr=False)

    @property
    def bases(self) -> tuple[str, ...]:
        """The names without skin tones, each once."""
        return tuple(dict.fromkeys(base(name) for name in self.names or (self.name,)))

    @property
    def toned(self) -> bool:
        return bool(TONE.search(self.name))


def base(name: str) -> str:
    """A name without its skin tones: "woman: dark skin tone, red hair" is "woman: red hair"."""
    thing, colon, rest = name.partition(": ")
    kept = [part for part in rest.split(", ") if part and not TONE.fullmatch(part)]
    return f"{thing}: {', '.join(kept)}" if colon and kept else thing if thing and not TONE.fullmatch(thing) else name


def prepared(rows: Iterable[Emoji]) -> list[Emoji]:
    """Equal pictures merged, pairs kept from training marked, and captions written; in the order of the rows."""
    merged = _merged(rows)
    kept = _kept(merged)
    marked = [replace(row, split=KEPT if any((b, row.style) in kept for b in row.bases) else TRAIN) for row in merged]
    return [replace(row, captions=wordings(row)) for row in marked]


def _merged(rows: Iterable[Emoji]) -> list[Emoji]:
    """One row for each picture of a style, with all its names and tags."""
    same: dict[tuple[str, bytes], list[Emoji]] = defaultdict(list)
    for row in rows:
        same[row.style, hashlib.sha256(row.image).digest()].append(row)
    return [
        replace(
            alike[0],
            names=tuple(dict.fromkeys(name for row in alike for name in row.names or (row.name,))),
            tags=tuple(dict.fromkeys(tag for row in alike for tag in row.tags)),
        )
        for alike in same.values()
    ]


def _kept(rows: Sequence[Emoji]) -> set[tuple[str, str]]:
    """Pairs that training must not see: one style of one base name in `UNSEEN`, chosen by a hash of the name, where at
    least two other styles have that name too, and none of them the same picture: training would see that one."""
    styles: dict[str, set[str]] = defaultdict(set)
    drawn_by: dict[bytes, set[str]] = defaultdict(set)
    pictures: dict[tuple[str, str], set[bytes]] = defaultdict(set)
    for row in rows:
        drawn_by[row.image].add(row.style)
        for name in row.bases:
            styles[name].add(row.style)
            pictures[name, row.style].add(row.image)
    kept = set()
    for name, known in styles.items():
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
        pair = name, sorted(known)[number // UNSEEN % len(known)]
        shared = any(len(drawn_by[picture]) > 1 for picture in pictures[pair])
        if len(known) >= 3 and number % UNSEEN == 0 and not shared:
            kept.add(pair)
    return kept


def wordings(row: Emoji) -> tuple[str, ...]:
    """What a user may type for a picture; half of them its name and style in so many words. One is shown at a time."""
    draw = random.Random(f"{row.codepoints or row.name} {row.style}")
    return tuple(text for name in row.names or (row.name,) for text in _worded(name, row, draw))


def _worded(name: str, row: Emoji, draw: random.Random) -> Iterable[str]:
    style, said = row.style, name
    if name.startswith(FLAG) and draw.random() < 0.5:
        said = f"{name.removeprefix(FLAG)} flag"
    yield from [f"{name}, {style} style"] * 5
    yield f"{style} style {said}"
    yield f"{said} in {style} style"
    yield f"{style} {said}"
    yield f"{said} emoji"
    yield said
    tags = [tag for tag in row.tags if tag not in name]
    draw.shuffle(tags)
    yield f"{name}, {', '.join(tags[:2])}, {style} style" if tags else f"{said}, {style} style emoji"
    if len(tags) > 1:  # one word alone ("face") says too little
        yield f"{', '.join(tags[:3])}, {style} style"
