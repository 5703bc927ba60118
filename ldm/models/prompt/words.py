"""Which words of a prompt a small model never read: a model of the world knows them all, one of a few thousand captions
does not."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterable

from ldm.models.prompt.clean import clean
from ldm.models.prompt.parse import Prompt

LOOKED_UP = 10  # unknown words that are compared with all known ones: that takes a while
TOLD = 20  # unknown words that are told
NEAR = 2  # known words that are offered for one that is not
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SHORT = 3  # letters below which nothing is alike


def words(text: str) -> list[str]:
    """The words of a text as a tokenizer sees them, in order."""
    return [word.replace("’", "'") for word in _WORD.findall(clean(text).lower())]


def says(text: str, token: str) -> bool:
    """Whether a text says these words, as words of their own, in upper or lower case."""
    before, after = (r"(?<!\w)" if token[:1].isalnum() else ""), (r"(?!\w)" if token[-1:].isalnum() else "")
    return re.search(f"{before}{re.escape(token)}{after}", text, re.IGNORECASE) is not None


def vocabulary(captions: Iterable[str], least: int = 1) -> list[str]:
    """The words of captions, sorted; those that come fewer than `least` times are left out."""
    counted = Counter(word for caption in captions for word in words(caption))
    return sorted(word for word, count in counted.items() if count >= least)


def unknown(prompt: Prompt, known: Collection[str]) -> dict[str, list[str]]:
    """The words of a prompt that are not known, the first of them with the known ones that are most like them."""
    found = dict.fromkeys(word for text in _texts(prompt) for word in words(text) if word not in known)
    return {word: near(word, known) if place < LOOKED_UP else [] for place, word in enumerate(found)}


def _texts(prompt: Prompt) -> list[str]:
    return [piece.text for part in (0.0, *prompt.switches) for section in prompt.sections(part) for piece in section]


def near(word: str, known: Collection[str]) -> list[str]:
    """The known words that are most like a word: other forms of it first, then other spellings."""
    if len(word) < _SHORT:
        return []
    forms = [other for other in known if len(other) >= _SHORT and (word.startswith(other) or other.startswith(word))]
    forms.sort(key=lambda other: (abs(len(other) - len(word)), other))
    close = difflib.get_close_matches(word, list(known), n=NEAR, cutoff=0.75)
    return list(dict.fromkeys([*forms[:1], *close, *forms[1:]]))[:NEAR]


def remark(prompt: Prompt, known: Collection[str]) -> str:
    """What to tell about the words that a model does not know; empty where it knows them all."""
    strange, texts = unknown(prompt, known), _texts(prompt)
    each = [f"{word!r} (known: {', '.join(close)})" if close else repr(word) for word, close in strange.items()]
    more = f" and {len(each) - TOLD} more words" if len(each) > TOLD else ""
    told = f"the model never read {', '.join(each[:TOLD])}{more}" if each else ""
    if any(text.strip() for text in texts) and not any(word in known for text in texts for word in words(text)):
        nothing = "no word of the prompt is known, so what it draws has nothing to do with it"
        return f"{told}: {nothing}" if told else nothing  # signs and numbers alone are no words
    return told
