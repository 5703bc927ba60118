"""Batches of a data set for one process of a run: what stands at a place, how it is cut, turned and worded.

All of it is a function of (seed, place), where a place is step * total + row of the whole batch. So a run may begin at
any step, and 1, 2 or 4 processes make the same batches, each its own rows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from ldm.data.batch import Batch
from ldm.data.buckets import bucket_sizes
from ldm.data.draws import Draws
from ldm.data.examples import check_captions
from ldm.data.feeding import Feed, feed
from ldm.data.order import Drawn, Stream
from ldm.data.planning import Plan, plan
from ldm.data.quarantine import Quarantine, Warn, warn_once
from ldm.data.reader import UNREADABLE, Loaded, Reader
from ldm.data.settings import DataSettings
from ldm.data.source import Pixels, Source
from ldm.data.transforms import Cut, Size, centred, chosen, shown
from ldm.data.wording import plain, worded
from ldm.errors import Code, LdmError

MANY_WORKERS = 16


# From examples, and which of them are mirrored, to rows of `Batch.extra` in place of the pictures: see latents.py.
Latents = Callable[[Sequence[int], Sequence[bool]], Mapping[str, Tensor]]


class Loader:
    """`total` examples a step over all processes, of which this one (`rank` of `world`) makes its rows.

    `words`: True where the task needs captions (it is an error if there are none), False where it takes none. With
    `latents` no picture is decoded: batches hold what it gives for them. `warn` hears which pictures are left out.
    """

    def __init__(
        self,
        source: Source,
        settings: DataSettings,
        total: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        *,
        words: bool | None = None,
        latents: Latents | None = None,
        warn: Warn = warn_once,
    ) -> None:
        self.source, self.settings, self.total, self.seed = source, settings, total, seed
        self.first, self.end = rank * total // world, (rank + 1) * total // world
        self.latents, self._world = latents, world
        self.sizes = bucket_sizes(settings)
        self.quarantine = Quarantine(len(source), source.title, warn)
        self._try_template()
        if words:
            check_captions(source, settings)
        self.plan: Plan = plan(source, settings, self.sizes, total, seed, self.quarantine)
        self.fits = self._estimate() <= settings.memory * 1e9
        pixels = latents is None or bool(settings.hints) or settings.mask != "none"
        self._reader = Reader(source, settings, words is not False, pixels, settings.memory * 1e9 if self.fits else 0)
        self._words = words is not False
        self._leave_out(self.quarantine.failed)

    def batches(self, first_step: int = 0) -> Iterator[Batch]:
        """This process's rows of the batches of steps first_step, first_step + 1, ... without end."""
        for made in feed(self, first_step, self.workers):
            self.quarantine.take(made.batch.examples.tolist(), made.failed)
            yield made.batch

    @property
    def workers(self) -> int:
        """Processes that decode: none where everything stays in memory, since each would hold all of it."""
        if self.fits or self.latents is not None:
            return 0
        cores = max(1, (os.cpu_count() or 1) // min(self._world, 8))
        return min(MANY_WORKERS, cores) if self.settings.workers is None else self.settings.workers

    def make(self, step: int, pool: ThreadPoolExecutor | None = None) -> Feed:
        """The rows of one step, and which pictures could not be read on the way."""
        places = torch.arange(step * self.total + self.first, step * self.total + self.end)
        drawn, examples, loaded = self._drawn(step, pool)
        draws = Draws(self.seed, places, self.total, "data")
        cuts = self._cuts([one.size for one in loaded], self.sizes[drawn.bucket], draws)
        text: tuple[str, ...] = ()
        if self._words:
            text = tuple(worded([one.about.captions for one in loaded], drawn.epochs, self.settings, draws))
        return Feed(self._batch(places, examples, loaded, cuts, text, draws), dict(self._reader.failed))

    def look(self, count: int) -> Iterator[Batch]:
        """Batches of at most `count` training examples in all, each once: centre crops, no flips, plain captions."""
        stream = Stream(self.plan.training, self.seed, "look", self.settings.shuffle)
        yield from self._still(stream.at(0, np.arange(min(count, len(stream)))))

    def validation(self, count: int | None = None) -> list[Batch]:
        """Examples that training never sees, at most so many; the same for every process."""
        return list(self._still(self.plan.validation[:count]))

    def captions(self) -> Iterator[str]:
        """Every caption of the training examples once, for vocabularies."""
        for index in self.plan.training:
            try:
                about = self._reader.about(int(index)) if self._words else self.source.about(int(index))
            except LdmError as error:
                if error.code not in UNREADABLE:
                    raise
                continue  # such an example is left out when its turn comes
            for text in about.captions:
                yield plain(text, self.settings)

    def leave_out(self, tried: Iterable[int], failed: Mapping[int, str]) -> None:
        """Examples found unreadable elsewhere (while a cache was filled), with the reason, among all that were `tried`
        there: few bad ones of many are no cause to stop."""
        self.quarantine.take(tried, failed)
        self._leave_out(failed)

    def facts(self) -> dict[str, object]:
        """What a dry run tells of the data."""
        shapes = {f"{w}x{h}": count for (w, h), count in zip(self.sizes, self.plan.counts, strict=True) if count}
        return {
            "set": self.source.title,
            "training": len(self.plan.training),
            "validation": len(self.plan.validation),
            "steps_an_epoch": round(self.plan.order.steps(), 2),
            "sizes": shapes,
            "megabytes": round(self._estimate() / 1e6, 1),
            "in_memory": self.fits,
            "workers": self.workers,
        }

    def _try_template(self) -> None:
        """A template with a misspelt field is told now; a text that cannot be read, when its turn comes."""
        try:
            self.source.about(0)
        except LdmError as error:
            if error.code not in UNREADABLE:
                raise

    def _leave_out(self, failed: Mapping[int, str]) -> None:
        self._reader.failed |= failed

    def _estimate(self) -> float:
        """Bytes of all examples as they are kept; wide pictures are cut at the sides, so a third is added."""
        area = self.settings.size**2 * self.settings.zoom**2
        planes = 3 * (4 / 3) * (self.latents is None) + (self.settings.mask != "none") + 3 * len(self.settings.hints)
        return len(self.source) * (area * planes + 500)

    def _drawn(self, step: int, pool: ThreadPoolExecutor | None) -> tuple[Drawn, list[int], list[Loaded]]:
        """The examples of a step. A bucket of which nothing can be read gives way to the batch that comes next; every
        process finds that out alike, since each has to try all of the bucket."""
        for skip in range(math.ceil(self.plan.order.steps())):
            drawn = self.plan.order.rows(step, self.first, self.end, skip)
            if found := self._readable(drawn, pool):
                return drawn, *found
            if self.settings.buckets is None:
                break
        raise self._nothing_left(drawn)

    def _readable(self, drawn: Drawn, pool: ThreadPoolExecutor | None) -> tuple[list[int], list[Loaded]] | None:
        """The examples drawn; in place of one that cannot be read, the next of its stream that can. None: none can."""
        size = self.sizes[drawn.bucket]
        examples = drawn.examples.tolist()
        found = self._reader.load(examples, [size] * len(examples), pool)
        for row, place in enumerate(drawn.places):
            skip = 0
            while (index := examples[row]) not in found:
                skip += 1
                if skip > len(place.stream):
                    return None
                examples[row] = place.example(skip)
                found |= self._reader.load([examples[row]], [size], None) if index != examples[row] else {}
        return examples, [found[index] for index in examples]

    def _nothing_left(self, drawn: Drawn) -> LdmError:
        tried = dict.fromkeys(index for place in drawn.places for index in place.stream.entries.tolist())
        failed = [self._reader.failed[index] for index in tried if index in self._reader.failed]
        first = "".join(failed[:1]) + (f" And {len(failed) - 1} more." if len(failed) > 1 else "")
        return LdmError(Code.FILE, f"{self.source.title}: no picture can be read", first, "run `ldm data check`")

    def _cuts(self, pictures: Sequence[Size], size: Size, draws: Draws) -> list[Cut]:
        settings = self.settings
        flips = (draws.uniform("flip") < settings.flip).tolist() if settings.flip else [False] * len(pictures)
        if settings.crop == "centre":
            still = {picture: centred(picture, size) for picture in set(pictures)}
            turned = {p: Cut(c.cover, c.left, c.top, c.width, c.height, c.size, True) for p, c in still.items()}
            return [turned[picture] if flip else still[picture] for picture, flip in zip(pictures, flips, strict=True)]
        where = draws.uniform("crop", (3,)).tolist()
        pairs = zip(pictures, where, flips, strict=True)
        return [chosen(picture, size, settings.zoom, (x, y, z), flip) for picture, (x, y, z), flip in pairs]

    def _still(self, examples: np.ndarray) -> Iterator[Batch]:
        """Batches of these examples, one size each, with nothing left to chance; the unreadable ones are skipped."""
        place = 0
        for bucket in np.unique(self.plan.buckets[examples]).tolist():
            rest = iter(examples[self.plan.buckets[examples] == bucket].tolist())
            while wanted := list(islice(rest, self.total)):
                found = self._reader.load(wanted, [self.sizes[bucket]] * len(wanted), None)
                self.quarantine.take(found, dict(self._reader.failed))
                kept = [index for index in wanted if index in found]
                if not kept:
                    continue
                loaded = [found[index] for index in kept]
                cuts = [centred(one.size, self.sizes[bucket], self.settings.zoom) for one in loaded]
                text = tuple(
                    plain(one.about.captions[0] if one.about.captions else "", self.settings) for one in loaded
                )
                places = torch.arange(place, place + len(kept))
                place += len(kept)
                draws = Draws(self.seed, places, self.total, "still")
                yield self._batch(places, kept, loaded, cuts, text if self._words else (), draws)

    def _batch(
        self,
        places: Tensor,
        examples: Sequence[int],
        loaded: Sequence[Loaded],
        cuts: Sequence[Cut],
        text: tuple[str, ...],
        draws: Draws,
    ) -> Batch:
        extra: dict[str, Tensor] = {}
        pairs = list(zip(loaded, cuts, strict=True))
        if self.latents is not None:
            extra |= self.latents(examples, [cut.flip for cut in cuts])
        if names := self.settings.hints:
            which = draws.below("hint", len(names)).tolist()
            keep = self.settings.crop == "centre"
            hints = [self._reader.hint(one, names[k], cut, keep) for (one, cut), k in zip(pairs, which, strict=True)]
            extra["hint"] = _stacked(hints, cuts).div_(255)
        if self.settings.mask != "none":
            masks = [shown(one.mask, cut)[..., None] for one, cut in pairs if one.mask is not None]
            extra["mask"] = _stacked(masks, cuts).div_(255)
        labels = [one.about.label for one in loaded]
        label = torch.tensor([-1 if n is None else n for n in labels]) if self.source.labels else None
        image = None
        if self.latents is None:
            covers = [shown(one.cover, cut) for one, cut in pairs if one.cover is not None]
            image = _stacked(covers, cuts).div_(127.5).sub_(1)
        return Batch(places, torch.tensor(examples), image, text, label, extra)


def _stacked(rows: Sequence[Pixels], cuts: Sequence[Cut]) -> Tensor:
    """[n,C,H,W] fp32 in 0..255 from arrays [H,W,C], mirrored where the cut says so."""
    x = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()
    if any(cut.flip for cut in cuts):
        flip = torch.tensor([cut.flip for cut in cuts])
        x[flip] = x[flip].flip(3)
    return x.float()
