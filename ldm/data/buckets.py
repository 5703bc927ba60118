"""Aspect buckets: a few sizes of about equal area, and which of them wastes least of a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ldm.data.settings import Buckets, DataSettings
from ldm.errors import Code, LdmError

Size = tuple[int, int]  # (width, height)


def bucket_sizes(settings: DataSettings) -> tuple[Size, ...]:
    """All sizes that a batch may have, the square first: one without `buckets`."""
    size, rule = settings.size, settings.buckets
    if rule is None:
        return ((size, size),)
    if rule.sizes is not None:
        if not rule.sizes:
            why = "a picture would belong nowhere"
            raise LdmError(Code.USAGE, "data.buckets.sizes: is empty", why, "list sizes, or leave the key out")
        return tuple(dict.fromkeys((int(w), int(h)) for w, h in rule.sizes))
    return _grid(size, rule)


def _grid(size: int, rule: Buckets) -> tuple[Size, ...]:
    """For each width the greatest height whose area is no more than size x size; sides are multiples of the step."""
    step = rule.step
    least, most = rule.least or size // 2, rule.most or 2 * size
    low, high = max(step, math.ceil(least / step) * step), most // step * step
    square = size // step * step
    found: list[Size] = [(square, square)] if low <= square <= high else []
    for side in range(low, high + 1, step):
        other = min(size * size // side // step * step, high)
        if other >= low:
            found += [(side, other), (other, side)]
    if not found:
        why = f"no multiple of {step} lies between {least} and {most} with an area of {size}x{size}"
        raise LdmError(Code.USAGE, "data.buckets: no size is possible", why, "lower step or least, or raise most")
    return tuple(dict.fromkeys(found))


def nearest_bucket(sizes: Sequence[Size], pictures: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For pictures [N,2] (width, height) the number [N] of the size whose aspect is nearest, by the ratio of ratios."""
    wanted = np.log(np.array([w / h for w, h in sizes]))
    few, which = np.unique(pictures, axis=0, return_inverse=True)  # a million pictures have some thousand sizes
    found = np.log(few[:, 0] / few[:, 1])
    return np.asarray(np.abs(found[:, None] - wanted[None]).argmin(1)[which.reshape(-1)], np.int64)


def crop_loss(picture: Size, bucket: Size) -> float:
    """The share of a picture that is cropped away in a bucket: 1 - min(r, 1/r), r the ratio of their aspects."""
    ratio = (picture[0] * bucket[1]) / (picture[1] * bucket[0])
    return 1 - min(ratio, 1 / ratio)


def frame(settings: DataSettings, width: int, height: int) -> Size:
    """The size in which a picture of this size is shown."""
    sizes = bucket_sizes(settings)
    return sizes[int(nearest_bucket(sizes, np.array([[width, height]], np.int64))[0])]


def check_filled(sizes: Sequence[Size], counts: Sequence[int]) -> None:
    """Sizes that somebody listed are meant: one in which no picture falls is a mistake in the list or in the data."""
    empty = [f"{w}x{h}" for (w, h), count in zip(sizes, counts, strict=True) if not count]
    if empty:
        what = f"data.buckets.sizes: no picture falls into {', '.join(empty)}"
        why = "each picture goes to the size of the nearest aspect"
        raise LdmError(Code.USAGE, what, why, f"remove {empty[0]} from the list, or add pictures of its shape")
