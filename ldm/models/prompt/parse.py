"""A prompt: its text, its dialect, and what it says at each part of the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeGuard, get_args

from ldm.errors import Code, LdmError
from ldm.models.prompt.clean import check_size, clean
from ldm.models.prompt.schedule import Tree, parse_schedule, switches, text_at
from ldm.models.prompt.weights import GRAMMARS, Dialect, Section

MAX_SAID = 60_000  # characters of all the texts that a prompt is during a run: each of them is encoded
DIALECTS: tuple[str, ...] = get_args(Dialect)


@dataclass(frozen=True)
class Prompt:
    """Clean text and the dialect it is to be read in. Made by `parse`."""

    text: str
    dialect: Dialect
    tree: Tree = field(repr=False)

    @property
    def switches(self) -> tuple[float, ...]:
        """Sorted fractions of the run, between 0 and 1, at which the text changes."""
        return self._course[0]

    @property
    def said(self) -> int:
        """Characters of all the different texts that hold at some part of the run."""
        return self._course[1]

    @cached_property
    def _course(self) -> tuple[tuple[float, ...], int]:
        found, was = list[float](), self.at(0.0)
        told, said = {was}, len(was)
        for fraction in sorted(switches(self.tree)):
            if (now := self.at(fraction)) != was:
                found.append(fraction)
                said += 0 if now in told else len(now)
                told.add(now)
                was = now
            if said > MAX_SAID:
                raise LdmError(
                    Code.USAGE,
                    "the prompt changes too often for its length",
                    f"its texts at each part of the run have more than {MAX_SAID:,} characters together",
                    "shorten the prompt, or let it change less often",
                )
        return tuple(found), said

    def at(self, fraction: float) -> str:
        """The text, weights still in it, that holds at this fraction of the run."""
        return text_at(self.tree, fraction)

    def sections(self, fraction: float = 0.0) -> tuple[Section, ...]:
        """The weighted pieces that hold at this fraction of the run; each section begins a chunk."""
        return GRAMMARS[self.dialect](self.at(fraction))


def _is_dialect(name: str) -> TypeGuard[Dialect]:
    return name in GRAMMARS


def parse(text: str, dialect: str = "a1111", *, steps: int | None = None) -> Prompt:
    """Clean the text and read its schedule. `steps` of the run: needed for `[a:b:10]` and `[a|b]`, which count them."""
    if not _is_dialect(dialect):
        raise LdmError(
            Code.USAGE,
            f"dialect {dialect!r} is not known",
            "a weight means something else in each dialect",
            f"choose one of {', '.join(DIALECTS)}",
        )
    check_size(text)
    text = clean(text)
    tree: Tree = parse_schedule(text, steps) if dialect == "a1111" else (text,)
    return Prompt(text, dialect, tree)
