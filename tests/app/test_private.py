"""A private picture is proved to whoever has its words and its model, and by nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.errors import Code
from pipelines.recipe import read_recipe
from tests.app.conftest import Ldm

WORDS = ("--prompt", "a secret cat", "--negative", "dog")


@pytest.fixture
def picture(ldm: Ldm, tiny_sd1: Path, tmp_path: Path) -> Path:
    """Made with a model that is neither shipped nor beside the picture."""
    asked = ("a secret cat", "--negative", "dog", "--model", tiny_sd1, "--seed", 1, "--steps", 2, "--exact")
    assert ldm("generate", *asked, "--private").status == 0
    path = tmp_path / "outputs" / "0001-1.png"
    assert tiny_sd1.name.encode() not in path.with_suffix(".json").read_bytes()
    return path


@pytest.mark.parametrize("by", ["--model", "--inputs"])
def test_words_and_model_prove_it(ldm: Ldm, tiny_sd1: Path, picture: Path, by: str) -> None:
    """The model is given, or found by its fingerprint in a folder that is given."""
    done = ldm("verify", picture, *WORDS, by, tiny_sd1 if by == "--model" else tiny_sd1.parent)
    assert (done.status, "equal" in done.out) == (0, True), done.out + done.err


def test_without_the_model_its_fingerprint_and_the_option_are_told(ldm: Ldm, picture: Path) -> None:
    done = ldm("verify", picture, *WORDS)
    fingerprint = read_recipe(picture).model.fingerprint
    assert done.status == Code.DIFFERENT
    assert f"the model with the fingerprint {fingerprint} is missing" in done.out
    assert "--model" in done.out and "Traceback" not in done.err


def test_another_model_is_not_taken_for_it(ldm: Ldm, tiny_inpaint9: Path, picture: Path) -> None:
    done = ldm("verify", picture, *WORDS, "--model", tiny_inpaint9)
    assert done.status == Code.DIFFERENT
    assert f"{read_recipe(picture).model.fingerprint} is missing: what is there is " in done.out


def test_without_the_words_the_option_is_told(ldm: Ldm, tiny_sd1: Path, picture: Path) -> None:
    done = ldm("verify", picture, "--model", tiny_sd1)
    assert done.status == Code.DIFFERENT
    assert "the prompt is private" in done.out and "--prompt" in done.out


def test_a_shipped_model_is_known_without_its_folder(ldm: Ldm) -> None:
    assert ldm("generate", "octopus", "--seed", 1, "--steps", 1, "--exact", "--private").status == 0
    assert ldm("verify", "outputs/0001-1.png", "--prompt", "octopus").status == 0
