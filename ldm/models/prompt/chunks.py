"""From weighted pieces to chunks of tokens: where a long prompt is cut, and what does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from ldm.models.prompt.weights import Dialect, Section
from ldm.models.tokenizer import Vocabulary

MAX_CHUNKS = 16  # 16 x 75 tokens; a network that reads more would spend most of its time on the prompt
BACKTRACK = 20  # a1111: a full chunk ends after its last comma, if that is among its last so many tokens
WORD_LIMIT = 8  # comfy: a word of fewer tokens is not cut


class Token(NamedTuple):
    """One position of a chunk: a token of the text, or row `row` of the learned vectors called `name`."""

    id: int
    text: str
    weight: float
    piece: int  # which weighted piece it comes from, counted through the prompt
    unit: int  # neighbours of the same unit stay in one chunk, if they fit into one
    start: int  # place in the text of the piece
    name: str | None = None
    row: int = 0


Chunk = tuple[Token, ...]


@dataclass(frozen=True)
class Layout:
    """The chunks of a prompt (at least one), the words beyond the limit, and what the vocabulary does not know."""

    chunks: tuple[Chunk, ...]
    dropped: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def lay_out(
    sections: Sequence[Section],
    vocabulary: Vocabulary,
    dialect: Dialect,
    learned: Mapping[str, int] | None = None,
    limit: int = MAX_CHUNKS,
) -> Layout:
    """Tokens in chunks of `vocabulary.room`. `learned`: how many vectors each textual-inversion token has."""
    tokens, unknown = _tokens(sections, vocabulary, dialect, learned or {})
    chunks: list[list[Token]] = []
    for section in tokens:
        chunks += _pack(section, vocabulary, dialect) or [[]]
    # A BREAK at the very end asks for nothing more; one at the start, or two in a row, do ask for an empty chunk.
    if len(chunks) > 1 and not chunks[-1]:
        chunks.pop()
    texts = [piece.text for section in sections for piece in section]
    dropped = _words([token for chunk in chunks[limit:] for token in chunk], texts)
    return Layout(tuple(tuple(c) for c in chunks[:limit]), dropped, tuple(dict.fromkeys(unknown)))


def _tokens(
    sections: Sequence[Section], vocabulary: Vocabulary, dialect: Dialect, learned: Mapping[str, int]
) -> tuple[list[list[Token]], list[str]]:
    """The tokens of each section, and the parts of the text for which there is none."""
    names = sorted(learned, key=len, reverse=True)
    pattern = _trigger(names, dialect)
    parts = [  # section, piece, place in the piece, text, learned name
        (s, piece, start, text, name)
        for s, piece, whole in _numbered(sections)
        for start, text, name in _split(whole, pattern, names)
    ]
    spots = vocabulary.spots([text if name is None else "" for _, _, _, text, name in parts])
    weights = [piece.weight for section in sections for piece in section]
    found: list[list[Token]] = [[] for _ in sections]
    unknown: list[str] = []
    unit = 0
    for (s, piece, start, text, name), ids in zip(parts, spots, strict=True):
        unit += 1
        if name is not None:
            rows = range(learned[name])
            found[s] += [Token(0, text, weights[piece], piece, unit, start, name, row) for row in rows]
            continue
        end = 0
        for spot in ids:
            source = text[spot.start : spot.end]
            if dialect != "comfy" or text[end : spot.start].strip() != text[end : spot.start]:
                unit += 1  # comfy: a new word begins after white space; elsewhere each token stands alone
            end = spot.end
            if spot.id in (vocabulary.bos, vocabulary.eos):
                unknown.append(source)
            else:
                found[s].append(Token(spot.id, source, weights[piece], piece, unit, start + spot.start))
    return found, unknown


def _numbered(sections: Sequence[Section]) -> Iterator[tuple[int, int, str]]:
    """Section, piece and text; pieces are counted through all sections."""
    piece = 0
    for s, section in enumerate(sections):
        for p in section:
            yield s, piece, p.text
            piece += 1


def _trigger(names: Sequence[str], dialect: Dialect) -> re.Pattern[str] | None:
    """One group for each name, as a word of its own in upper or lower case; in comfy also after `embedding:`."""
    if not names:
        return None
    prefix = r"(?:\bembedding:)?" if dialect == "comfy" else ""
    groups = []
    for name in names:
        before, after = (r"(?<!\w)" if name[0].isalnum() else ""), (r"(?!\w)" if name[-1].isalnum() else "")
        groups.append(f"({before}{prefix}{re.escape(name)}{after})")
    return re.compile("|".join(groups), re.IGNORECASE)


def _split(text: str, pattern: re.Pattern[str] | None, names: Sequence[str]) -> Iterator[tuple[int, str, str | None]]:
    """(start, text, name): plain text with name None, and learned tokens."""
    place = 0
    for match in pattern.finditer(text) if pattern else ():
        yield place, text[place : match.start()], None
        yield match.start(), match.group(), names[(match.lastindex or 0) - 1]
        place = match.end()
    yield place, text[place:], None


def _pack(tokens: Sequence[Token], vocabulary: Vocabulary, dialect: Dialect) -> list[list[Token]]:
    """Chunks of one section. A unit that does not fit begins the next chunk; one longer than a chunk is cut.

    a1111: when a chunk is full and its last comma is near, what follows that comma moves to the next chunk.
    """
    room = vocabulary.room
    chunks: list[list[Token]] = [[]]
    for _, group in groupby(tokens, key=attrgetter("unit")):
        unit = list(group)
        together = len(unit) <= room and (unit[0].name is not None or len(unit) < WORD_LIMIT)
        for part in [unit] if together else [[token] for token in unit]:
            while len(chunks[-1]) + len(part) > room:
                chunks.append(_moved(chunks[-1], part[0], vocabulary) if dialect == "a1111" else [])
            chunks[-1] += part
    return [c for c in chunks if c]


def _moved(full: list[Token], following: Token, vocabulary: Vocabulary) -> list[Token]:
    """What moves from a full chunk into the next one (and is taken out of the full one)."""
    commas = [i for i, token in enumerate(full) if token.id == vocabulary.comma and token.name is None]
    near = bool(commas) and len(full) - commas[-1] <= BACKTRACK
    if len(full) < vocabulary.room or not near or following.id == vocabulary.comma:
        return []
    moved = full[commas[-1] + 1 :]
    del full[commas[-1] + 1 :]
    return moved


def _words(tokens: Sequence[Token], texts: Sequence[str]) -> tuple[str, ...]:
    """The words of the text that these tokens, the end of it, stand for."""
    words: list[str] = []
    for piece, group in groupby(tokens, key=attrgetter("piece")):
        start, text = min(token.start for token in group), texts[piece]
        while start and not text[start - 1].isspace():
            start -= 1
        words += text[start:].split()
    return tuple(words)
