"""The grammar of each dialect: pieces and weights, worked out by hand from its documented rules."""

from __future__ import annotations

import pytest

from ldm.errors import LdmError
from ldm.models.prompt import MAX_WEIGHT, parse

Pieces = list[tuple[str, float]]


def pieces(text: str, dialect: str) -> list[Pieces]:
    """Without white space at the edges: it makes no token, so it does not matter which piece it is in."""
    return [[(" ".join(p.text.split()), p.weight) for p in section] for section in parse(text, dialect).sections()]


def near(found: list[Pieces], *expected: Pieces) -> bool:
    return [[t for t, _ in s] for s in found] == [[t for t, _ in s] for s in expected] and all(
        w == pytest.approx(v) for s, e in zip(found, expected, strict=True) for (_, w), (_, v) in zip(s, e, strict=True)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("a red cat", [("a red cat", 1.0)]),
        ("a (red) cat", [("a", 1.0), ("red", 1.1), ("cat", 1.0)]),
        ("a [red] cat", [("a", 1.0), ("red", 1 / 1.1), ("cat", 1.0)]),
        ("(red:1.3)", [("red", 1.3)]),
        ("(red: 1.3 )", [("red", 1.3)]),
        ("(red:-.5)", [("red", -0.5)]),
        ("((red))", [("red", 1.21)]),
        ("((red:1.5) cat)", [("red", 1.65), ("cat", 1.1)]),
        ("(((x:2)) [y] z)", [("x", 2 * 1.21), ("y", 1.0), ("z", 1.1)]),
        ("[[x]]", [("x", 1 / 1.21)]),
        ("(a)(b)", [("ab", 1.1)]),
        (r"cat \(animal\) \[x\] \\", [("cat (animal) [x] \\", 1.0)]),
        ("(never closed, to the end", [("never closed, to the end", 1.1)]),
        ("a) b] c", [("a) b] c", 1.0)]),
        ("time 12:30, a:b", [("time 12:30, a:b", 1.0)]),
        ("(12:30 clock)", [("12:30 clock", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a:one)", [("a:one", 1.1)]),
        ("a++ (b)1.3", [("a++", 1.0), ("b", 1.1), ("1.3", 1.0)]),
    ],
)
def test_a1111(text: str, expected: Pieces) -> None:
    assert near(pieces(text, "a1111"), expected)


def test_break_cuts_also_inside_brackets_but_not_inside_words() -> None:
    assert near(pieces("a BREAK b", "a1111"), [("a", 1.0)], [("b", 1.0)])
    assert near(pieces("(a BREAK b:1.5) c", "a1111"), [("a", 1.5)], [("b", 1.5), ("c", 1.0)])
    assert near(pieces("BREAKFAST, aBREAK break", "a1111"), [("BREAKFAST, aBREAK break", 1.0)])
    assert len(pieces("BREAK a BREAK BREAK b", "a1111")) == 4
    assert len(pieces("a BREAK b", "comfy")) == len(pieces("a BREAK b", "compel")) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red cat", [("a red cat", 1.0)]),
        ("a (red) cat", [("a", 1.0), ("red", 1.1), ("cat", 1.0)]),
        ("((red))", [("red", 1.21)]),
        ("((red:1.5) cat)", [("red", 1.5), ("cat", 1.1)]),  # a number is not multiplied by what is around it
        ("((red) cat:2)", [("red", 2.2), ("cat", 2.0)]),
        ("(12:30:1.5)", [("12:30", 1.5)]),
        ("(red:1e3)", [("red:1e3", 1.1)]),
        ("(red:nan)", [("red:nan", 1.1)]),
        ("[red] BREAK", [("[red] BREAK", 1.0)]),
        (r"cat \(animal\)", [("cat (animal)", 1.0)]),
        ("(open", [("(open", 1.0)]),
        ("close) (x)", [("close)", 1.0), ("x", 1.1)]),
    ],
)
def test_comfy(text: str, expected: Pieces) -> None:
    assert near(pieces(text, "comfy"), expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red cat", [("a red cat", 1.0)]),
        ("a red++ cat", [("a", 1.0), ("red", 1.21), ("cat", 1.0)]),
        ("a red-- cat", [("a", 1.0), ("red", 0.81), ("cat", 1.0)]),
        ("(red cat)1.3", [("red cat", 1.3)]),
        ("(red cat)+, dog", [("red cat", 1.1), (", dog", 1.0)]),
        ("(x (y)1.5)2", [("x", 2.0), ("y", 3.0)]),
        ("hot-dog +one a - b 1+1", [("hot-dog +one a - b 1+1", 1.0)]),
        ("(plain) brackets", [("plain brackets", 1.0)]),
        ("(red:1.3)", [("red:1.3", 1.0)]),
        ("(open", [("(open", 1.0)]),
        (r"\(x\) C\+\+ y+", [("(x) C++", 1.0), ("y", 1.1)]),
    ],
)
def test_compel(text: str, expected: Pieces) -> None:
    assert near(pieces(text, "compel"), expected)


@pytest.mark.parametrize("text", ['("a", "b").and()', '("a", "b").blend(1, 0.8)', "cat.swap(dog)", "(x).attend(0.5)"])
def test_what_is_not_supported_of_compel_is_said(text: str) -> None:
    with pytest.raises(LdmError) as error:
        parse(text, "compel").sections()
    assert "not supported" in error.value.what


@pytest.mark.parametrize("dialect", ["a1111", "comfy", "compel"])
def test_weights_stay_finite(dialect: str) -> None:
    for text in ("(a:99999999999999999999999)", "(" * 6000 + "a" + ")" * 6000, "a" + "+" * 9000, "(a)" + "9" * 400):
        assert all(abs(w) <= MAX_WEIGHT for section in pieces(text, dialect) for _, w in section)
