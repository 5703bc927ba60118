"""What an earlier command like this one has left in its folder, and whether this one may go on with it.

Nothing that was trained is ever removed: where a run has begun to learn, another wish is an error that says how to go
on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ldm.errors import Code, LdmError
from ldm.images.save import make_folder
from ldm.store.shards import read_json
from ldm.store.write import remove, staged
from train.checkpoint import candidates
from train.lock import NAME as LOCK
from train.lock import Lock
from train.personal.photos import Photos, digest_of
from train.personal.settings import Wish

WISH, REPORT, PAGE = "personal.json", "report.json", "report.html"
# Of a wish, what may change when a run goes on. The photos' path may too: it is their content that counts.
FREE = frozenset({"device", "precision", "photos", "out"})
# What goes where nothing was learned; the wish last, since it says whose all of it is.
BEGUN = ("photos", "run", "samples", "measures", "base.safetensors", PAGE, WISH)


@dataclass(frozen=True)
class Learned:
    """What is there when all is done."""

    folder: Path
    files: tuple[Path, ...]  # the adapter, as diffusers and as kohya name it; a word
    report: dict[str, Any]


@dataclass(frozen=True)
class Earlier:
    """What this command goes on with: all of it, or photos that were prepared; nothing, where it begins anew."""

    learned: Learned | None = None
    photos: Photos | None = None


def earlier(wish: Wish) -> Earlier:
    """Looks, and changes nothing; an error, if a run of another wish or of other photos has begun to learn there."""
    kept = wish.out / WISH
    if not kept.is_file():
        if wish.out.is_dir() and any(not _ours(path) for path in wish.out.iterdir()):
            what, why = f"{wish.out} is not empty.", "It holds something else, and nothing is overwritten."
            raise LdmError(Code.FILE, what, why, "Choose another --out.")
        return Earlier()
    photos = Photos.read(wish.out / "photos")
    if (other := _other(_read(kept), wish, photos)) is not None:
        if has_learned(wish.out):
            raise other
        return Earlier()
    if not (wish.out / REPORT).is_file():
        return Earlier(None, photos)
    report = read_json(wish.out / REPORT)
    if not isinstance(report.get("files"), list):
        what, why = f"{wish.out / REPORT} is not understood.", "It names no files."
        raise LdmError(Code.FILE, what, why, "Choose another --out; or remove it, and give the same command again.")
    learned = Learned(wish.out, tuple(wish.out / str(name) for name in report["files"]), report)
    gone = [path for path in (*learned.files, wish.out / PAGE) if not path.is_file()]
    if not gone:
        return Earlier(learned, photos)
    sources = (wish.out / "checkpoints" / str(report.get("step")), wish.out / "measures", wish.out / "base.safetensors")
    if lacking := [path for path in sources if not path.exists()]:
        what, why = (
            f"{gone[0]} is not there.",
            f"It was made here before, and {lacking[0]}, of which it is made, is gone.",
        )
        raise LdmError(Code.FILE, what, why, "Put one of them back, or choose another --out to learn anew.")
    return Earlier(None, photos)  # it is made again of what the run has kept


@contextmanager
def held(wish: Wish, before: Earlier) -> Iterator[None]:
    """The folder for this command alone, while it is open. What another wish began there, without learning anything,
    goes: `before` is what was found without the lock, and must still be so."""
    make_folder(wish.out)
    with _locked(wish.out):
        with contextlib.ExitStack() as runs:  # somebody may train there by `ldm train`
            for run in (wish.out / "run").glob("*"):
                if run.is_dir():
                    runs.enter_context(_locked(run))
            if earlier(wish) != before:
                what, why = f"{wish.out} has changed meanwhile.", "Another command began there, or ended."
                raise LdmError(Code.BUSY, what, why, "Give the same command again, or choose another --out.")
            if before.photos is None and not has_learned(wish.out):
                _begin_anew(wish)
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(Lock(folder))
        except LdmError as error:
            raise LdmError(error.code, error.what, error.why, error.fix.replace("run.out", "--out")) from error
        yield


def _begin_anew(wish: Wish) -> None:
    for name in BEGUN:
        remove(wish.out / name)
    with staged(wish.out / WISH) as stage:
        stage.write_text(wish.model_dump_json(indent=2) + "\n", "utf-8")


def has_learned(out: Path) -> bool:
    """Whether any training is kept: a result, a checkpoint to choose from, a state of the trainer to go on from."""
    if (out / REPORT).exists() or any((out / "checkpoints").glob("*")):
        return True
    return any(candidates(run) for run in (out / "run").glob("*"))


def _read(kept: Path) -> Wish:
    try:
        return Wish(**read_json(kept))
    except ValidationError as error:
        what, why = f"{kept} is not understood.", f"{type(error).__name__}."
        raise LdmError(Code.FILE, what, why, "Choose another --out.") from error


def _said(value: object) -> str:
    return "left out" if value is None else str(value)


def _other(before: Wish, wish: Wish, photos: Photos | None) -> LdmError | None:
    """How this wish differs from the one that was begun; None where it does not."""
    apart = [n for n in Wish.model_fields if n not in FREE and getattr(before, n) != getattr(wish, n)]
    if apart:
        what = f"{wish.out} was begun with other options: {', '.join(apart)}."
        told = [f"{n} was {_said(getattr(before, n))}, and is {_said(getattr(wish, n))} now" for n in apart]
        why = "; ".join(told) + "."
        return LdmError(Code.USAGE, what, why, "Give the same options to go on, or another --out.")
    if photos is None or not photos.digest or not wish.photos.exists():  # those that were prepared are enough
        return None
    if digest_of(wish.photos) == photos.digest:
        return None
    return LdmError(
        Code.USAGE,
        f"{wish.out} was begun with other photos than {wish.photos} holds.",
        "Pictures, captions or masks differ from those that were prepared and trained on.",
        "Give another --out for these photos, or those of before to go on.",
    )


def _ours(path: Path) -> bool:
    """What a command that was cut short may leave before its wish is written."""
    return path.name == LOCK or path.name.startswith(f".{WISH}.tmp-")
