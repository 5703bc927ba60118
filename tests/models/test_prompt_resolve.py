"""Wildcards and tags: decided by the seed, kept in the recipe, and never a way out of the folder."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from ldm.errors import Code, LdmError
from ldm.models.prompt import Lora, resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    words = tmp_path / "words"
    (words / "animals").mkdir(parents=True)
    (words / "colour.txt").write_text("# comment\nred\n\n  green  \nblue\n")
    (words / "animals" / "cats.txt").write_text("\ufefflion\n__colour__ tiger\n")
    (words / "my_file.txt").write_text("only\n")
    (words / "endless.txt").write_text("x __endless__\n")
    (words / "grow.txt").write_text("__grow2__ __grow2__ __grow2__\n")
    (words / "grow2.txt").write_text("__my_file__ " * 800 + "\n")
    (words / "empty.txt").write_text("# nothing\n")
    (words / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "secret.txt").write_text("secret\n")
    (words / "link.txt").symlink_to(tmp_path / "secret.txt")
    return words


def _text(template: str, seed: int = 0, folder: Path | None = None) -> str:
    return resolve(template, seed=seed, wildcards=folder).text


def test_plain_text_stays() -> None:
    found = resolve("a (red:1.3) cat, [a:b:0.5] [x|y] 50% _ __ {one} }{", seed=3)
    assert found.text == found.template == "a (red:1.3) cat, [a:b:0.5] [x|y] 50% _ __ {one} }{"
    assert (dict(found.files), found.loras) == ({}, ())


def test_the_seed_decides_and_decides_again_the_same() -> None:
    texts = [_text("{red|green|blue} {cat|dog}", seed) for seed in range(40)]
    assert texts == [_text("{red|green|blue} {cat|dog}", seed) for seed in range(40)]
    assert len(set(texts)) == 6
    # Written down, so that a change of the rule (it would change old recipes) is noticed.
    assert texts[:4] == ["blue dog", "green dog", "green dog", "green dog"]


def test_weights_of_options() -> None:
    counts = Counter(_text("{3::a|b|0::c}", seed) for seed in range(400))
    assert counts["c"] == 0
    assert 0.68 < counts["a"] / 400 < 0.82


def test_nested_groups_brackets_and_escapes() -> None:
    assert {_text("{a {x|y}|b}", s) for s in range(30)} == {"a x", "a y", "b"}
    assert {_text("{[a|b]|c}", s) for s in range(20)} == {"[a|b]", "c"}
    assert {_text("{|very} big", s) for s in range(20)} == {"big", "very big"}
    assert _text(r"\{a|b\} \__c__ \(d\) {e\|f}") == r"{a|b} __c__ \(d\) {e|f}"


def test_files_are_read_and_their_hashes_kept(folder: Path) -> None:
    found = resolve("a __colour__ __animals/cats__ __my_file__", seed=1, wildcards=folder)
    assert found.template == "a __colour__ __animals/cats__ __my_file__"
    assert found.text.split()[1] in {"red", "green", "blue"}
    assert found.text.endswith(("lion only", "tiger only"))
    content = (folder / "colour.txt").read_bytes()
    assert found.files["colour"] == hashlib.sha256(content).hexdigest()
    assert {"colour", "animals/cats", "my_file"} <= set(found.files)
    assert {_text("__animals/cats__", s, folder) for s in range(60)} == {
        "lion",
        "red tiger",
        "green tiger",
        "blue tiger",
    }


@pytest.mark.parametrize(
    "name",
    ["../secret", "animals/../../secret", "/etc/passwd", "./colour", "animals//cats", "link", "C:/x", "..", "a\\..\\b"],
)
def test_no_name_leads_out_of_the_folder(folder: Path, name: str) -> None:
    with pytest.raises(LdmError) as error:
        _text(f"a __{name}__ b", folder=folder)
    assert error.value.code == Code.REFUSED
    assert "secret" not in error.value.why


def test_what_is_wrong_is_said(folder: Path) -> None:
    def error(template: str, where: Path | None = folder) -> LdmError:
        with pytest.raises(LdmError) as caught:
            _text(template, folder=where)
        return caught.value

    missing = error("__color__")
    assert (missing.code, "__colour__" in missing.fix) == (Code.FILE, True)
    assert "--wildcards" in error("__colour__", None).fix
    assert error("__colour__", folder / "nowhere").code == Code.FILE
    assert "UTF-8" in error("__latin__").why
    assert "no line" in error("__empty__").why
    assert "nested" in error("__endless__").what
    assert error("__grow__").code == Code.USAGE
    assert "weight" in error("{0::a|0::b}").what
    (folder / "long.txt").write_text("y" * 15_000 + "\n")
    assert "bytes" in error("__long__ __long__").what
    (folder / "huge.txt").write_text("z\n" * 600_000)
    assert "larger" in error("__huge__").why


def test_lora_tags_are_taken_out() -> None:
    found = resolve("a cat <lora:Style v1.2:0.8>, red<lora:x><lora:y:0.25:1.5>", seed=0)
    assert found.text == "a cat , red"
    assert found.loras == (Lora("Style v1.2", 0.8), Lora("x", 1.0), Lora("y", 1.5, 0.25))
    assert {resolve("{<lora:a:1>|<lora:b:-0.5>} c", seed=s).loras[0].name for s in range(20)} == {"a", "b"}


@pytest.mark.parametrize("tag", ["<lora:>", "<lora:a:b>", "<lora:a:1:2:3>", "<lora:a:nan>", "<lora::1>", "<lora:a:>"])
def test_a_tag_that_cannot_be_read_is_an_error(tag: str) -> None:
    with pytest.raises(LdmError) as error:
        resolve(tag, seed=0)
    assert tag in error.value.what
