"""Which bracket closes which. Shared by the grammars; one pass, however the text is nested."""

from __future__ import annotations

MAX_NESTING = 64  # brackets opened deeper than this are plain text: nobody writes them, and they could cost time


def matched(text: str, kinds: str) -> dict[int, int]:
    """Place of each opening bracket that is closed -> place of its closing one, for kinds like "()[]".

    A backslash takes the next character out. A closing bracket passes over unclosed ones of another kind.
    """
    partner = dict(zip(kinds[1::2], kinds[::2], strict=True))
    opened: list[int] = []
    count = dict.fromkeys(partner.values(), 0)
    found: dict[int, int] = {}
    i = 0
    while i < len(text):
        c = text[i]
        if c == "\\":
            i += 1
        elif c in count and len(opened) < MAX_NESTING:
            opened.append(i)
            count[c] += 1
        elif c in partner and count[partner[c]]:
            while text[opened[-1]] != partner[c]:
                count[text[opened.pop()]] -= 1
            found[opened[-1]] = i
            count[text[opened.pop()]] -= 1
        i += 1
    return found


def split_top(text: str, start: int, end: int, marks: str, pairs: dict[int, int]) -> list[tuple[str, int]]:
    """Each of `marks` in text[start:end] that stands outside nested brackets and escapes, with its place."""
    found = []
    i = start
    while i < end:
        c = text[i]
        if c == "\\":
            i += 1
        elif i in pairs and pairs[i] < end:
            i = pairs[i]
        elif c in marks:
            found.append((c, i))
        i += 1
    return found
