"""The folder of a training, and what one will cost: a process that looks at the photos and takes a few steps."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from app.server.learning.asking import MODELS, PHOTOS, Training, without_options
from app.server.learning.process import TOLD, Child, Lines
from app.server.learning.running import BROKEN, LOOK
from app.server.uploads import Uploads
from ldm.errors import Code, LdmError
from ldm.images.sniff import sniff

LONGEST = 600.0  # seconds that a plan may take
GOODBYE = 5.0  # seconds in which a plan that nobody waits for clears up
CLASS_PICTURES = "class-pictures"  # of models themselves, that trainings have in common
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "TIFF": ".tif", "GIF": ".gif", "BMP": ".bmp"}


def folder_for(training: Training, home: Path, uploads: Uploads) -> None:
    """The photos as the files that they came as, under plain names; all of it or no folder. Pictures of a model itself
    are the same for all of its trainings, and lie beside."""
    try:
        (home / PHOTOS).mkdir(parents=True)
        for number, photo in enumerate(training.photos, 1):
            source = uploads.folder / photo
            with source.open("rb") as file:
                suffix = SUFFIXES[sniff(file.read(64)) or "PNG"]
            _linked(source, home / PHOTOS / f"{number:04d}{suffix}")
        (home / CLASS_PICTURES).symlink_to(Path("..") / CLASS_PICTURES)
        if training.link is not None:  # by its name, so that nothing says where it lies
            (home / MODELS).mkdir()
            (home / MODELS / training.link.name).symlink_to(training.link.resolve())
    except OSError as error:
        shutil.rmtree(home, ignore_errors=True)
        why, fix = f"The system says: {error.strerror or error}.", "Free some space where the server keeps its files."
        raise LdmError(Code.RESOURCE, "The photos cannot be copied.", why, fix) from error


def _linked(source: Path, goal: Path) -> None:
    """The same file under another name, which takes no room: no upload is ever written to again."""
    try:
        os.link(source, goal)
    except OSError:  # another disk, or one that knows no links
        shutil.copyfile(source, goal)


def plan(
    training: Training, folder: Path, uploads: Uploads, device: str, unwanted: Callable[[], bool]
) -> dict[str, Any]:
    """Steps, findings, notes, prompts and cost; nothing is left behind."""
    home = folder / f".plan-{uuid4().hex}"
    folder_for(training, home, uploads)
    try:
        child = Child([*training.command(device), "--dry-run"], home)
        began = time.monotonic()
        while (status := child.status()) is None:
            if unwanted() or time.monotonic() - began > LONGEST:
                child.end(GOODBYE)
                why = (
                    f"It took more than {LONGEST:g} s."
                    if not unwanted()
                    else "Nobody waits for it, or the server ends."
                )
                raise LdmError(Code.RESOURCE, "The plan was given up.", why, "Ask again, or begin without it.")
            time.sleep(LOOK)
        said = list(Lines(home / TOLD, from_start=True).new())
    finally:
        shutil.rmtree(home, ignore_errors=True)
    error = next((line["error"] for line in said if "error" in line), None)
    if error is not None and error["code"] != "bug":
        raise without_options(LdmError(Code[error["code"].upper()], error["what"], error["why"], error["fix"]))
    made = next((line for line in said if "cost" in line and "steps" in line), None)
    if status != 0 or made is None:
        raise BROKEN
    free = shutil.disk_usage(folder).free
    return with_photos({k: v for k, v in made.items() if k != "out"}, training.photos) | {"room": free}


def with_photos(plan: dict[str, Any], photos: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """The cases of findings also by the uploads that they are about."""
    ids = {f"{number:04d}": photo for number, photo in enumerate(photos, 1)}

    def case(told: dict[str, Any]) -> dict[str, Any]:
        stems = (str(name).rpartition("/")[2].partition(".")[0] for name in told["names"])
        return {**told, "photos": [ids[stem] for stem in stems if stem in ids]}

    findings = [{**found, "cases": list(map(case, found["cases"]))} for found in plan.get("findings", ())]
    return {**plan, "findings": findings}
