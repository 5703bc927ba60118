"""Reads examples into the form that is kept: the picture resized so that it covers its size, 8 bits, and its words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from ldm.data.hints import make_hint
from ldm.data.settings import DataSettings
from ldm.data.source import BESIDE_FIX, About, Pixels, Source, grey, srgb
from ldm.data.transforms import Cut, Size, cover_size, resized, shown
from ldm.errors import Code, LdmError
from ldm.images import Picture

READY = "beside"  # the hint that is not made but lies there
LONGEST = 40  # long side over short side
FEW = 3  # so many pictures are read without threads
UNREADABLE = (Code.FILE, Code.REFUSED)  # such a picture is left out; other errors are the run's


@dataclass(eq=False)
class Loaded:
    """One example. `cover` [H,W,3], `mask` [H,W] and `beside` [H,W,3] have one size; `hints` are made once."""

    about: About
    size: Size  # of the picture as it is
    cover: Pixels | None
    mask: Pixels | None
    beside: Pixels | None
    hints: dict[str, Pixels] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (self.cover, self.mask, self.beside, *self.hints.values()) if a is not None) + 500


class Reader:
    """Examples by number, the kept ones from memory. `sizes[bucket[i]]` is what example i is shown at."""

    def __init__(self, source: Source, settings: DataSettings, words: bool, pixels: bool, limit: float) -> None:
        self.source, self.settings, self.words, self.pixels = source, settings, words, pixels
        self.failed: dict[int, str] = {}
        self._limit, self._used = limit, 0
        self._kept: dict[int, Loaded] = {}
        self._about: dict[int, About] = {}

    def load(self, wanted: Iterable[int], sizes: Sequence[Size], pool: ThreadPoolExecutor | None) -> dict[int, Loaded]:
        """Those that can be read; the others are in `failed`."""
        pairs = dict(zip(wanted, sizes, strict=True))
        found = {index: self._kept[index] for index in pairs if index in self._kept}
        new = [(index, size) for index, size in pairs.items() if index not in found and index not in self.failed]
        if pool is not None and len(new) > FEW:
            loaded = list(pool.map(lambda pair: self._try(*pair), new))
        else:
            loaded = [self._try(*pair) for pair in new]
        for (index, _), one in zip(new, loaded, strict=True):
            if isinstance(one, str):
                self.failed[index] = one
                continue
            found[index] = one
            if self._used + one.nbytes <= self._limit:
                self._kept[index] = one
                self._used += one.nbytes
        return found

    def about(self, index: int) -> About:
        """What is known of an example, or as much of it as is asked for."""
        if not self.words and not self.source.labels:
            return About(self.source.name(index))
        found = self._about.get(index)
        if found is None:
            found = self.source.about(index)
            if self._limit:  # where pictures are kept, their words are too
                self._about[index] = found
        return found

    def hint(self, loaded: Loaded, name: str, cut: Cut, keep: bool) -> Pixels:
        """[h,w,3] the hint of what is shown, not mirrored. Kept where the cut is always the same."""
        if name == READY:
            assert loaded.beside is not None
            return shown(loaded.beside, cut)
        hint = loaded.hints.get(name)
        if hint is None:
            assert loaded.cover is not None
            made = make_hint(name, shown(loaded.cover, cut).astype(np.float32) / np.float32(255))
            hint = np.rint(made * 255).astype(np.uint8)
            if keep and self._used + hint.nbytes <= self._limit:
                loaded.hints[name] = hint
                self._used += hint.nbytes
        return hint

    def _try(self, index: int, size: Size) -> Loaded | str:
        """The example, or why it cannot be had."""
        try:
            return self._read(index, size)
        except LdmError as error:
            if error.code not in UNREADABLE:
                raise
            return f"{self.source.name(index)}: {error.what}: {error.why}"

    def _read(self, index: int, size: Size) -> Loaded:
        about = self.about(index)
        if not self.pixels:
            found = self.source.size(index)
            check_shape(self.source.name(index), found, self.settings.least_side)
            return Loaded(about, found, None, None, None)
        picture = self.source.picture(index)
        check_shape(self.source.name(index), picture.size, self.settings.least_side)
        cover = cover_size(picture.size, size, self.settings.zoom)
        pixels = resized(srgb(picture, self.settings.under), cover)
        mask = self._mask(index, picture, cover) if self.settings.mask != "none" else None
        beside = self._beside(index, cover) if READY in self.settings.hints else None
        return Loaded(about, picture.size, np.ascontiguousarray(pixels), mask, beside)

    def _mask(self, index: int, picture: Picture, cover: Size) -> Pixels:
        """[H,W] white where the picture counts; without a mask all of it does."""
        if self.settings.mask == "beside":
            aside = self.source.mask(index)
            mask = None if aside is None else grey(aside)
        else:
            top = np.iinfo(picture.pixels.dtype).max
            mask = None if picture.alpha is None else np.rint(picture.alpha * (255.0 / top)).astype(np.uint8)
        return np.full(cover[::-1], 255, np.uint8) if mask is None else resized(mask, cover)

    def _beside(self, index: int, cover: Size) -> Pixels:
        hint = self.source.hint(index)
        if hint is None:
            why = "data.hint says beside, and no hint picture belongs to it"
            raise LdmError(Code.FILE, f"{self.source.name(index)} has no hint", why, BESIDE_FIX)
        return np.ascontiguousarray(resized(srgb(hint, (0, 0, 0)), cover))


def check_shape(name: str, size: Size, least: int) -> None:
    """Refuses what would show nothing: resized to cover the training size, 8x30000 would be gigabytes."""
    short, long = sorted(size)
    if short < least:
        why, fix = f"its shorter side is below data.least_side={least}", "remove it, or lower data.least_side"
    elif long > LONGEST * short:
        why = f"it is longer than {LONGEST} to 1, so nearly all of it would be cut off"
        fix = "cut out the part that matters, or remove it"
    else:
        return
    raise LdmError(Code.FILE, f"picture {name!r} is {size[0]}x{size[1]}", why, fix)
