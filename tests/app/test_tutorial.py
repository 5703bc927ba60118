"""The tutorials as they are written, each command in turn, in an empty folder: only fewer pictures and steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.tutorial_pictures import commands
from ldm.images import open_image
from tests.app.conftest import Ldm

pytestmark = pytest.mark.torture  # a minute; the words of every command are tried by tests/app/test_cli.py
DOCS = Path(__file__).parents[2] / "docs"
LESS = {
    "train": ("run.steps=2", "run.batch=8", "run.save=2", "run.preview=2", "run.evaluate=2", "data.validation=8"),
    "personalize": ("--steps", "2", "--checkpoints", "1", "--prior", "4", "--batch", "2", "--prompt", "{}",
                    "--unrelated", "dog face"),
    "generate": ("--steps", "4"),
}  # fmt: skip
MOST = {"data": 60, "generate": 1}  # pictures


def shortened(words: list[str]) -> Iterator[str]:
    for before, word in zip(["", *words], words, strict=False):
        yield str(min(int(word), MOST[words[0]])) if before == "--count" else word
    yield from LESS.get(words[0], ())


def run(ldm: Ldm, page: str) -> list[str]:
    """What ran, by its first word."""
    told = commands((DOCS / page).read_text("utf-8"))
    for words in told:
        done = ldm(*shortened(words))
        assert done.status == 0, f"ldm {' '.join(words)}\n{done.out}\n{done.err}"
    return [words[0] for words in told]


def test_a_model_of_your_own(ldm: Ldm) -> None:
    ran = run(ldm, "tutorial.md")
    assert ran == ["data", "data", "train", "train", "train", "generate", "train", "generate"]
    assert open_image("outputs/0001-1.png").pixels.shape == (64, 64, 3)
    for part in ("autoencoder", "clip", "diffusion", "controlnet"):
        assert Path(f"runs/pictures/{part}/report.html").is_file()


def test_your_own_subject(ldm: Ldm) -> None:
    ran = run(ldm, "your-subject.md")
    assert ran == ["data", "data", "personalize", "generate", "generate", "generate", "generate", "generate", "verify"]
    assert Path("runs/zwx/report.html").is_file() and Path("hat/0001-1.png").is_file()
    house, beside, together = (open_image(f"{name}.png").pixels for name in ("house", "beside", "together"))
    assert (beside[:, 64:] == house).all() and (together[:, 64:] == house).all()
    assert (together[:, :64] != beside[:, :64]).any()
