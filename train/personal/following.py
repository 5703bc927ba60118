"""Whether pictures follow their prompts: beside what the model before made of the same words, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ldm.metrics.interval import Estimate, around, jackknife


def told_apart(pictures: Tensor, prompts: Tensor) -> Tensor:
    """[s,p]: how much more picture (s, p) is like its prompt than the pictures of other prompts from the same noise are
    like that prompt: 0 where every prompt gets the same picture. Pictures [s p,d] and prompts [p,d] are a CLIP's
    features, prompt after prompt for one seed, then for the next."""
    count = len(prompts)
    like = pictures.double().view(-1, count, prompts.shape[1]) @ prompts.double().T  # [s, made for, read as]
    own = like.diagonal(dim1=1, dim2=2)
    return own - (like.sum(1) - own) / (count - 1)


def followed(ours: Tensor, before: Tensor, prompts: Tensor, there: Sequence[bool]) -> Estimate | None:
    """Of pictures, now and by the model before, sum(told apart now) / sum(told apart before), with its interval. Only
    of prompts in which the subject is there, and among those: without it, well drawn words are no merit. None where
    too few prompts are left, or it is not sure that the model before told them apart at all.

    One ratio of sums, no mean of ratios: a prompt that the model before can hardly follow has hardly a say. The
    interval is the jackknife's over all pictures, so it holds for other prompts of the same sort as well.
    """
    left = [place for place, yes in enumerate(there) if yes]
    if len(left) < 2:
        return None
    o, b = (told_apart(_of(left, pictures, len(prompts)), prompts[left]).flatten() for pictures in (ours, before))
    n = len(b)
    if around(float(b.mean()), float(b.std()) / n**0.5).low <= 0:
        return None
    return jackknife(float(o.sum() / b.sum()), (o.sum() - o) / (b.sum() - b))


def _of(places: Sequence[int], pictures: Tensor, count: int) -> Tensor:
    """Of pictures of `count` prompts those of a few of them."""
    return pictures.view(-1, count, pictures.shape[1])[:, list(places)].flatten(0, 1)
