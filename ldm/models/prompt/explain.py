"""`--explain-prompt`: the tokens, chunks and weights of a prompt, and what was dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ldm.models.prompt.chunks import MAX_CHUNKS, Chunk, lay_out
from ldm.models.prompt.parse import Prompt, parse
from ldm.models.prompt.weights import MAX_WEIGHT
from ldm.models.tokenizer import Vocabulary

_COLUMN = 24  # of the text of a token; longer ones are cut


@dataclass(frozen=True)
class Explanation:
    """What the text encoder is told at one moment of the run. `str()` of it is a table."""

    prompt: Prompt
    fraction: float
    chunks: tuple[Chunk, ...]
    room: int  # tokens of text in one chunk
    dropped: tuple[str, ...]  # words beyond the last chunk
    unknown: tuple[str, ...]  # parts for which the vocabulary has no token
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"prompt   {_shown(self.prompt.at(self.fraction), 200)}", f"dialect  {self.prompt.dialect}"]
        for number, chunk in enumerate(self.chunks, 1):
            lines.append(f"chunk {number} of {len(self.chunks)}: {len(chunk)} of {self.room} tokens")
            for place, token in enumerate(chunk, 1):
                text = _shown(token.text if token.name is None else f"{token.name}[{token.row}]", _COLUMN)
                number_or_kind = "learned" if token.name is not None else str(token.id)
                lines.append(f"  {place:>3}  {text:<{_COLUMN + 2}}  {number_or_kind:>7}  {token.weight:>7.3f}")
        lines.append(f"dropped  {_shown(' '.join(self.dropped), 200) if self.dropped else 'nothing'}")
        if self.unknown:
            lines.append(f"unknown  {' '.join(_shown(u, _COLUMN) for u in self.unknown)}")
        return "\n".join([*lines, *(f"note     {note}" for note in self.notes)])


def explain(
    prompt: str | Prompt,
    vocabulary: Vocabulary,
    dialect: str = "a1111",
    *,
    at: float = 0.0,
    steps: int | None = None,
    learned: Mapping[str, int] | None = None,
    limit: int = MAX_CHUNKS,
) -> Explanation:
    """Explain a prompt with nothing but the vocabulary: no weights are needed."""
    parsed = parse(prompt, dialect, steps=steps) if isinstance(prompt, str) else prompt
    layout = lay_out(parsed.sections(at), vocabulary, parsed.dialect, learned, limit)
    notes = []
    if parsed.switches:
        notes.append("the text changes at " + ", ".join(f"{100 * f:.4g} %" for f in parsed.switches) + " of the run")
    if layout.dropped:
        notes.append(f"{len(layout.dropped)} words are beyond the limit of {limit} chunks")
    if any(abs(token.weight) >= MAX_WEIGHT for chunk in layout.chunks for token in chunk):
        notes.append(f"weights are limited to {MAX_WEIGHT:g}")
    return Explanation(parsed, at, layout.chunks, vocabulary.room, layout.dropped, layout.unknown, tuple(notes))


def _shown(text: str, limit: int) -> str:
    """On one line, with every character that a terminal would act upon spelled out."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return safe if len(safe) <= limit else safe[: limit - 3] + "..."
