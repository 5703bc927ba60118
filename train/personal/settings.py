"""What is asked of `ldm personalize`: one record, kept beside the result, so that the same command goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from ldm.config import Strict

Method = Literal["lora", "inversion", "pivotal"]
MOST_SEEDS = 2**62  # pictures count up from it, and their seeds end at 2^63


class Wish(Strict):
    """All that has a default may be left out; None is chosen by what is there (`train/personal/plan.py`)."""

    photos: Path
    token: Annotated[str, Field(min_length=1, max_length=100)]  # "sks dog": what calls the subject, its kind last
    model: str
    kind: str | None = None  # of the subject: "dog"; None: the token's last word, where it has several
    method: Method = "lora"
    steps: int | None = Field(None, gt=0)
    rank: int = Field(16, gt=0, le=1024)
    rate: float | None = Field(None, gt=0, le=1)  # of learning
    size: int | None = Field(None, ge=8)
    batch: int | None = Field(None, gt=0)
    prior: int | None = Field(None, ge=0)  # pictures of the model itself that keep it what it is
    prompts: tuple[str, ...] = ()  # to look at, with {} where the token goes
    unrelated: tuple[str, ...] = ()  # without the subject
    clip: str | None = None  # whose features judge; None: the one that belongs to the model, if there is one
    checkpoints: int = Field(6, gt=0, le=50)
    flip: bool = True  # photos are also shown left to right; not for writing, or what has a side
    seed: int = Field(0, ge=0, lt=MOST_SEEDS)
    device: str | None = None
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    licence: str = ""
    out: Path

    @field_validator("prior")
    @classmethod
    def _of_use(cls, prior: int | None, others: ValidationInfo) -> int | None:
        """A word changes nothing that is said without it: such pictures would only take a third of each batch."""
        if prior and others.data.get("method") == "inversion":
            raise ValueError("pictures of the model itself teach a new word nothing: leave it out with inversion")
        return prior

    @property
    def called(self) -> str:
        """The kind of thing that the subject is; empty where nobody says."""
        words = self.token.split()
        return self.kind if self.kind is not None else words[-1] if len(words) > 1 else ""

    @property
    def name(self) -> str:
        """Of the files."""
        kept = "".join(c if c.isalnum() else "-" for c in self.token.casefold())
        return "-".join(part for part in kept.split("-") if part) or "subject"
