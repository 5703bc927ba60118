"""The pictures of a server: one PNG for each, with its recipe inside, named after its job and its place there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.server.store import Job, Made
from ldm.errors import Code, LdmError
from ldm.images import save_image
from ldm.images.save import new_file
from pipelines.recipe import Recipe, chunks, read_recipe

if TYPE_CHECKING:
    from pipelines.steps import Result


class Gallery:
    """A file appears whole; one that a server left without telling of it is found again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, job: str, place: int, result: Result) -> Made:
        """Writes a picture; a partial one has another name than the finished one."""
        recipe, picture = result.recipe, result.picture
        path = self._place(job, place, recipe.partial)
        if not path.exists():  # else its server ended before it could tell of it, and it is the same picture
            save_image(picture, path, text=chunks(recipe, False, picture.text))
        return Made(place, path.name, told_of(recipe, picture.size), recipe.partial)

    def keep_file(self, job: str, made: Made, data: bytes) -> Made:
        """The same of a file that was made elsewhere."""
        path = self._place(job, made.place, made.partial)
        if not path.exists():
            with new_file(path) as file:
                file.write(data)
        return replace(made, file=path.name)

    def left(self, job: Job) -> list[Made]:
        """Finished pictures of a job that nobody told the store of."""
        found = []
        for place in job.missing:
            path = self.folder / _name(job.id, place, False)
            if path.is_file():
                recipe = read_recipe(path)
                found.append(Made(place, path.name, told_of(recipe, (recipe.width, recipe.height)), False))
        return found

    def _place(self, job: str, place: int, partial: bool) -> Path:
        """Where a picture is to lie; a partial one makes room for the finished one."""
        if not partial:
            (self.folder / _name(job, place, True)).unlink(missing_ok=True)
        return self.folder / _name(job, place, partial)

    def path(self, job: Job, place: int) -> Path:
        """The file of a picture of a job."""
        for made in (*job.pictures, *job.away):
            if made.place == place:
                if made.trash == 2:
                    raise removed(job, place)
                if (path := self.folder / made.file).is_file():
                    return path
                raise gone(job, place)
        raise never_made(job, place)


def gone(job: Job, place: int) -> LdmError:
    why = "Somebody removed its file."
    return LdmError(Code.FILE, f"Picture {place} of job {job.id} is gone.", why, "Ask for it again.")


def removed(job: Job, place: int) -> LdmError:
    why = "It was in the trash when that was emptied."
    return LdmError(Code.FILE, f"Picture {place} of job {job.id} was removed.", why, "Ask for it again.")


def never_made(job: Job, place: int) -> LdmError:
    what = f"Job {job.id} has no picture {place}."
    why = f"It has {len(job.pictures) + len(job.away)} of {job.count} so far."
    return LdmError(Code.FILE, what, why, "Wait for it, or ask for another.")


def _name(job: str, place: int, partial: bool) -> str:
    return f"{job}-{place:04d}{'-partial' if partial else ''}.png"


def told_of(recipe: Recipe, size: tuple[int, int]) -> Mapping[str, Any]:
    """What is told of a picture beside its address."""
    return {
        "seed": recipe.seed, "width": size[0], "height": size[1], "steps": recipe.steps,
        "pixels": recipe.pixels, "notes": list(recipe.notes),
    }  # fmt: skip
