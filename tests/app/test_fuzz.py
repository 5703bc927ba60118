"""Random command lines: whatever is typed, an exit status and words come back, never a traceback or a bug report."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from app.cli import COMMANDS
from app.options import OPTIONS
from ldm.errors import Code
from tests.app.conftest import Ldm

ODD = [
    "",
    " ",
    "0",
    "-1",
    "1",
    "2",
    "8",
    "16x16",
    "1e999",
    "nan",
    "-inf",
    "99999999999999999999",
    "٣",
    "a,b",
    "1,2,3,4",
    "x=1",
]
ODD += [
    "=",
    ":",
    "a:b",
    "../../etc",
    "\x1b[2J",
    "é👩‍🎨",
    "\ud800",
    "a\x00b",
    "none",
    "true",
    "null",
    "{",
    "[[",
    "%s",
    "-",
    "--",
    "x" * 5000,
]
ODD += [
    "model=x,image=y",
    "alpha",
    "box:0,0,8,8",
    "box:nan,1,2,3",
    "colour:#zzzzzz",
    "polygon:",
    "ddim",
    "karras",
    "lanczos",
]
ODD += [
    "photo.png",
    "notes.txt",
    "folder",
    "x=guidance:1,2",
    "y=steps:0",
    "x=mask:",
    "z",
    "a1111",
    "png",
    "cpu",
    "float32",
    "model",
]
SETS = [
    "steps=0",
    "seed=1.5",
    "guidance=3",
    "guidance.scale=2",
    "image.x=1",
    "loras=[]",
    "controls=[1]",
    "pad=[1]",
    "sigmas=0",
    "a.b.c=1",
]
SETS += [
    "mask=5",
    "image=5",
    "loras=[{}]",
    'loras=[{"path": 3}]',
    "embeddings=[1]",
    "hires=1",
    "tile={}",
    "steps={",
    "solver=3",
    "prompt=5",
]
GOOD = {
    "--negative": "dog",
    "--dialect": "comfy",
    "--clip-skip": "1",
    "--size": "16x24",
    "--solver": "euler",
    "--spacing": "karras",
    "--sigmas": "5,1,0",
    "--eta": "0.5",
    "--guidance": "3",
    "--rescale": "0.5",
    "--guidance-interval": "0,0.5",
    "--guidance-method": "apg",
    "--pag": "1",
    "--seed": "3",
    "--count": "2",
    "--batch": "1",
    "--variation": "0.5",
    "--variation-seed": "4",
    "--hires": "2",
    "--tile": "16,8",
    "--image": "photo.png",
    "--strength": "0.9",
    "--mask": "box:2,2,8,8",
    "--fill": "noise",
    "--fill-colour": "#102030",
    "--padding": "4",
    "--mask-blur": "2",
    "--pad": "8",
    "--control": "model=control,image=photo.png,hint=canny",
    "--set": "guidance.apg_eta=0.5",
    "--model": "model",
    "--vae": "model",
    "--device": "cpu",
    "--dtype": "float32",
    "--offload": "model",
    "--from": "photo.png",
    "--inputs": "folder",
    "--prompts": "notes.txt",
    "--grid": "x=guidance:1,2",
    "--out": "folder",
    "--format": "webp",
    "--preview-every": "1",
}
LINES = 200


def line(rng: random.Random) -> list[str]:
    """A command line, likely to get far: right names, and a right value in three cases of four."""
    if rng.random() < 0.2:
        command = [rng.choice([e.name for e in COMMANDS] + ["x", "--json"])]
        return command + [
            rng.choice([*ODD, "list", "show", "inspect", "convert", "check"]) for _ in range(rng.randrange(4))
        ]
    argv = ["generate", *rng.sample(["a", "cat", "(b:1.2)", "{c|d}", "\ud800", "__e__"], rng.choice([0, 1, 1, 1, 2]))]
    for option in rng.sample(OPTIONS, rng.randrange(1, 6)):
        argv.append(rng.choice(option.flag.split("/")))
        if option.kind != "switch":
            odd = rng.choice(SETS if option.flag == "--set" else ODD)
            argv.append(GOOD.get(option.flag, odd) if rng.random() < 0.75 else odd)
    return [*argv, "--json"] if rng.random() < 0.2 else argv


@pytest.fixture(autouse=True)
def no_server_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ldm serve` alone is a good command line, which does not end: here it ends as soon as it listens."""
    monkeypatch.setattr("uvicorn.Server.run", lambda *_: None)


@pytest.mark.parametrize("seed", range(2))
def test_random_command_lines_end_in_words(
    ldm: Ldm, tiny_sd1: Path, tiny_controlnet: Path, tmp_path: Path, seed: int
) -> None:
    type_lines(ldm, tiny_sd1, tiny_controlnet, tmp_path, seed, LINES // 4)


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(2, 24))
def test_many_random_command_lines_end_in_words(
    ldm: Ldm, tiny_sd1: Path, tiny_controlnet: Path, tmp_path: Path, seed: int
) -> None:
    type_lines(ldm, tiny_sd1, tiny_controlnet, tmp_path, seed, LINES)


def type_lines(ldm: Ldm, model: Path, control: Path, folder: Path, seed: int, count: int) -> None:
    rng = random.Random(seed)
    (folder / "notes.txt").write_text("a cat\nb")
    (folder / "folder").mkdir()
    assert ldm("generate", "a", "--model", model, "--steps", 1, "--out", "photo.png").status == 0
    (folder / "model").symlink_to(model)
    (folder / "control").symlink_to(control)
    for _ in range(count):
        argv = line(rng)
        if argv[0] == "generate":
            argv += ["--steps", "2", "--model", "model"]
        done = ldm(*argv)
        shown = done.out + done.err
        assert 0 <= done.status <= 9 and done.status != Code.BUG, (argv, shown)
        assert "Traceback" not in shown, argv
        assert done.status == 0 or "fix" in shown or "verdict" in shown, (argv, shown)
        assert "\x1b[2J" not in shown, argv


def test_a_folder_whose_name_has_no_bytes_is_refused_in_words(ldm: Ldm, tiny_sd1: Path) -> None:
    done = ldm("generate", "a", "--exact", "--out", "\ud800", "--steps", "2", "--model", tiny_sd1)
    assert done.status == Code.USAGE
    assert "broken characters" in done.err
