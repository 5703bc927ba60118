"""How much each part of a prompt weighs, in three dialects. What a weight does is in `ldm.models.text_weights`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ldm.errors import Code, LdmError
from ldm.models.prompt.brackets import MAX_NESTING, matched

Dialect = Literal["a1111", "comfy", "compel"]
MAX_WEIGHT = 20.0  # weights are limited to -20 .. 20, so that no nesting can make a number that is not finite


@dataclass(frozen=True)
class Piece:
    """Text of one weight, without syntax."""

    text: str
    weight: float = 1.0


Section = tuple[Piece, ...]  # what stands between two BREAKs

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_A1111 = re.compile(rf"\\[()\[\]\\]|\\|\(|\[|:\s*({_NUMBER})\s*\)|\)|\]|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\bBREAK\b")


def a1111(text: str) -> tuple[Section, ...]:
    """`(a)` 1.1, `(a:1.3)`, `[a]` 1/1.1, nested ones multiply; what is not closed holds to the end; `BREAK` cuts.

    Neighbours of equal weight become one text, so that a bracket in the middle of a word does not split the word.
    """
    parts: list[tuple[str | None, list[float]]] = []  # text (None: BREAK) and its weight, changed while brackets close
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(kind: str, factor: float) -> None:
        for _, weight in parts[opened[kind].pop() :]:
            weight[0] *= factor

    for match in _A1111.finditer(text):
        token, number = match.group(), match.group(1)
        if token.startswith("\\"):
            parts.append((token[1:], [1.0]))
        elif token in opened and len(opened["("]) + len(opened["["]) < MAX_NESTING:
            opened[token].append(len(parts))
        elif number is not None and opened["("]:
            close("(", float(number))
        elif token == ")" and opened["("]:
            close("(", 1.1)
        elif token == "]" and opened["["]:
            close("[", 1 / 1.1)
        else:
            first, *rest = _BREAK.split(token)
            parts.append((first, [1.0]))
            for piece in rest:
                parts += [(None, [1.0]), (piece, [1.0])]
    while opened["("]:
        close("(", 1.1)
    while opened["["]:
        close("[", 1 / 1.1)
    return _sections([(piece, weight[0]) for piece, weight in parts])


def comfy(text: str) -> tuple[Section, ...]:
    """`(a)` 1.1 times what is around it, `(a:1.3)` exactly 1.3 whatever is around it; `\\(` is a bracket.

    Brackets that are not closed are plain text; square brackets always are.
    """
    found: list[Piece] = []
    _comfy(text, 1.0, found, MAX_NESTING)
    return (tuple(p for p in found if p.text.strip()),)


def _comfy(text: str, weight: float, found: list[Piece], depth: int) -> None:
    pairs = matched(text, "()") if depth else {}
    plain = i = 0
    while i < len(text):
        if text[i] == "\\":
            i += 2
        elif i in pairs:
            found.append(Piece(_unescaped(text[plain:i], "()"), _limited(weight)))
            inside, factor = text[i + 1 : pairs[i]], weight * 1.1
            head, colon, tail = inside.rpartition(":")
            if colon and head and re.fullmatch(rf"\s*{_NUMBER}\s*", tail):
                inside, factor = head, float(tail)
            _comfy(inside, factor, found, depth - 1)
            plain = i = pairs[i] + 1
        else:
            i += 1
    found.append(Piece(_unescaped(text[plain:], "()"), _limited(weight)))


_COMPEL_PLAIN = re.compile(r"[^()+\-\\]*\s")  # whole words without syntax; tried after white space only, to stay linear
_COMPEL_WORD = re.compile(r"""(?:\\.|[+-](?![\s()",.+\-=]|$)|[^\s()",.+\-=\\])+""")
_COMPEL_SIGNS = re.compile(r"""(\++|-+)(?=[\s()",.=]|$)""")
_COMPEL_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_COMPEL_CALL = re.compile(r"""[\w)"]\.(and|add|blend|swap|attend)\(""")


def compel(text: str) -> tuple[Section, ...]:
    """`word+` 1.1, `word--` 0.9 squared, `(some words)1.3`, `(some words)++`; nested ones multiply.

    Brackets that are not closed are plain text; a sign inside a word is (hot-dog).
    """
    if call := _COMPEL_CALL.search(text):
        raise LdmError(
            Code.USAGE,
            f".{call.group(1)}() is not supported in the prompt",
            "of the compel dialect, the weights with +, - and numbers are read",
            f"take .{call.group(1)}(...) out of the prompt, or write \\.{call.group(1)}( for plain text",
        )
    found: list[tuple[str | None, float]] = []
    _compel(text, 1.0, found, MAX_NESTING)
    sections = _sections(found)
    return tuple(tuple(Piece(_unescaped(p.text, '()",.+-='), p.weight) for p in section) for section in sections)


def _compel(text: str, weight: float, found: list[tuple[str | None, float]], depth: int) -> None:
    pairs = matched(text, "()") if depth else {}
    i = 0
    while i < len(text):
        if i in pairs:
            end = pairs[i] + 1
            signs, number = _COMPEL_SIGNS.match(text, end), _COMPEL_NUMBER.match(text, end)
            operator = signs or number
            factor = _sign_weight(signs.group()) if signs else float(number.group()) if number else 1.0
            found.append((" ", weight))  # a group is made of words of its own
            _compel(text[i + 1 : pairs[i]], weight * factor, found, depth - 1)
            found.append((" ", weight))
            i = operator.end() if operator else end
        elif (i == 0 or text[i - 1].isspace()) and (plain := _COMPEL_PLAIN.match(text, i)):
            found.append((plain.group(), weight))
            i = plain.end()
        elif word := _COMPEL_WORD.match(text, i):
            signs = _COMPEL_SIGNS.match(text, word.end())
            found.append((word.group(), weight * (_sign_weight(signs.group()) if signs else 1.0)))
            i = signs.end() if signs else word.end()
        else:
            found.append((text[i], weight))
            i += 1


def _sign_weight(signs: str) -> float:
    """The power is limited before it is taken: "+" ten thousand times is no finite number."""
    return float((1.1 if signs[0] == "+" else 0.9) ** min(len(signs), 1000))


def _sections(parts: list[tuple[str | None, float]]) -> tuple[Section, ...]:
    """Cut at the BREAKs (None); neighbours of equal weight become one; white space belongs to what is before it."""
    sections: list[list[tuple[list[str], float]]] = [[]]
    for text, weight in parts:
        if text is None:
            sections.append([])
        elif text and (sections[-1] or not text.isspace()):
            last = sections[-1]
            if last and (last[-1][1] == weight or text.isspace()):
                last[-1][0].append(text)
            else:
                last.append(([text], weight))
    return tuple(tuple(Piece("".join(texts), _limited(w)) for texts, w in section) for section in sections)


def _limited(weight: float) -> float:
    if math.isnan(weight):
        return 1.0
    return max(-MAX_WEIGHT, min(MAX_WEIGHT, weight))


def _unescaped(text: str, marks: str) -> str:
    return re.sub(rf"\\([{re.escape(marks)}])", r"\1", text)


GRAMMARS: Mapping[Dialect, Callable[[str], tuple[Section, ...]]] = {"a1111": a1111, "comfy": comfy, "compel": compel}
