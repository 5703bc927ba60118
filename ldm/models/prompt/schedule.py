"""Text that changes during the run: `[a:b:0.5]`, `[a::0.5]`, `[b:10]` and `[a|b]` (dialect a1111)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from ldm.errors import Code, LdmError
from ldm.models.prompt.brackets import matched, split_top

_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*")
_SAME = 1e-6  # fractions that came through float32 are a little off


@dataclass(frozen=True)
class Change:
    """`before` until the fraction `when` of the run, `after` from then on."""

    before: Tree
    after: Tree
    when: float


@dataclass(frozen=True)
class Turns:
    """One option after the other, a step each."""

    options: tuple[Tree, ...]
    steps: int


Tree = tuple[str | Change | Turns, ...]


def parse_schedule(text: str, steps: int | None) -> Tree:
    """The text as a tree of changes; `steps` is needed where a step is named instead of a fraction."""
    pairs = matched(text, "()[]")
    return _tree(text, 0, len(text), pairs, steps)


def switches(tree: Tree) -> set[float]:
    """Fractions of the run, in (0, 1), at which the text may change."""
    found: set[float] = set()
    for node in tree:
        if isinstance(node, Change):
            found |= {node.when} | switches(node.before) | switches(node.after)
        elif isinstance(node, Turns):
            found |= {i / node.steps for i in range(1, node.steps)}.union(*map(switches, node.options))
    return {f for f in found if 0 < f < 1}


def text_at(tree: Tree, fraction: float) -> str:
    """The text that holds at this fraction of the run."""
    parts = []
    for node in tree:
        if isinstance(node, Change):
            parts.append(text_at(node.after if fraction + _SAME >= node.when else node.before, fraction))
        elif isinstance(node, Turns):
            step = int(fraction * node.steps + _SAME * node.steps)
            parts.append(text_at(node.options[step % len(node.options)], fraction))
        else:
            parts.append(node)
    return "".join(parts)


def _tree(text: str, start: int, end: int, pairs: dict[int, int], steps: int | None) -> Tree:
    nodes: list[str | Change | Turns] = []
    plain = i = start
    while i < end:
        if text[i] == "\\":
            i += 2
            continue
        node = _node(text, i, pairs, steps) if text[i] == "[" and pairs.get(i, end) < end else None
        if node is not None:
            nodes += [text[plain:i], node]
            plain = i = pairs[i] + 1
        else:
            i += 1
    nodes.append(text[plain:end])
    return tuple(n for n in nodes if n != "")


def _node(text: str, start: int, pairs: dict[int, int], steps: int | None) -> Change | Turns | None:
    """What the bracket at `start` means, or None: then it is a weight, not a schedule."""
    end = pairs[start]
    marks = split_top(text, start + 1, end, ":|", pairs)
    kinds = {c for c, _ in marks}
    cuts = [start, *(i for _, i in marks), end]
    if kinds == {"|"}:
        options = tuple(_tree(text, a + 1, b, pairs, steps) for a, b in pairwise(cuts))
        return Turns(options, _known(steps, text[start : end + 1]))
    number = _NUMBER.fullmatch(text, cuts[-2] + 1, end)
    if kinds != {":"} or len(marks) > 2 or number is None:
        return None
    when = _fraction(number.group(1), steps, text[start : end + 1])
    after = _tree(text, cuts[-3] + 1, cuts[-2], pairs, steps)
    before = _tree(text, start + 1, cuts[1], pairs, steps) if len(marks) == 2 else ()
    return Change(before, after, when)


def _fraction(number: str, steps: int | None, source: str) -> float:
    """`0.25`: that part of the run, down to whole steps when their number is known. `10`: that many steps."""
    value = max(0.0, float(number))
    if "." not in number and value > 0:
        return min(1.0, value / _known(steps, source))
    return min(1.0, value if steps is None else int(value * steps + _SAME) / steps)


def _known(steps: int | None, source: str) -> int:
    if steps is None:
        raise LdmError(
            Code.USAGE,
            f"{source[:60]} counts steps, and their number is not known here",
            "a whole number and [a|b] name steps; a number with a point names a part of the run",
            "write a fraction such as [a:b:0.5], or give the number of steps",
        )
    return steps
