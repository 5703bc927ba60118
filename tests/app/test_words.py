"""The words of a command line: which ones win, and what is asked about them before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.generate import understand
from ldm.errors import Code, LdmError
from ldm.models.prompt import resolve
from pipelines.pipeline import Pipeline
from tests.app.conftest import Ldm

REACHED = "the model is loaded now"


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is an error that says so."""

    def load(*_: object, **__: object) -> Pipeline:
        raise LdmError(Code.MODEL, REACHED, "why", "fix")

    monkeypatch.setattr(Pipeline, "load", load)


@pytest.fixture
def wild(tmp_path: Path) -> Path:
    """Wildcard files: `__gone__` holds a tag without a file, `__there__` one with a file."""
    (tmp_path / "wild").mkdir()
    (tmp_path / "wild" / "gone.txt").write_text("<lora:nowhere:0.5>\n")
    (tmp_path / "wild" / "there.txt").write_text("<lora:mine:0.5>\n")
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "mine.safetensors").write_bytes(b"")
    return tmp_path / "wild"


@pytest.mark.parametrize(
    "prompt",
    ["a cat __gone__", "a {cat <lora:nowhere:1>|dog <lora:nowhere:2>}", "a cat <lora:nowhere>", "a <LORA:nowhere:1>"],
)
@pytest.mark.usefixtures("unloaded")
def test_a_tag_without_a_file_is_refused_before_loading(ldm: Ldm, tiny_sd1: Path, wild: Path, prompt: str) -> None:
    rest = ("--wildcards", wild, "--model", tiny_sd1, "--seed", 1)
    direct = ldm("generate", "a cat <lora:nowhere:0.5>", *rest)
    assert direct.status == Code.FILE
    assert "nowhere.safetensors" in direct.err and "--lora-folder" in direct.err
    assert ldm("generate", prompt, *rest) == direct


@pytest.mark.parametrize("prompt", ["a cat __there__", "a {0::<lora:nowhere:1>|cat}", "a cat"])
@pytest.mark.usefixtures("unloaded")
def test_what_every_picture_can_have_is_no_reason_to_stop(ldm: Ldm, tiny_sd1: Path, wild: Path, prompt: str) -> None:
    done = ldm("generate", prompt, "--wildcards", wild, "--model", tiny_sd1, "--seed", 1, "--count", 3)
    assert (done.status, REACHED in done.err) == (Code.MODEL, True)


@pytest.mark.usefixtures("unloaded")
def test_a_tag_that_only_a_later_picture_draws_is_asked_for_too(ldm: Ldm, tiny_sd1: Path) -> None:
    prompt = "a {<lora:nowhere:1>|cat}"
    last = next(seed for seed in range(1, 100) if resolve(prompt, seed=seed).loras)
    rest = ("--model", tiny_sd1, "--seed", 0)
    assert not resolve(prompt, seed=0).loras
    assert ldm("generate", prompt, *rest, "--count", last).status == Code.MODEL
    assert ldm("generate", prompt, *rest, "--count", last + 1).status == Code.FILE


@pytest.mark.parametrize(
    ("words", "given", "prompts"),
    [
        (["a", "cat"], {}, ["a cat"]),
        (["a", "cat"], {"set_": ["prompt=a dog"]}, ["a dog"]),
        (["a", "cat"], {"set_": ["prompt="]}, [""]),
        (["a", "cat"], {"set_": ["steps=3"]}, ["a cat"]),
        ([], {"set_": ["prompt=a dog"]}, ["a dog"]),
        ([], {"prompts_": "prompts.txt"}, ["a bird", "a fish"]),
        ([], {"set_": ["prompt=a dog"], "prompts_": "prompts.txt"}, ["a dog"]),
        ([], {"from_": "cow.yaml"}, ["a cow"]),
        (["a", "cat"], {"from_": "cow.yaml"}, ["a cat"]),
        (["a", "cat"], {"set_": ["prompt=a dog"], "from_": "cow.yaml"}, ["a dog"]),
    ],
)
def test_set_overrides_the_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], given: dict[str, Any], prompts: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a bird\na fish\n")
    Path("cow.yaml").write_text("prompt: a cow\n")
    order = understand(words, given | {"dry_run_": True})
    assert [request.prompt for request in order.requests] == prompts
