"""Text that changes during the run, by A1111's rules; expectations worked out by hand."""

from __future__ import annotations

import pytest

from ldm.errors import Code, LdmError
from ldm.models.prompt import parse


@pytest.mark.parametrize(
    ("text", "switches", "texts"),
    [
        ("plain [soft] (x:1.2)", (), ["plain [soft] (x:1.2)"]),
        ("[a:b:0.5]", (0.5,), ["a", "b"]),
        ("[a::0.25] c", (0.25,), ["a c", " c"]),
        ("[:b:.25]", (0.25,), ["", "b"]),
        ("[b:0.75]", (0.75,), ["", "b"]),
        ("[a:b:5]", (0.25,), ["a", "b"]),
        ("[a:b: 5 ]", (0.25,), ["a", "b"]),
        ("[a:b:40]", (), ["a"]),
        ("[a:b:0]", (), ["b"]),
        ("[a:b:1.0]", (), ["a"]),
        ("[a:[b:c:0.5]:0.25]", (0.25, 0.5), ["a", "b", "c"]),
        ("[(a:1.5):b:0.5] [c]", (0.5,), ["(a:1.5) [c]", "b [c]"]),
        ("[[x:y:0.5]]", (0.5,), ["[x]", "[y]"]),
        ("[a:b:c:0.5]", (), ["[a:b:c:0.5]"]),
        ("[a:b]", (), ["[a:b]"]),
        ("[a|b:0.5]", (), ["[a|b:0.5]"]),
        (r"\[a:b:0.5\]", (), [r"\[a:b:0.5\]"]),
        (r"[a\:b:c:0.5]", (0.5,), [r"a\:b", "c"]),
        ("[open [d:0.5]", (0.5,), ["[open ", "[open d"]),
        ("((x][:y [d:0.5]", (0.5,), ["((x][:y ", "((x][:y d"]),
        ("[a:b:0.33]", (0.3,), ["a", "b"]),  # whole steps: int(0.33 * 20) = 6
    ],
)
def test_switches_and_texts(text: str, switches: tuple[float, ...], texts: list[str]) -> None:
    prompt = parse(text, "a1111", steps=20)
    assert prompt.switches == pytest.approx(switches)
    assert [prompt.at(f) for f in (0.0, *prompt.switches)] == texts


def test_steps_before_the_switch_are_counted_as_a1111_counts_them() -> None:
    prompt = parse("[a:b:7]", steps=20)
    assert "".join(prompt.at(i / 20) for i in range(20)) == "a" * 7 + "b" * 13
    import torch

    told = (torch.arange(20, dtype=torch.float32) / 20).tolist()  # as a level tells it
    assert "".join(prompt.at(f) for f in told) == "a" * 7 + "b" * 13


def test_turns_take_a_step_each() -> None:
    prompt = parse("[a|b|(c:1.2)]", steps=7)
    assert [prompt.at(i / 7) for i in range(7)] == ["a", "b", "(c:1.2)"] * 2 + ["a"]
    assert prompt.switches == pytest.approx([i / 7 for i in range(1, 7)])


def test_a_fraction_needs_no_steps_and_a_step_does() -> None:
    assert parse("[a:b:0.33]").switches == (0.33,)
    for text in ("[a:b:10]", "[a|b]"):
        with pytest.raises(LdmError) as error:
            parse(text)
        assert error.value.code == Code.USAGE
        assert text in error.value.what


@pytest.mark.parametrize("dialect", ["comfy", "compel"])
def test_other_dialects_know_no_schedule(dialect: str) -> None:
    prompt = parse("[a:b:0.5] [c|d]", dialect)
    assert (prompt.switches, prompt.at(0.9)) == ((), "[a:b:0.5] [c|d]")


def test_an_unknown_dialect_names_the_known_ones() -> None:
    with pytest.raises(LdmError) as error:
        parse("a", "a11111")
    assert "a1111, comfy, compel" in error.value.fix
