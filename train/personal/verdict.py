"""Which checkpoint is the best, when to stop, and what to say of it in plain words. The rules are in the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ldm.data.subject import FEWEST
from ldm.metrics.interval import LEVEL, exact_share
from train.personal.following import FEWEST as FEWEST_PROMPTS
from train.personal.measure import THERE, Measures

COPIES, DRIFT, PROMPT, LEAK = 0.05, 0.25, 0.7, 0.5  # most near copies, most drift, least of the prompt, most leak
LEARNED, PARTLY = 0.6, THERE  # of the way from the base to the ceiling
# Above the ceiling it is copying, with a margin of a tenth: the ceiling is the mean of few pairs and scatters itself,
# and a picture without the accidents of any one photo is a little more like each of them than they are like each other.
COPYING = 1.1
PATIENCE, GAIN = 3, 0.03  # checkpoints without so much more of the subject, after which it stops
LOSS = 0.01  # share of the loss on a photo kept aside that is a gain
RULE = (
    f"the checkpoint most like the subject among those that learned it ({LEARNED:.0%}) and keep the bounds: near "
    f"copies {COPIES:.0%} (or as many as new photos would be), drift {DRIFT:.0%} and leak {LEAK:.0%} at most, prompts "
    f"{PROMPT:.0%} at least (unless none has that); of those within {GAIN:.0%} of it the one with the least loss on "
    "the photo that was kept aside, or the least drift where none was; where none keeps the bounds, the one that "
    "misses them by least; where likeness cannot be told, that loss alone decides, or the earliest is taken"
)


@dataclass(frozen=True)
class Checkpoint:
    """One that was measured."""

    step: int
    measures: Measures
    validation: float | None = None  # loss at fixed noise
    unseen: bool = True  # whether that is of a photo that was kept aside; on photos it has learned it only falls


def most_copies(m: Measures) -> float:
    """A share of near copies that is no copying: of few photos new ones come as near, too."""
    return max(COPIES, m.chance)


def excess(m: Measures, deaf: bool = False) -> float:
    """By how much the bounds are missed, all together; 0: kept. What was seen counts here, be it sure or not: of two
    checkpoints the one with fewer copies is the better guess. `deaf`: how prompts are followed does not count."""
    copied = max(m.copies - most_copies(m), m.close / max(1, len(m.nearest)) - COPIES)
    missed = max(0.0, copied) / COPIES * 0.25 + max(0.0, m.drift - DRIFT) / DRIFT
    missed += max(0.0, (m.leak or 0.0) - LEAK) / LEAK
    if m.prompt is not None and not deaf:
        missed += max(0.0, PROMPT - m.prompt) / PROMPT
    return missed + max(0.0, (m.subject or 0.0) - COPYING)


def best(checkpoints: Sequence[Checkpoint]) -> Checkpoint:
    """By the rule; of equals the earlier. Few samples tell likeness to a few percent, and it does not see details:
    among such, the loss decides."""
    learned = [c for c in checkpoints if _lacking(c.measures) == 0]
    deaf = are_deaf(checkpoints)
    kept = [c for c in learned if excess(c.measures, deaf) == 0]
    if kept and all(c.measures.subject is None for c in kept):  # then the loss must say it, where it can
        return min(kept, key=lambda c: (c.validation if c.unseen and c.validation is not None else 0.0, c.step))
    if kept:
        most = max(map(_reached, kept))
        alike = [c for c in kept if _reached(c) >= most - GAIN]
        told = all(c.unseen and c.validation is not None for c in alike)
        return min(alike, key=lambda c: ((c.validation or 0.0) if told else c.measures.drift, c.step))
    return min(checkpoints, key=lambda c: (excess(c.measures, deaf) + _lacking(c.measures), c.step))


def are_deaf(checkpoints: Sequence[Checkpoint]) -> bool:
    """Whether none that learned the subject is known to follow prompts: then prompts choose nothing."""
    learned = (c.measures for c in checkpoints if _lacking(c.measures) == 0)
    return all(m.prompt is None or m.prompt < PROMPT for m in learned)


def _reached(checkpoint: Checkpoint) -> float:
    return min(checkpoint.measures.subject or 0.0, 1.0)


def _lacking(m: Measures) -> float:
    """What is not learned counts twice: an adapter is made to learn."""
    return 0.0 if m.subject is None else 2 * max(0.0, LEARNED - m.subject) / LEARNED


def is_done(checkpoints: Sequence[Checkpoint]) -> bool:
    """Whether more training has stopped paying: learned, and nothing gained for some time, neither likeness nor loss on
    the photo that was kept aside; or far beyond the bounds."""
    if len(checkpoints) <= PATIENCE:
        return False
    before, last = checkpoints[:-PATIENCE], checkpoints[-PATIENCE:]
    reached = max(c.measures.subject or 0.0 for c in before)
    stale = all((c.measures.subject or 0.0) < reached + GAIN for c in last) and reached >= LEARNED
    stale = stale and not _falls([c.validation for c in before if c.unseen], [c.validation for c in last if c.unseen])
    deaf = are_deaf(checkpoints)
    return stale or all(excess(c.measures, deaf) > 1 for c in last)


def _falls(before: Sequence[float | None], last: Sequence[float | None]) -> bool:
    """Whether a loss has become lower by more than chance."""
    was, now = ([loss for loss in losses if loss is not None] for losses in (before, last))
    return bool(was and now) and min(now) < (1 - LOSS) * min(was)


def percent(share: float | None) -> str:
    """A share in words; a dash where it could not be told."""
    return "–" if share is None else f"{round(100 * share)} %"  # of an integer no -0


def flags(m: Measures) -> set[str]:
    """What is wrong, in names that programs read."""
    found = set()
    if m.subject is None or m.alone:
        found.add("unknown")
    elif m.subject < PARTLY:
        found.add("not learned")
    if _copies_for_sure(m) or (m.subject or 0.0) > COPYING:
        found.add("copies")
    elif m.copies > most_copies(m):
        found.add("perhaps copies")
    if "not learned" not in found:  # then the token is a strange word, whatever that does
        found |= {"ignores prompts"} if _ignores_for_sure(m) else set() if _follows_for_sure(m) else {"prompts unknown"}
    if m.drift > DRIFT:
        found.add("drift")
    if m.leak is not None and m.leak > LEAK:
        found.add("leak")
    return found


def _ignores_for_sure(m: Measures) -> bool:
    """Whether prompts are followed less than they should be, whatever the chance of so few samples."""
    return m.prompt is not None and m.prompt_range[1] < PROMPT


def _follows_for_sure(m: Measures) -> bool:
    return m.prompt is not None and m.prompt_range[0] >= PROMPT


def _copies_for_sure(m: Measures) -> bool:
    """Whether more samples are near copies than new photos would be, or closer than those come, whatever the chance of
    so few samples."""
    if not m.nearest:
        return m.copies > most_copies(m)
    near, close = (exact_share(count, len(m.nearest)).low for count in (len(m.copied), m.close))
    return near > most_copies(m) or close > COPIES


def in_words(m: Measures, photos: Sequence[str], samples: int, prompts: Sequence[str] = ()) -> Iterator[str]:
    """The verdict, the most important first; each a half-sentence. `prompts` are those of the samples."""
    found = flags(m)
    if "copies" in found:  # however like the subject: a copy is no success
        yield f"copies the photos: {' and '.join(_copies(m, photos, samples))}"
    if m.alone:
        yield "whether it learned the subject cannot be told from one photo"
    elif m.subject is None:
        yield (
            "whether it learned the subject cannot be told: the photos are no more like each other than the model's "
            "pictures are like them"
        )
    elif m.subject >= PARTLY and "copies" not in found:
        yield (
            "learned the subject" if m.subject >= LEARNED else "took on a part of the subject, often its colours first"
        )
    elif m.subject < PARTLY:
        yield "did not learn the subject: its pictures are hardly more like the photos than before"
    if "not learned" not in found:  # what a strange word does to prompts says nothing of the adapter
        yield _follows(m)
    if m.subject is not None and m.subject >= PARTLY and not m.alone and (without := _without(m, prompts)):
        yield f"the subject is not to be seen in {' and '.join(map(repr, without))}"
    if "copies" not in found:
        yield from _copies(m, photos, samples)
    if "perhaps copies" in found:
        yield f"more than the {percent(most_copies(m))} of new photos that would be, in too few samples to be sure"
    if m.drift > DRIFT:
        yield f"unrelated prompts changed by {percent(m.drift)} of the distance between two seeds"
    if m.leak is not None and m.leak > LEAK:
        yield "the subject comes without its token, too"


def _follows(m: Measures) -> str:
    if m.prompt is None:
        return "whether it follows prompts is not known: the samples show it"
    if m.prompt >= PROMPT:
        return f"{'' if _follows_for_sure(m) else 'as it seems, '}keeps following prompts"
    return f"{'' if _ignores_for_sure(m) else 'perhaps '}follows prompts less than the model did"


def _without(m: Measures, prompts: Sequence[str]) -> list[str]:
    """Prompts in which the subject is missing, though others have it."""
    return [text for text, (reached, *_) in zip(prompts, m.each, strict=False) if (reached or 0.0) < THERE]


def _copies(m: Measures, photos: Sequence[str], samples: int) -> Iterator[str]:
    if m.copied:
        nearest = [photo for _, photo in m.copied]
        most = max(sorted(set(nearest)), key=nearest.count)
        yield f"{len(m.copied)} of {samples} samples are near copies of photos, most of {photos[most]}"
    if (m.subject or 0.0) > COPYING:
        yield "its pictures are more like the photos than these are like each other: that is copying, not success"


def unknowable(
    photos: int, samples: int, m: Measures, seen: bool, masked: bool = False, deaf: bool = False
) -> Iterator[str]:
    """What so few pictures do not tell; `seen`: whether a CLIP has looked, `masked`: whether parts did not count,
    `deaf`: whether prompts had no say in the choice."""
    if photos < 2:
        yield "with one photo there is no telling the subject from its picture, nor a copy from a likeness"
    elif photos < 8:
        yield f"the ceiling comes from {photos * (photos - 1) // 2} pairs of photos: it is rough"
    told = exact_share(len(m.copied), samples)
    yield (
        f"near copies: {len(m.copied)} of {samples} samples mean a share between {percent(told.low)} and "
        f"{percent(told.high)} of all that it would draw (Clopper and Pearson, {LEVEL:.0%})"
    )
    if m.nearest and exact_share(samples, samples).low <= most_copies(m):
        yield f"were all {samples} samples near copies, so few would not prove it: only closer ones count as copying"
    if m.chance > COPIES:
        yield (
            f"of new photos {percent(m.chance)} would count as near copies (the closest pair of {photos + 1} holds the "
            f"new one with a chance of 2 in {photos + 1}): only a share that is surely above that is called copying, "
            "or one of samples at half that distance"
        )
    if not seen:
        yield "without a CLIP, likeness means colours and edges, not what is seen; --clip names one"
    elif m.prompt is None:
        yield (
            f"whether prompts are followed is open: that takes {FEWEST_PROMPTS} prompts in which the subject is to be "
            "seen, and which the model before surely told apart"
        )
    elif not _ignores_for_sure(m) and not _follows_for_sure(m):
        low, high = m.prompt_range
        yield (
            f"{percent(m.prompt)} of what the model understood of prompts was seen, and so few prompts that differ so "
            f"much leave anything from {percent(low)} to {percent(high)} possible"
        )
    if masked:
        yield "samples are held against whole photos, what the masks hide among it, though nothing of that was learned"
    if m.subject is None:
        chooser = "the validation loss has chosen the" if photos >= FEWEST else "the rule took the earliest"
        which = "checkpoint within the bounds"
        if excess(m, deaf) > 0:
            chooser, which = "no checkpoint keeps the bounds, and the rule took the one", "that misses them by least"
        yield f"these features do not tell the subject from its kind: {chooser} {which}"
