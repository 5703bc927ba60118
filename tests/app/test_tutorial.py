"""The tutorial as it is written, each command in turn, in an empty folder: only fewer pictures and steps."""

from __future__ import annotations

import shlex
from pathlib import Path

from ldm.images import open_image
from tests.app.conftest import Ldm

TEXT = (Path(__file__).parents[2] / "docs/tutorial.md").read_text("utf-8")
COMMANDS = [line.strip() for line in TEXT.splitlines() if line.startswith("    ldm ")]
SHORT = ("run.steps=2", "run.batch=8", "run.save=2", "run.preview=2", "run.evaluate=2", "data.validation=8")


def shortened(command: str) -> list[str]:
    words = shlex.split(command)[1:]
    if words[0] == "train":
        return [*words, *SHORT]
    told = {"--count": {"data": "60", "generate": "1"}[words[0]]}
    return [told.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def test_every_command_runs_in_turn_and_a_picture_comes_out(ldm: Ldm) -> None:
    assert [command.split()[1] for command in COMMANDS] == [
        *["data"] * 2,
        *["train"] * 3,
        "generate",
        "train",
        "generate",
    ]
    for command in COMMANDS:
        done = ldm(*shortened(command))
        assert done.status == 0, f"{command}\n{done.err}"
    assert open_image("outputs/0001-1.png").pixels.shape == (64, 64, 3)
    for part in ("autoencoder", "clip", "diffusion", "controlnet"):
        assert Path(f"runs/pictures/{part}/report.html").is_file()
