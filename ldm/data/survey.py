"""What a look at a data set is made of: examples as they were seen, findings in words, and buckets."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ldm.data.buckets import crop_loss
from ldm.data.facts import Facts
from ldm.errors import LdmError

Level = Literal["stop", "warn", "note"]
Frame = Callable[[int, int], tuple[int, int]]  # (width, height) upright -> (width, height) that is trained


@dataclass(frozen=True)
class Seen:
    """One example of the data set: what was found in its picture, or why it has none."""

    place: int
    name: str
    captions: tuple[str, ...]
    facts: Facts | None
    error: LdmError | None = None
    masked: bool = False  # a mask lies beside it
    mask: str = ""  # what is wrong with that mask


@dataclass(frozen=True)
class Case:
    """One picture, or a group that belongs together, and what is the matter with it."""

    places: tuple[int, ...]
    names: tuple[str, ...]
    detail: str = ""

    def __str__(self) -> str:
        return " = ".join(self.names) + (f": {self.detail}" if self.detail else "")


@dataclass(frozen=True)
class Finding:
    """`level`: stop (training would stop), warn (the result gets worse), note (dealt with; good to know)."""

    kind: str
    level: Level
    what: str
    fix: str
    cases: tuple[Case, ...]

    def as_dict(self) -> dict[str, Any]:
        cases = [{"names": case.names, "detail": case.detail} for case in self.cases]
        return {"kind": self.kind, "level": self.level, "what": self.what, "fix": self.fix, "cases": cases}


@dataclass(frozen=True)
class Survey:
    """Everything that was looked at. `frame` says which size a picture is trained at."""

    seen: Sequence[Seen]
    size: int
    frame: Frame
    masks: bool = False  # whether the run uses masks that lie beside the pictures
    refuses_masks: bool = False  # whether it stops at masks that it would not use
    foreign: Sequence[str] = ()  # files of pictures that are not read
    good: list[tuple[Seen, Facts]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "good", [(s, s.facts) for s in self.seen if s.facts is not None])

    def pick(self, told: Callable[[Facts], str | None]) -> tuple[Case, ...]:
        """A case for each picture of which `told` says something."""
        return tuple(Case((s.place,), (s.name,), text) for s, f in self.good if (text := told(f)) is not None)


@dataclass(frozen=True)
class Bucket:
    """Pictures that are trained at one size, and the share of them that the crop takes away."""

    width: int
    height: int
    pictures: int
    mean_lost: float
    most_lost: float

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "mean_lost": round(self.mean_lost, 4), "most_lost": round(self.most_lost, 4)}


def buckets(survey: Survey) -> list[Bucket]:
    """Every size that is trained at, the fullest first."""
    shares: dict[tuple[int, int], list[float]] = defaultdict(list)
    for (width, height), count in Counter((f.width, f.height) for _, f in survey.good).items():
        frame = survey.frame(width, height)
        shares[frame] += [crop_loss((width, height), frame)] * count
    rows = [Bucket(*frame, len(found), sum(found) / len(found), max(found)) for frame, found in shares.items()]
    return sorted(rows, key=lambda row: (-row.pictures, row.width, row.height))


def many(number: int, thing: str) -> str:
    plural = f"{thing[:-1]}ies" if thing.endswith("y") else f"{thing}s"
    return f"{number:,} {thing if number == 1 else plural}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0 < share < 0.095 else f"{100 * share:.0f} %"


def short(text: str, most: int = 60) -> str:
    """The beginning of a text, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."
