"""What is wrong with captions, by reading them: missing, too long, said of everything, or not a description at all."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath

READ = 2000  # characters of a caption that are searched
TOKENS = 75  # words and marks that one chunk of a CLIP text tower holds
# CLIP splits text so before it looks words up; each part is one token or more, so the count is a lower bound.
_PARTS = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|(?:[^\w\s]|_)+", re.IGNORECASE)
_SUFFIX = re.compile(r"\.(?:jpe?g|png|webp|gif|bmp|tiff?|heic|avif)\b", re.IGNORECASE)
_CAMERA = re.compile(
    r"(?:img|dscn?f?|pict?|pxl|mvi|image|photo|screenshot|screen shot|untitled)?[\W_]*\d{3,}[\d\W_]*", re.I
)
_LEAKS = (
    (re.compile(r"https?://|www\.\w", re.I), "an address of the web"),
    (re.compile(r"[\w.+-]+@[\w-]+\.[a-z]{2,}", re.I), "an e-mail address"),
    (re.compile(r"</?[a-z][^<>]*>|&(?:amp|lt|gt|quot|nbsp);", re.I), "markup"),
    (re.compile(r"<\|[^|]*\|>|\{[^{}]*\}|%[sd]\b"), "a placeholder that nobody filled in"),
    (re.compile(r"(?:^|[\s\"'])(?:/|[a-z]:\\|~/)[\w.-]+[/\\]", re.I), "a path of somebody's disk"),
    (re.compile("\ufffd|Ã[\u0080-\u00bf]|â€"), "letters broken by a wrong encoding"),
)


def parts(text: str) -> int:
    """At least how many tokens of CLIP a text takes, without start and end."""
    return len(_PARTS.findall(text))


def leak(text: str, name: str) -> str | None:
    """What a caption holds that describes no picture, in words; None where nothing was found in its beginning."""
    text = text[:READ]  # the patterns take the square of the length of one endless word
    for pattern, what in _LEAKS:
        if pattern.search(text):
            return what
    words = text.strip().casefold()
    stem = PurePath(name).stem.casefold()
    if _SUFFIX.search(text) or _CAMERA.fullmatch(words) or (words == stem and re.search(r"\d{2}|[_.]", stem)):
        return "the name of a file"
    return None


def repeated(captions: Iterable[tuple[str, str]], least: int = 5, share: float = 0.02) -> list[tuple[str, int]]:
    """Captions that stand beside many different pictures, the most frequent first: from (caption, sha256) pairs, those
    of at least `least` pictures and `share` of all."""
    each = Counter(caption for caption, _ in set(captions))
    total = sum(each.values())
    return [(text, n) for text, n in each.most_common() if n >= max(least, share * total)]
