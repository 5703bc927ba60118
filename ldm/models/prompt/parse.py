"""A prompt: its text, its dialect, and what it says at each part of the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeGuard, get_args

from ldm.errors import Code, LdmError
from ldm.models.prompt.clean import check_size, clean
from ldm.models.prompt.schedule import Tree, parse_schedule, switches, text_at
from ldm.models.prompt.weights import GRAMMARS, Dialect, Section

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
        found = sorted(switches(self.tree))
        texts = [self.at(0.0), *(self.at(f) for f in found)]
        return tuple(f for f, was, now in zip(found, texts, texts[1:], strict=False) if was != now)

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
