"""Whether a token calls the subject and nothing else: common words are known as something, others fall to pieces."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ldm.models.prompt.words import words
from ldm.models.tokenizer import CLIPS_OWN, Vocabulary

PIECES = 4  # of a token, from which on it takes much of a prompt's room
COMMON = 12_000  # entries of CLIP's vocabulary come in the order of their frequency
RARE = range(40_000, 48_000)  # among which rare ones are looked for


def remarks(token: str, kind: str, vocabulary: Vocabulary, known: Collection[str]) -> Iterator[str]:
    """What is worth saying of the token, in words. `known`: what a small model has read; none: a large one."""
    own = token[: -len(kind)].strip() if kind and token.casefold().endswith(kind.casefold()) else token
    ids = [spot.id for spot in vocabulary.spots([own])[0]]
    large = not known
    common = large and len(ids) == 1 and ids[0] < COMMON
    if common or any(word in known for word in words(own)):
        rarer = suggestion(vocabulary, known)
        yield (
            f"the model knows {own!r} already as something else, and will mix the two: "
            f"a word that it does not know learns better, {rarer + (' ' + kind if kind else '')!r} for example"
        )
    elif large and len(ids) > PIECES:
        rarer = suggestion(vocabulary, known)
        yield (
            f"{own!r} falls into {len(ids)} pieces for the text tower: a shorter word takes less of a prompt's room, "
            f"{rarer + (' ' + kind if kind else '')!r} for example"
        )


def suggestion(vocabulary: Vocabulary, known: Collection[str]) -> str:
    """A rare word of one piece; for a small model one that it never read."""
    if not known and vocabulary.size >= CLIPS_OWN:
        for entry in RARE:
            word = vocabulary.text(entry)
            if 3 <= len(word) <= 4 and word.isascii() and word.isalpha() and not set(word) & set("aeiou"):
                return word
    return next(word for word in ("zwx", "qvk", "xkz", "vqj") if word not in known)
