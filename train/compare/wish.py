"""What a comparison is to be: data, families, budget, seeds. Light: nothing heavy is imported here."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from ldm.config import Strict

Positive = Annotated[int, Field(gt=0)]
_BUDGET = re.compile(r"(?P<count>\d+(?:\.\d*)?(?:e\d+)?)\s*-?\s*(?P<unit>[a-z]+)")
_SECONDS = {"s": 1.0, "sec": 1.0, "second": 1.0, "m": 60.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hour": 3600.0}
_COUNTS: dict[str, Literal["steps", "images"]] = {"step": "steps", "image": "images"}
MOST = 1e12  # of any unit


class Budget(Strict):
    """What each cell may spend on training: seconds by the clock, steps, or pictures."""

    kind: Literal["seconds", "steps", "images"]
    count: float

    @property
    def option(self) -> str:
        """As it is given."""
        return f"{self.count:.10g}s" if self.kind == "seconds" else f"{self.count:.0f}-{self.kind}"

    def __str__(self) -> str:
        if self.kind == "seconds":
            return f"{self.count / 60:g} minutes" if self.count >= 60 else f"{self.count:g} seconds"
        return f"{self.count:,.0f} {self.kind}"


def budget(text: str) -> Budget:
    """10min, 90s, 2000-steps, 1e6-images."""
    found = _BUDGET.fullmatch(text.strip().lower())
    unit = "" if found is None else found["unit"] if found["unit"] in _SECONDS else found["unit"].removesuffix("s")
    count = 0.0 if found is None else float(found["count"])
    if not 0 < count < MOST or unit not in _SECONDS.keys() | _COUNTS.keys():
        raise ValueError(f"{text!r} is no budget: write 90s, 10min, 2h, 2000-steps or 1e6-images")
    if unit in _SECONDS:
        return Budget(kind="seconds", count=count * _SECONDS[unit])
    return Budget(kind=_COUNTS[unit], count=count)


class Yardsticks(Strict):
    """What is measured against, and who looks: fixed for everything in one folder."""

    data: dict[str, Any]  # the data section of a run file, without size and validation
    out: Path
    size: Annotated[int, Field(ge=8, le=256)] = 32
    held_out: Annotated[int, Field(ge=100)] = 1000  # pictures that nothing is trained on
    reference: Annotated[int, Field(ge=100)] = 10_000  # training pictures that samples are measured against, at most
    classifier_steps: Annotated[int, Field(ge=0)] = 1500  # of the lab's own classifier; 0: raw pixels are the features
    clip: str | None = None  # a CLIP whose features take the place of the classifier's
    inception: Path | None = None  # a file of Inception's weights, whose features do

    @field_validator("size")
    @classmethod
    def _halves(cls, value: int) -> int:
        if value & (value - 1):
            below = 1 << (value.bit_length() - 1)
            raise ValueError(f"{value} cannot be halved down to 4, as most families do; use {below} or {2 * below}")
        return value

    @property
    def section(self) -> dict[str, Any]:
        """The data section of a run file."""
        return {**self.data, "size": self.size, "validation": float(self.held_out)}


class Wish(Yardsticks):
    """Fixed when a comparison begins, but for families and seeds, to which may be added."""

    families: tuple[str, ...]  # names of configs/family, or paths of run files
    budget: Budget
    seeds: Positive = 3
    samples: Annotated[int, Field(ge=100)] = 2000
    cap: Positive = 300  # seconds that a cell may spend on drawing

    @property
    def command(self) -> str:
        """What makes a comparison like this one, somewhere else."""
        words = ["ldm", "compare", str(self.data["path"]), "--families", ",".join(self.families)]
        plain = {name: field.default for name, field in type(self).model_fields.items()}
        for key in ("budget", "seeds", "size", "samples", "cap", "held_out", "clip", "inception", "classifier_steps"):
            value = getattr(self, key)
            if key in ("budget", "seeds") or value != plain[key]:
                words += [f"--{key.replace('_', '-')}", value.option if key == "budget" else str(value)]
        words += [f"data.{key}={json.dumps(value)}" for key, value in self.data.items() if key != "path"]
        return shlex.join(words)

    @field_validator("budget", mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        return budget(value) if isinstance(value, str) else value

    @field_validator("families")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len({Path(name).stem for name in value}) < len(value):
            raise ValueError("name at least one family, and each of them once")
        return value
