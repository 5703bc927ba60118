"""All weights of a model learn a subject, as docs/training-subject.md says it: only fewer pictures and steps."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from ldm.data.characters import character, draw_character, pose
from tests.app.conftest import Ldm

TEXT = (Path(__file__).parents[2] / "docs" / "training-subject.md").read_text("utf-8").partition("## All weights")[2]
CODE = [line[4:] for line in TEXT.splitlines() if line.startswith("    ")]
COMMANDS = [line for line in CODE if line.startswith("ldm ")]
RUN = "\n".join(line for line in CODE if not line.startswith("ldm "))


def test_the_commands_and_the_run_file_of_the_page_make_a_model(ldm: Ldm, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for how in range(4):
        draw_character(character(1), pose(how), 64).save(tmp_path / "photos" / f"{how}.png")
    (tmp_path / "whole.yaml").write_text(RUN)
    for command in COMMANDS:
        words = ["4" if word == "48" else word for word in shlex.split(command)[1:]]
        short = ("run.steps=2", "run.preview=0") if words[0] == "train" else ()
        done = ldm(*words, *short)
        assert done.status == 0, f"{command}\n{done.err}"
    assert len(list((tmp_path / "class").glob("*.png"))) == 4
    assert (tmp_path / "runs" / "zwx-whole" / "model" / "unet").is_dir()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_what_the_page_says_of_the_kind_is_asked_for(kind: str, ldm: Ldm, tiny_sd1: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    draw_character(character(1), pose(0), 64).save(tmp_path / "photos" / "0.png")
    model = f"task: {{type: diffusion, unet: {tiny_sd1}, vae: {tiny_sd1}, text: {tiny_sd1}}}"
    data = "data: {path: photos, size: 16, caption: a cat}"
    (tmp_path / "whole.yaml").write_text(f"{model}\n{data}\nrun: {{out: run, steps: 1, batch: 1, preview: 0}}\n")
    silent = ldm("train", "whole.yaml")
    assert silent.status == 2 and "task.noise.kind=epsilon" in silent.err and "Traceback" not in silent.err
    assert ldm("train", "whole.yaml", f"task.noise.kind={kind}").status == 0
