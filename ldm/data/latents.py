"""Latents and text states of a data set through a cache: filled before a run, read by key while it trains.

A latent is kept as mean and deviation and drawn anew at each step, so a cache freezes no noise. Which way a picture is
turned is part of its key: both ways are kept, and the loader goes on choosing. A crop that is drawn anew each time has
no key, so it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ldm.data.buckets import frame
from ldm.data.cache import Cache, Row, picture_key, text_key
from ldm.data.encode import Filled, fill
from ldm.data.reader import check_shape
from ldm.data.settings import DataSettings
from ldm.data.source import Source, srgb
from ldm.data.transforms import Cut, centred, resized, shown
from ldm.errors import Code, LdmError

Progress = Callable[[int, int], None]
PICTURES, CAPTIONS = 8, 32  # encoded at once


def ways(settings: DataSettings) -> tuple[bool, ...]:
    """Whether a picture is kept mirrored, for each way in which it is kept."""
    return {0.0: (False,), 1.0: (True,)}.get(settings.flip, (False, True))


@dataclass(eq=False)
class Latents:
    """Rows "mean" and "std" [n,C,h,w] of pictures. `encode` maps [n,3,H,W] in [-1,1] to them; `model` is its
    `fingerprint`, `dtype` what it computes and keeps."""

    cache: Cache
    source: Source
    settings: DataSettings
    encode: Callable[[Tensor], Row]
    model: str
    dtype: torch.dtype = torch.float32
    _keys: dict[tuple[int, bool], str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.settings.crop != "centre":
            raise LdmError(
                Code.USAGE,
                f"data.crop: {self.settings.crop} and cached latents do not go together.",
                "Each showing is another part of the picture, so no latent of it can be kept.",
                "Set data.crop to centre, or train without a cache of latents.",
            )

    def key(self, example: int, flip: bool) -> str:
        """By content, the part that is shown, what lies under it, and the model."""
        known = self._keys.get((example, flip))
        if known is None:
            cut = self._cut(example)
            part = (*cut.numbers, *self.settings.under)
            told = {"size": (cut.size[1], cut.size[0]), "crop": part, "flip": flip}
            content = self.source.content(example)
            known = picture_key(content, **told, model=self.model, dtype=self.dtype)  # type: ignore[arg-type]
            self._keys[example, flip] = known
        return known

    def picture(self, example: int, flip: bool) -> Tensor:
        """[3,H,W] in [-1,1], as `encode` sees it."""
        picture = self.source.picture(example)
        check_shape(self.source.name(example), picture.size, self.settings.least_side)
        cut = centred(picture.size, self._cut(example).size)  # what turns a PNG may stand behind its pixels, unseen
        pixels = resized(srgb(picture, self.settings.under), cut.cover)
        part = np.ascontiguousarray((shown(pixels, cut)[:, ::-1] if flip else shown(pixels, cut)).transpose(2, 0, 1))
        return torch.from_numpy(part).float() / 127.5 - 1

    def extra(self, examples: Sequence[int], flips: Sequence[bool]) -> dict[str, Tensor]:
        """What `Batch.extra` holds for these examples; what the cache lost is encoded again."""
        pairs = list(zip(examples, flips, strict=True))

        def make(places: list[int]) -> Row:
            return self._rows(torch.stack([self.picture(*pairs[place]) for place in places]))

        return self.cache.get_or_make([self.key(*pair) for pair in pairs], make, "latents")

    def fill(
        self,
        batch: int = PICTURES,
        on_progress: Progress = lambda done, total: None,
        stop: Callable[[], bool] = lambda: False,
        part: tuple[int, int] = (0, 1),
    ) -> Filled:
        """Encodes what is missing; `part` = (rank, world) is the share of this process. Unreadable pictures are listed
        by their number in the set, and left to the loader's quarantine."""
        flips = ways(self.settings)
        pairs: list[tuple[int, bool]] = []
        keys: list[str] = []
        failed: list[tuple[int, str]] = []
        for example in range(part[0], len(self.source), part[1]):
            if stop():
                return Filled(0, 0, tuple(failed), stopped=True)
            try:
                keys += [self.key(example, flip) for flip in flips]
                pairs += [(example, flip) for flip in flips]
            except LdmError as error:
                failed.append((example, self._named(example, f"{error.what.rstrip('.')}: {error.why}")))
        done = fill(
            self.cache,
            keys,
            lambda place: self._unchanged(*pairs[place]),
            lambda images: self._rows(torch.stack(images)),
            batch=batch,
            about="latents",
            on_progress=on_progress,
            stop=stop,
        )
        bad = dict(failed) | {pairs[place][0]: self._named(pairs[place][0], why) for place, why in done.failed}
        return Filled(done.made, done.found, tuple(sorted(bad.items())), done.stopped)

    def _named(self, example: int, why: str) -> str:
        """A reason, with the name: pictures in tables and shards are bytes that know of none."""
        return f"{self.source.name(example)}: {why}"

    def _unchanged(self, example: int, flip: bool) -> Tensor:
        """The picture, if it is still the one that its key was made of: hours may lie between."""
        key, image = self.key(example, flip), self.picture(example, flip)
        del self._keys[example, flip]
        if self.key(example, flip) != key:
            what = f"picture {self.source.name(example)!r} changed while the cache was filled"
            raise LdmError(Code.FILE, what, "what was read is not what was looked at", "start again when it is done")
        return image

    def _rows(self, images: Tensor) -> Row:
        with torch.no_grad():
            return {name: tensor.to(self.dtype) for name, tensor in self.encode(images).items()}

    def _cut(self, example: int) -> Cut:
        size = self.source.size(example)
        return centred(size, frame(self.settings, *size))


@dataclass(eq=False)
class Texts:
    """Rows of text states: `encode` maps a list of texts to named tensors [n,...], "text_states" [n,L,D] among them."""

    cache: Cache
    encode: Callable[[list[str]], Row]
    model: str
    dtype: torch.dtype = torch.float32

    def key(self, text: str) -> str:
        return text_key(text, model=self.model, dtype=self.dtype)

    def extra(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What `Batch.extra` holds for these texts; one that was never seen is encoded and kept."""
        return self.cache.get_or_make(
            [self.key(text) for text in texts], lambda places: self._rows([texts[place] for place in places]), "texts"
        )

    def fill(
        self,
        texts: Sequence[str],
        batch: int = CAPTIONS,
        on_progress: Progress = lambda done, total: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Filled:
        keys = [self.key(text) for text in texts]
        return fill(
            self.cache,
            keys,
            texts.__getitem__,
            self._rows,
            batch=batch,
            shape=lambda text: None,
            about="texts",
            on_progress=on_progress,
            stop=stop,
        )

    def _rows(self, texts: list[str]) -> Row:
        with torch.no_grad():
            return {name: tensor.to(self.dtype) for name, tensor in self.encode(texts).items()}
