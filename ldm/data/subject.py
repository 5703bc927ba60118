"""What is worth saying of a few pictures of one subject, besides what is worth saying of any set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ldm.data.survey import Case, Finding, Seen, Survey, many, percent, short
from ldm.models.prompt import says

FEWEST, MOST = 4, 50  # pictures of one subject that are enough, and that are more than help
SMALL = 0.12  # share of a picture that its subject fills
# Mean silhouette of two groups that are two subjects. As the CLIP that ships sees 5 to 16 drawings of a creature, at
# most 3 of 100 such sets reach it, and 6 of 10 sets of two creatures (0.3 would be a third to half, and 9 of 10).
APART = 0.58
UNLIKE = 2.5  # times the usual distance from the others
COMMON = 0.8  # share of captions that say the same word
LACKING = (
    "write it where the subject is to be seen: nothing is learned of it there, and with task.preserve the picture is "
    "even kept as the model has it; ldm personalize puts it in front by itself"
)
# Of what `ldm personalize` makes of photos: captions are written there, and these are the remedies, by kind of finding.
QUIET = frozenset({"no caption", "same caption"})
FIXES = {
    "unreadable": "mend or remove them: they are left out here",
    "duplicate": "nothing for ldm personalize, which learns from one of each",
    "crop": "crop by hand around what matters",
    "blurry": "look at them, and remove what is out of focus or enlarged",
    "transparent": "nothing: what is transparent does not count",
    "mode": "nothing, unless the colours look wrong in the folder photos of the result",
}
_WORD = re.compile(r"[^\W\d_][\w'-]*")
_LINKS = frozenset({"a", "an", "the", "of", "in", "on", "at", "with", "and", "or", "to", "by", "for", "from", "is",
                    "are", "its", "his", "her", "my", "your", "photo", "picture", "image", "drawing", "photograph",
                    "close", "up", "closeup", "shot", "portrait", "style"})  # fmt: skip
Floats = npt.NDArray[np.float32]


def subject_findings(
    survey: Survey, token: str = "", features: Floats | None = None, lacking: str = LACKING
) -> list[Finding]:
    """`features` [n,d], rows of length 1, of the readable pictures in their order: what a CLIP sees in them. `lacking`:
    what is to be done about captions without the token."""
    found = [*_count(survey), *_masks(survey), *_small(survey), *_captions(survey, token, lacking)]
    if features is not None:
        found += _mixed(survey, features)
    return [finding for finding in found if finding.cases or finding.kind == "count"]


def for_photos(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """What is to be said where photos are given, and no run file. Of a few photos one that is broken is a large share;
    it is left out all the same, and nothing stops."""
    kept = (finding for finding in findings if finding.kind not in QUIET)
    told = (replace(finding, fix=FIXES.get(finding.kind, finding.fix)) for finding in kept)
    return tuple(replace(finding, level="warn") if finding.kind == "unreadable" else finding for finding in told)


def _count(survey: Survey) -> Iterator[Finding]:
    number = len({facts.sha256 for _, facts in survey.good})  # the same file again is no other picture
    if number == 0:
        yield Finding("count", "stop", "no picture can be read", "give a folder with pictures of the subject", ())
    elif number == 1:
        what = "one picture: what is the subject and what is the picture cannot be told apart"
        fix = "add a few more, from other sides and before other backgrounds; else expect copies of this one"
        yield Finding("count", "warn", what, fix, ())
    elif number < FEWEST:
        what = f"{number} pictures: enough to learn from, too few to judge by"
        yield Finding(
            "count", "note", what, f"add some, if there are more: from {FEWEST} on one is kept to judge by", ()
        )
    elif number > MOST:
        what = f"{number:,} pictures: more than one subject needs"
        fix = f"choose the {FEWEST * 2} to {MOST // 2} best; a large set or a style is better trained by a run file"
        yield Finding("count", "warn", what, fix, ())


def _masks(survey: Survey) -> Iterator[Finding]:
    """A mask that is found is used, and what a picture without one should count for is not known."""
    good = [seen for seen, _ in survey.good]
    lacking = tuple(Case((s.place,), (s.name,)) for s in good if not s.masked)
    cases = lacking if len(lacking) < len(good) else ()
    what = f"{len(good) - len(lacking)} of {many(len(good), 'photo')} have a mask beside them"
    fix = "draw the masks that these lack, or move the folder masks away"
    yield Finding("some masks", "stop", what, fix, cases)


def _small(survey: Survey) -> Iterator[Finding]:
    cases = survey.pick(lambda f: f"it fills {percent(f.extent)}" if f.extent < SMALL and not f.flat else None)
    fix = "cut closer around the subject: at the size of training little of it is left"
    yield Finding("small subject", "warn", f"{many(len(cases), 'picture')}: the subject looks small", fix, cases)


def _captions(survey: Survey, token: str, lacking: str) -> Iterator[Finding]:
    told = [(s, c) for s, _ in survey.good for c in s.captions if c.strip()]
    if token:
        cases = tuple(Case((s.place,), (s.name,), short(c)) for s, c in told if not says(c, token))
        what = f"{many(len(cases), 'caption')}: the token {token!r} is not in it"
        yield Finding("token", "note", what, lacking, cases)
    yield _said_of_all(told, token)


def _said_of_all(told: Sequence[tuple[Seen, str]], token: str) -> Finding:
    """Words that nearly every caption says describe the subject: what is said in words is not learned by the token."""
    own = {word.casefold() for word in _WORD.findall(token)}
    pictures = {s.place for s, _ in told}
    said = Counter(
        word
        for place in pictures
        for word in {w.casefold() for s, c in told if s.place == place for w in _WORD.findall(c)}
    )
    words = [w for w, n in said.most_common() if n >= max(3, COMMON * len(pictures)) and w not in own | _LINKS]
    cases = tuple(Case((), (word,), f"in {said[word]} of {len(pictures)} captions") for word in words[:8])
    return Finding(
        "leaking words",
        "warn",
        f"{many(len(words), 'word')} said of nearly every picture",
        "leave out what always belongs to the subject, and say what changes: the token learns what no word tells",
        cases,
    )


def _mixed(survey: Survey, features: Floats) -> Iterator[Finding]:
    good = [s for s, _ in survey.good]
    odd = unlike(features)
    cases = tuple(Case((good[i].place,), (good[i].name,)) for i in odd)
    what = f"{many(len(cases), 'picture')}: unlike the others"
    yield Finding("unlike", "warn", what, "look whether the subject is on it, and is what matters there", cases)
    kept = [i for i in range(len(good)) if i not in odd]
    groups = two_groups(features[kept]) if len(kept) >= 4 else None
    cases = ()
    if groups is not None:
        cases = tuple(Case(tuple(good[kept[i]].place for i in g), tuple(good[kept[i]].name for i in g)) for g in groups)
    fix = "train each subject by itself, with a token of its own; or say in the captions what tells them apart"
    yield Finding("mixed subjects", "warn", "the pictures fall into two groups that look like two subjects", fix, cases)


def unlike(features: Floats) -> list[int]:
    """Pictures whose nearest other one is much farther than is usual here."""
    if len(features) < 4:
        return []
    away = 1 - features @ features.T
    np.fill_diagonal(away, np.inf)
    nearest = away.min(1)
    usual = float(np.median(nearest))
    return [i for i, distance in enumerate(nearest) if distance > UNLIKE * max(usual, 1e-3) and distance > 0.1]


def two_groups(features: Floats) -> tuple[list[int], list[int]] | None:
    """Two groups by 2-means from the farthest pair, if they are far apart for how wide they are (mean silhouette)."""
    away = 1 - features @ features.T
    centres = features[list(np.unravel_index(int(away.argmax()), away.shape))]
    group = np.zeros(len(features), np.int64)
    for _ in range(20):
        group = (features @ centres.T).argmax(1)
        if min(np.bincount(group, minlength=2)) < 2:
            return None
        centres = np.stack([features[group == k].mean(0) for k in (0, 1)])
        centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    own = np.stack([(away * (group == k)).sum(1) / np.maximum(1, (group == k).sum() - (group == k)) for k in (0, 1)])
    inside, outside = own[group, np.arange(len(group))], own[1 - group, np.arange(len(group))]
    silhouette = float(((outside - inside) / np.maximum(np.maximum(inside, outside), 1e-6)).mean())
    if silhouette < APART:
        return None
    first, second = (np.flatnonzero(group == k).tolist() for k in (0, 1))
    return (first, second) if first[0] < second[0] else (second, first)
