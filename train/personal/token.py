"""Whether a token calls the subject and nothing else: common words are known as something, others fall to pieces."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ldm.errors import Code, LdmError
from ldm.models.prompt import parse, resolve
from ldm.models.prompt.words import words
from ldm.models.tokenizer import CLIPS_OWN, Vocabulary

SHOWN = 40
PIECES = 4  # of a token, from which on it takes much of a prompt's room
COMMON = 12_000  # entries of CLIP's vocabulary come in the order of their frequency
RARE = range(40_000, 48_000)  # among which rare ones are looked for


def refuse_syntax(token: str) -> None:
    """A prompt is read, and training is not: brackets, braces and the like would call something else than was learned.
    An error says so."""
    try:
        resolved = resolve(token, seed=0)
        pieces = [(piece.text, piece.weight) for section in parse(resolved.text).sections() for piece in section]
        kept = pieces == [(token, 1.0)] and not resolved.loras and not set(token) & set("{}")
    except LdmError:
        kept = False
    if kept:
        return
    plain = "".join(c if c.isalnum() or c in "-' " else " " for c in token).replace("BREAK", "break")
    plain = " ".join(plain.split())
    raise LdmError(
        Code.USAGE,
        f"--token {token[:SHOWN]!r} is syntax of prompts.",
        "In a prompt it would be read as a weight, a choice or an adapter, and call something else than was learned.",
        f"Use letters and digits: --token {plain!r}." if plain else "Use letters and digits: --token 'zwx'.",
    )


def remarks(token: str, kind: str, vocabulary: Vocabulary, known: Collection[str]) -> Iterator[str]:
    """What is worth saying of the token, in words. `known`: what a small model has read; none: a large one."""
    own = _own(token, kind)
    large = not known
    common = [word for word in words(own) if (_is_common(word, vocabulary) if large else word in known)]
    pieces = len(vocabulary.spots([own])[0])
    rarer = f"{suggestion(vocabulary, known)}{' ' + kind if kind else ''}"
    if not words(own):
        yield f"{own!r} has no letters, and signs say little to a text tower: write a rare word, {rarer!r} for example"
    elif common:
        yield (
            f"the model knows {' and '.join(map(repr, common))} already as something else, and will mix the two: "
            f"a word that it does not know learns better, {rarer!r} for example"
        )
    elif pieces > PIECES:
        yield (
            f"{own!r} falls into {pieces} pieces for the text tower: a shorter word takes less of a prompt's room, "
            f"{rarer!r} for example"
        )


def _own(token: str, kind: str) -> str:
    """What of a token is not the kind of thing that the subject is: all of it, where it is nothing but that."""
    told, last = token.split(), kind.split()
    if last and [word.casefold() for word in told[-len(last) :]] == [word.casefold() for word in last]:
        told = told[: -len(last)] or told
    return " ".join(told)


def _is_common(word: str, vocabulary: Vocabulary) -> bool:
    ids = [spot.id for spot in vocabulary.spots([word])[0]]
    return len(ids) == 1 and ids[0] < COMMON


def suggestion(vocabulary: Vocabulary, known: Collection[str]) -> str:
    """A rare word of one piece; for a small model one that it never read."""
    if not known and vocabulary.size >= CLIPS_OWN:
        for entry in RARE:
            word = vocabulary.text(entry)
            if 3 <= len(word) <= 4 and word.isascii() and word.isalpha() and not set(word) & set("aeiou"):
                return word
    return next(word for word in ("zwx", "qvk", "xkz", "vqj") if word not in known)
