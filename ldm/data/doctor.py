"""Looks at every picture of a data set before a run does, and says what is worth mending: `ldm data check`."""

from __future__ import annotations

import contextlib
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ldm.data.facts import facts
from ldm.data.findings import findings
from ldm.data.reader import check_shape
from ldm.data.source import Source
from ldm.data.survey import Bucket, Finding, Frame, Seen, Survey, buckets, many
from ldm.errors import LdmError
from ldm.images import Picture

WORKERS = 2  # threads: decoders work outside Python's lock
USUAL, SAMPLE = (32, 64, 128, 256, 512, 768, 1024), 200
AHEAD = 16  # pictures that are looked at before their turn: memory holds no more


@dataclass(frozen=True)
class Report:
    """All that was found. `ready`: a run would not stop; it may still be worth mending what is told."""

    pictures: int
    readable: int
    size: int
    typical: tuple[int, int] | None  # median width and height
    findings: tuple[Finding, ...]
    buckets: tuple[Bucket, ...]
    stopped: bool = False  # somebody asked to stop before the end

    @property
    def ready(self) -> bool:
        return self.readable > 0 and not any(finding.level == "stop" for finding in self.findings)

    @property
    def verdict(self) -> str:
        """One sentence for whoever reads no further."""
        warnings = sum(finding.level == "warn" for finding in self.findings)
        if not self.ready:
            return "Not ready: training would stop."
        if warnings:
            return f"Ready to train; {many(warnings, 'thing')} below would make the result worse."
        return "Ready to train: nothing needs mending."

    def as_dict(self) -> dict[str, Any]:
        return {
            "ready": self.ready,
            "verdict": self.verdict,
            "pictures": self.pictures,
            "readable": self.readable,
            "size": self.size,
            "typical": self.typical,
            "stopped": self.stopped,
            "findings": [finding.as_dict() for finding in self.findings],
            "buckets": [bucket.as_dict() for bucket in self.buckets],
        }


def square(size: int) -> Frame:
    """Every picture is cropped to a square."""
    return lambda width, height: (size, size)


def likely_size(source: Source) -> int:
    """The largest usual training size that nine in ten pictures reach, by the headers of some of them."""
    sides = []
    for place in range(0, len(source), max(1, len(source) // SAMPLE)):
        with contextlib.suppress(LdmError):
            sides.append(min(source.size(place)))
    reached = sorted(sides)[len(sides) // 10] if sides else 0
    return max((size for size in USUAL if size <= reached), default=USUAL[0])


def check(
    source: Source,
    size: int,
    frame: Frame | None = None,
    *,
    masks: bool = False,
    refuses_masks: bool = False,
    least: int = 1,
    more: Callable[[Survey], Sequence[Finding]] = lambda survey: (),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Decodes every picture of `source` for training at `size` pixels. `frame` tells the size that each is trained at
    (None: all squares), `masks` whether masks that lie beside are used, `refuses_masks` whether training stops at those
    that are not, `least` the shortest side that is kept, `more` what else is worth saying of such a set."""
    seen: list[Seen] = []
    stopped = False
    for one in survey(source, size, least):
        seen.append(one)
        on_progress(len(seen), len(source))
        if stopped := stop():
            break
    found = Survey(seen, size, frame or square(size), masks, refuses_masks, source.foreign)
    widths, heights = ([getattr(f, side) for _, f in found.good] for side in ("width", "height"))
    typical = (round(statistics.median(widths)), round(statistics.median(heights))) if found.good else None
    told = tuple(findings(found, more(found)))
    return Report(len(seen), len(found.good), size, typical, told, tuple(buckets(found)), stopped)


def survey(source: Source, size: int, least: int = 1) -> Iterator[Seen]:
    """Every example in order, pictures decoded by threads a little ahead."""
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="ldm-check")
    waiting: deque[Future[Seen]] = deque()
    try:
        for place in range(len(source)):
            waiting.append(pool.submit(look, source, place, size, least))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def look(source: Source, place: int, size: int, least: int = 1) -> Seen:
    """One example; what training cannot read, or leaves out by its shape, is told with the reason."""
    name = source.name(place)
    captions: tuple[str, ...] = ()
    try:
        captions = source.about(place).captions
        picture = source.picture(place)
        check_shape(name, picture.size, least)
        found = facts(picture, size)
    except LdmError as error:
        return Seen(place, name, captions, None, error)
    try:
        mask = source.mask(place)
        wrong = "" if mask is None else mask_fault(mask, picture)
    except LdmError as error:
        return Seen(place, name, captions, found, masked=True, mask=f"{error.what} {error.why}")
    return Seen(place, name, captions, found, masked=mask is not None, mask=wrong)


def mask_fault(mask: Picture, picture: Picture) -> str:
    """What is wrong with a mask, in words; empty where nothing is."""
    if mask.size != picture.size:
        return f"it has {mask.width}x{mask.height} pixels, the picture {picture.width}x{picture.height}"
    return "" if mask.pixels.any() else "it is black everywhere, so nothing of the picture counts"
