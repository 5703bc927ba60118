"""Whether pictures follow their prompts: beside what the model before made of the same words, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ldm.metrics.interval import Estimate, left_out_variance, student

FEWEST = 4  # prompts that an interval is made of


def told_apart(pictures: Tensor, prompts: Tensor) -> Tensor:
    """[s,p]: how much more picture (s, p) is like its prompt than pictures of the other prompts are like that prompt:
    0 on average where every prompt gets the same pictures. Pictures [s p,d] and prompts [p,d] are a CLIP's features,
    prompt after prompt, s times."""
    count = len(prompts)
    like = pictures.double().view(-1, count, prompts.shape[1]) @ prompts.double().T  # [s, made for, read as]
    own = like.diagonal(dim1=1, dim2=2)
    return own - (like.sum(1) - own) / (count - 1)


def followed(ours: Tensor, before: Tensor, prompts: Tensor, there: Sequence[bool]) -> Estimate | None:
    """Of pictures, now and by the model before, sum(told apart now) / sum(told apart before), with its interval. Only
    of prompts in which the subject is there, and among those: without it, well drawn words are no merit. None where
    fewer than `FEWEST` are left, or it is not sure that the model before told them apart at all.

    One ratio of sums, no mean of ratios: a prompt that the model before can hardly follow has hardly a say. Both
    intervals are Student's over prompts (of the ratio by the jackknife, which leaves out one prompt at a time): what
    is asked is how other prompts would be followed, and samples of one prompt have its ease in common.
    """
    left = [place for place, yes in enumerate(there) if yes]
    n = len(left)
    if n < FEWEST:
        return None
    o, b = (told_apart(_of(left, pictures, len(prompts)), prompts[left]).mean(0) for pictures in (ours, before))
    t = student(n - 1)
    if float(b.mean()) <= t * float(b.std()) / math.sqrt(n):
        return None
    value, without = float(o.sum() / b.sum()), (o.sum() - o) / (b.sum() - b)
    reach = t * math.sqrt(left_out_variance(without))
    return Estimate(value, value - reach, value + reach)


def _of(places: Sequence[int], pictures: Tensor, count: int) -> Tensor:
    """Of pictures of `count` prompts those of a few of them."""
    return pictures.view(-1, count, pictures.shape[1])[:, list(places)].flatten(0, 1)
