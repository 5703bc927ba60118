"""Settings that suit a model, measured by whoever trained it: `sampling.json` beside its weights, and its like.

They stand where a user says nothing; what they were is in the recipe of each picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from ldm.config import Strict
from ldm.errors import Code, LdmError
from ldm.store.shards import read_json

SAMPLING, PROMPTS = "sampling.json", "prompts.json"
Told = TypeVar("Told", bound=Strict)


class Suited(Strict):
    """Any of these may be left out."""

    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    solver: str | None = None
    spacing: str | None = None
    guidance: Annotated[float, Field(ge=0, le=100)] | None = None

    def overlaid(self, *others: Suited) -> Suited:
        """What the others say stands before this."""
        told = self.model_dump(exclude_none=True)
        for other in others:
            told |= other.model_dump(exclude_none=True)
        return Suited(**told)

    def request_fields(self) -> dict[str, Any]:
        """As fields of a request."""
        told: dict[str, Any] = self.model_dump(exclude_none=True)
        if "guidance" in told:
            told["guidance"] = {"scale": told["guidance"]}
        return told


def read_sampling(path: Path) -> Suited:
    """Of a model's folder, or of the folder that an adapter's file lies in."""
    return read_beside((path if path.is_dir() else path.parent) / SAMPLING, Suited)


def read_beside(file: Path, form: type[Told]) -> Told:
    """What a file beside weights says; where there is none, nothing."""
    if not file.is_file():
        return form()
    try:
        return form(**read_json(file, 100_000))
    except (ValidationError, TypeError) as error:
        told = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "it is no table"}
        why = f"{'.'.join(map(str, told['loc']))}: {told['msg']}"[:200]
        fix = f"It may hold {', '.join(form.model_fields)}; mend it, or remove it."
        raise LdmError(Code.FILE, f"{file} is not understood.", why, fix) from error
