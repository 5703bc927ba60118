"""What is worth saying of a data set, one function a matter: what it is, which pictures, and what to do about it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from ldm.data.alike import near_duplicates
from ldm.data.buckets import crop_loss
from ldm.data.captions import TOKENS, leak, parts, repeated
from ldm.data.facts import Facts
from ldm.data.quarantine import LIMIT
from ldm.data.survey import Case, Finding, Seen, Survey, many, percent, short

UNREADABLE = LIMIT  # above this share training stops
# Edges wider than this at the training size look blurred; benchmarks/data_check.py measures it.
EDGE = 1.2
ASPECT = 3.0  # long side over short side; beyond, no bucket fits
LOST = 0.40  # share of a picture that the crop takes away
CLEAR = 0.005  # share of a picture that is transparent


def findings(survey: Survey, more: Sequence[Finding] = ()) -> list[Finding]:
    """Everything worth saying, and `more` that somebody else has found, the worst first."""
    order = {"stop": 0, "warn": 1, "note": 2}
    found = [finding for look in LOOKS for finding in look(survey) if finding.cases]
    return sorted([*more, *found], key=lambda finding: order[finding.level])


def unreadable(survey: Survey) -> Iterator[Finding]:
    bad = [s for s in survey.seen if s.error is not None]
    share = len(bad) / max(1, len(survey.seen))
    cases = tuple(
        Case((s.place,), (s.name,), f"{s.error.why.rstrip('.')}: {s.error.fix}") for s in bad if s.error is not None
    )
    what = f"{many(len(bad), 'picture')} ({percent(share)}): cannot be read"
    rest = "training leaves them out and goes on"
    if share > UNREADABLE:
        rest = f"training stops above {percent(UNREADABLE)}, because then something is wrong with the whole set"
    fix = f"fetch or export them again, or remove them: {rest}"
    yield Finding("unreadable", "stop" if share > UNREADABLE else "warn", what, fix, cases)


def foreign(survey: Survey) -> Iterator[Finding]:
    cases = tuple(Case((), (name,)) for name in survey.foreign)
    what = f"{many(len(cases), 'picture')}: of a kind that is not read, and passed over"
    yield Finding(
        "foreign", "warn", what, "convert them to JPEG or PNG: HEIC, AVIF, RAW and drawings are not read", cases
    )


def duplicates(survey: Survey) -> Iterator[Finding]:
    same: dict[str, list[Seen]] = defaultdict(list)
    for s, f in survey.good:
        same[f.sha256].append(s)
    groups = [group for group in same.values() if len(group) > 1]
    spare = sum(len(group) - 1 for group in groups)
    yield Finding(
        "duplicate",
        "warn",
        f"{many(spare, 'picture')}: the same file as another, byte for byte",
        "keep one of each: a picture that is seen more often is learnt by heart",
        tuple(Case(tuple(s.place for s in g), tuple(s.name for s in g)) for g in groups),
    )
    differ = [g for g in groups if len({s.captions for s in g if s.captions}) > 1]
    yield Finding(
        "two captions",
        "warn",
        f"{many(len(differ), 'picture')}: there several times, with different captions",
        "say which caption is right, or put both into one caption file, a line each",
        tuple(
            Case(
                tuple(s.place for s in g),
                tuple(s.name for s in g),
                " | ".join(dict.fromkeys(short(c) for s in g for c in s.captions)),
            )
            for g in differ
        ),
    )
    one = [(group[0], group[0].facts) for group in same.values()]
    flat = [(s, f) for s, f in one if f is not None and not f.flat]
    near = near_duplicates([f.bits for _, f in flat], [f.thumb for _, f in flat])
    yield Finding(
        "alike",
        "warn",
        f"{many(sum(len(g) - 1 for g in near), 'picture')}: looks the same as another",
        "keep the best of each group, unless they are meant: copies of other size, quality or format teach nothing new",
        tuple(Case(tuple(flat[i][0].place for i in g), tuple(flat[i][0].name for i in g)) for g in near),
    )


def sizes(survey: Survey) -> Iterator[Finding]:
    size = survey.size
    tiny = survey.pick(lambda f: f"{f.width}x{f.height}" if min(f.width, f.height) < size else None)
    yield Finding(
        "tiny",
        "warn",
        f"{many(len(tiny), 'picture')}: smaller than {size} pixels, the size of training",
        f"find larger versions, remove them, or train at a smaller size: enlarged to {size} they teach blur",
        tiny,
    )
    long = survey.pick(lambda f: f"{f.width}x{f.height}, {f.aspect:.1f} to 1" if f.aspect > ASPECT else None)
    yield Finding(
        "aspect",
        "warn",
        f"{many(len(long), 'picture')}: longer than {ASPECT:g} to 1",
        "cut out the part that matters: whatever is trained on is a small part of them",
        long,
    )

    def cut(f: Facts) -> str | None:
        gone = crop_loss((f.width, f.height), survey.frame(f.width, f.height))
        return f"{percent(gone)} of {f.width}x{f.height} is cut off" if gone > LOST else None

    cropped = survey.pick(cut)
    yield Finding(
        "crop",
        "warn",
        f"{many(len(cropped), 'picture')}: more than {percent(LOST)} lost to the crop",
        "turn aspect buckets on, or crop by hand around what matters",
        cropped,
    )


def looks(survey: Survey) -> Iterator[Finding]:
    flat = survey.pick(lambda f: "" if f.flat else None)
    yield Finding(
        "flat",
        "warn",
        f"{many(len(flat), 'picture')}: nothing but one colour",
        "remove them, unless nothing is what they are to teach",
        flat,
    )
    wide = survey.pick(
        lambda f: f"edges {f.edge:.1f} pixels wide" if not math.isnan(f.edge) and f.edge > EDGE else None
    )
    yield Finding(
        "blurry",
        "warn",
        f"{many(len(wide), 'picture')}: blurred, also at {survey.size} pixels",
        "look at them (--sheet FILE), and remove what is out of focus or enlarged",
        wide,
    )


def storage(survey: Survey) -> Iterator[Finding]:
    """What the files hold beside plain sRGB; all of it is converted, so these are notes."""
    for kind, what, fix, told in STORAGE:
        cases = survey.pick(told)
        yield Finding(kind, "note", f"{many(len(cases), 'picture')}: {what}", fix, cases)


def _noted(*marks: str) -> Callable[[Facts], str | None]:
    return lambda f: next((note for note in f.notes if any(mark in note for mark in marks)), None)


def _clear(f: Facts) -> str | None:
    return f"{percent(f.alpha)} transparent" if f.alpha > CLEAR else None


def _grey(f: Facts) -> str | None:
    return "" if f.grey else None


def _mode(f: Facts) -> str | None:
    return "16 bits" if f.deep else _noted("became", "stretched", "with 8 bits")(f)


def _profile(f: Facts) -> str | None:
    return _noted("colour profile")(f) or ("" if f.profile else None)


STORAGE: tuple[tuple[str, str, str, Callable[[Facts], str | None]], ...] = (
    (
        "rotated",
        "stored turned, with a mark that says how to hold them",
        "nothing: they are turned upright here; captions and masks made by programs that ignore the mark may not fit",
        _noted("turned upright"),
    ),
    (
        "transparent",
        "partly transparent",
        "nothing, if they may stand on data.background (white, unless the run file names another colour)",
        _clear,
    ),
    ("grey", "without colour", "caption them so (a black and white photo of ...), or the model learns grey", _grey),
    ("mode", "not stored as 8-bit RGB", "nothing, unless the colours on the sheet look wrong (--sheet FILE)", _mode),
    (
        "profile",
        "in another colour space than sRGB",
        "nothing: a sound profile is applied, a damaged one ignored",
        _profile,
    ),
    (
        "animated",
        "several frames",
        "nothing, if the first frame is the one that is meant",
        _noted("only the first frame"),
    ),
)


def words(survey: Survey) -> Iterator[Finding]:
    kept = [s for s in survey.seen if s.error is None]
    lacking = [s for s in kept if not any(c.strip() for c in s.captions)]
    every = len(lacking) == len(kept)
    yield Finding(
        "no caption",
        "note" if every else "warn",
        "no picture has a caption" if every else f"{many(len(lacking), 'picture')}: no caption, or an empty one",
        "enough for an autoencoder; text needs a .txt file beside each picture"
        if every
        else "write a .txt file beside each; tasks that need words refuse the set, unless data.uncaptioned is empty",
        tuple(Case((s.place,), (s.name,)) for s in lacking),
    )
    told = [(s, c) for s in kept for c in s.captions if c.strip()]
    long = [(s, c, n) for s, c in told if (n := parts(c)) > TOKENS]
    yield Finding(
        "long caption",
        "warn",
        f"{many(len(long), 'caption')}: longer than {TOKENS} tokens",
        "put what matters first: what comes later is cut off, or weighs little",
        tuple(Case((s.place,), (s.name,), f"at least {n} tokens: {short(c)}") for s, c, n in long),
    )
    leaks = [(s, c, what) for s, c in told if (what := leak(c, s.name))]
    yield Finding(
        "leak",
        "warn",
        f"{many(len(leaks), 'caption')}: no description of a picture",
        "write what is to be seen instead: the model learns such words, and tells them",
        tuple(Case((s.place,), (s.name,), f"{what}: {short(c)}") for s, c, what in leaks),
    )
    yield _repeated(told)


def _repeated(told: Sequence[tuple[Seen, str]]) -> Finding:
    """Captions of many pictures, each a case with a few of them."""
    often = repeated((c.strip(), s.facts.sha256 if s.facts else s.name) for s, c in told)
    first: dict[str, list[Seen]] = {text: [] for text, _ in often}
    for s, c in told:
        if c.strip() in first and len(first[c.strip()]) < 2:
            first[c.strip()].append(s)
    return Finding(
        "same caption",
        "note",
        f"{many(len(often), 'caption')}: the same for many different pictures",
        "fine for names of classes; else say what tells the pictures apart, or the words will not",
        tuple(Case(tuple(s.place for s in first[text]), (f"{n} pictures",), short(text)) for text, n in often),
    )


def masks(survey: Survey) -> Iterator[Finding]:
    bad = tuple(Case((s.place,), (s.name,), s.mask) for s in survey.seen if s.mask)
    yield Finding(
        "mask",
        "warn",
        f"{many(len(bad), 'mask')}: of no use",
        "draw the mask again over the picture as it is seen upright, white where it counts",
        bad,
    )
    unused = () if survey.masks else tuple(Case((s.place,), (s.name,)) for s in survey.seen if s.masked)
    yield Finding(
        "unused mask",
        "stop" if survey.refuses_masks else "warn",
        f"{many(len(unused), 'picture')}: a mask lies beside, and is not used",
        "say data.mask: beside in the run file, if the loss is to look at what is white in it",
        unused,
    )


LOOKS: tuple[Callable[[Survey], Iterator[Finding]], ...] = (
    unreadable, foreign, duplicates, looks, sizes, words, masks, storage,
)  # fmt: skip
