"""Words that a small model never read stand in the notes of what it drew; adapters and large models are not asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ldm.errors import LdmError
from ldm.store.parts import load_parts
from ldm.store.save import save_folder
from pipelines.pipeline import Pipeline
from pipelines.request import Request


@pytest.fixture(scope="module")
def knowing(tiny_sd1: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows five words, saved and loaded once more."""
    first = Path(shutil.copytree(tiny_sd1, tmp_path_factory.mktemp("words") / "first"))
    (first / "tokenizer/words.txt").write_text("a\nred\ncircle\nsquare\nstyle\n", "utf-8")
    return save_folder(load_parts(first), first.parent / "second")


def notes(folder: Path, prompt: str) -> str:
    (result,) = Pipeline.load(folder, device="cpu").results(Request(prompt=prompt, steps=1))
    return " ".join(result.recipe.notes)


def test_a_strange_word_is_named_with_the_nearest_known_one_and_the_picture_is_drawn(knowing: Path) -> None:
    assert load_parts(knowing).words == {"a", "red", "circle", "square", "style"}
    assert "the model never read 'circel' (known: circle)" in notes(knowing, "a red circel")
    assert "no word of the prompt is known" in notes(knowing, "octopus")
    assert "never read" not in notes(knowing, "a (red:1.2) circle")


def test_a_model_that_tells_no_words_is_not_asked(tiny_sd1: Path) -> None:
    assert "never read" not in notes(tiny_sd1, "octopus")


def test_a_damaged_list_of_words_is_an_error_in_words(knowing: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(knowing, tmp_path / "broken"))
    (broken / "tokenizer/words.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LdmError, match=r"words\.txt cannot be read"):
        load_parts(broken)
