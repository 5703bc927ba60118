"""From the command line to pictures and back: made, repeated, proved, stopped; with tiny real models."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.cli import run
from app.errors import INTERRUPTED
from app.progress import Reporter
from ldm.errors import Code
from ldm.images import Picture, open_image, save_image
from pipelines.recipe import read_recipe
from pipelines.steps import Step
from tests.app.conftest import Ldm
from tests.train.tasks.clips import make as clip_task

FEW = ("--steps", 3, "--exact")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    return save_image(
        Picture(rng.integers(0, 256, (16, 16, 3), np.uint8), text={"workflow": "{}"}), tmp_path / "photo.png"
    )


def test_a_picture_is_made_repeated_and_proved(ldm: Ldm, tiny_sd1: Path, tmp_path: Path) -> None:
    made = ldm("generate", "a", "red", "{square|circle}", "--model", tiny_sd1, "--seed", 7, *FEW)
    assert (made.status, made.out) == (0, "outputs/0001-7.png\n")
    assert "seed 7, 3 steps run" in made.err
    first = tmp_path / "outputs" / "0001-7.png"
    recipe = read_recipe(first)
    assert recipe.template == "a red {square|circle}"
    assert recipe.prompt in ("a red square", "a red circle")
    assert str(tmp_path) not in recipe.to_json() and str(tiny_sd1.parent) not in recipe.to_json()
    assert read_recipe(first.with_suffix(".json")) == recipe

    again = ldm("generate", "--from", first, "--model", tiny_sd1)
    assert again.status == 0
    assert sha256(tmp_path / "outputs" / "0002-7.png") == sha256(first)

    proved = ldm("verify", first, "--model", tiny_sd1)
    assert proved.status == 0
    assert "equal" in proved.out

    lost = ldm("verify", first, "--model", "conv.safetensors")
    assert lost.status == Code.FILE and "The model 'conv.safetensors' was not found." in lost.err


def test_a_first_picture_waits_for_no_library_that_it_does_not_need(tmp_path: Path) -> None:
    slow = ("diffusers", "transformers", "peft", "accelerate", "torch._dynamo", "sympy", "open_clip", "gradio")
    words = ["generate", "red apple", "--lora", "emoji-fast", "--steps", "1", "--out", str(tmp_path), "--quiet"]
    code = (
        f"import sys; from app.cli import run; s = run({words!r}); print([m for m in {slow!r} if m in sys.modules], s)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


def test_each_picture_of_a_batch_repeats_alone(ldm: Ldm, tiny_sd1: Path, tmp_path: Path) -> None:
    made = ldm("generate", "a cat", "--model", tiny_sd1, "--seed", 5, "--count", 2, *FEW, "--json", "--size", "16x16")
    pictures = made.json["pictures"]
    assert [p["seed"] for p in pictures] == [5, 6]
    second = tmp_path / pictures[1]["path"]
    assert ldm("generate", "--from", second, "--model", tiny_sd1).status == 0
    assert sha256(tmp_path / "outputs" / "0003-6.png") == sha256(second)
    alone = ldm("generate", "a cat", "--model", tiny_sd1, "--seed", 6, *FEW, "--json", "--size", "16x16")
    assert alone.json["pictures"][0]["pixels"] == pictures[1]["pixels"]


def test_a_repetition_takes_what_is_given_over_the_recipe(ldm: Ldm, tiny_sd1: Path, tmp_path: Path) -> None:
    ldm("generate", "a cat", "--model", tiny_sd1, "--seed", 5, *FEW, "--guidance", 3, "--rescale", 0.5)
    ldm(
        "generate",
        "--from",
        "outputs/0001-5.json",
        "--model",
        tiny_sd1,
        "--steps",
        2,
        "--guidance",
        4,
        "--negative",
        "dog",
    )
    recipe = read_recipe(tmp_path / "outputs" / "0002-5.png")
    assert (recipe.prompt, recipe.negative, recipe.steps, recipe.seed) == ("a cat", "dog", 2, 5)
    assert recipe.request["guidance"] == {"scale": 4.0, "rescale": 0.5}


def test_inputs_are_found_by_content_or_named(ldm: Ldm, tiny_sd1: Path, tmp_path: Path, photo: Path) -> None:
    made = ldm("generate", "a dog", "--image", photo, "--mask", "box:2,2,8,8", "--model", tiny_sd1, "--seed", 1, *FEW)
    assert made.status == 0
    path = tmp_path / "outputs" / "0001-1.png"
    before, after = open_image(photo), open_image(path)
    changed = (before.pixels != after.pixels).any(axis=2)
    assert changed[2:10, 2:10].any() and changed.sum() == changed[2:10, 2:10].sum()
    assert after.text["workflow"] == "{}"

    assert ldm("verify", path, "--model", tiny_sd1).status == 0
    (tmp_path / "away").mkdir()
    photo.rename(tmp_path / "away" / "other.png")
    lost = ldm("verify", path, "--model", tiny_sd1, "--json")
    assert lost.status == Code.DIFFERENT
    assert lost.json["verdicts"][0]["outcome"] == "missing"
    assert "photo.png" in lost.json["verdicts"][0]["missing"][0]
    assert ldm("verify", path, "--model", tiny_sd1, "--inputs", tmp_path / "away").status == 0
    failed = ldm("generate", "--from", path, "--model", tiny_sd1)
    assert failed.status == Code.DIFFERENT
    assert "--inputs" in failed.err


def test_controls_take_part_and_are_repeated(
    ldm: Ldm, tiny_sd1: Path, tiny_controlnet: Path, tmp_path: Path, photo: Path
) -> None:
    spec = f"model={tiny_controlnet},image={photo},hint=canny,weight=0.8,end=0.6"
    with_it = ldm("generate", "a cat", "--control", spec, "--model", tiny_sd1, "--seed", 1, *FEW, "--json")
    without = ldm("generate", "a cat", "--model", tiny_sd1, "--seed", 1, *FEW, "--json")
    assert with_it.json["pictures"][0]["pixels"] != without.json["pictures"][0]["pixels"]
    path = tmp_path / with_it.json["pictures"][0]["path"]
    assert str(tiny_controlnet) not in read_recipe(path).to_json()
    done = ldm("verify", path, "--model", tiny_sd1, "--inputs", tiny_controlnet.parent)
    assert (done.status, "equal" in done.out) == (0, True)


def test_a_changed_picture_is_found_out(ldm: Ldm, tiny_sd1: Path, tmp_path: Path) -> None:
    ldm("generate", "a cat", "--model", tiny_sd1, "--seed", 1, *FEW)
    honest = open_image(tmp_path / "outputs" / "0001-1.png")
    pixels = honest.pixels.copy()
    pixels[3, 4, 1] ^= 16
    forged = save_image(Picture(pixels), tmp_path / "forged.png", text=dict(honest.text))
    done = ldm("verify", forged, "--model", tiny_sd1, "--json")
    verdict = done.json["verdicts"][0]
    assert (done.status, verdict["outcome"], verdict["difference"]) == (Code.DIFFERENT, "different", 16.0)
    assert "were changed" in verdict["notes"][-1]


def test_a_changed_recipe_is_found_out(ldm: Ldm, tiny_sd1: Path, tmp_path: Path) -> None:
    ldm("generate", "a cat", "--model", tiny_sd1, "--seed", 1, *FEW)
    honest = open_image(tmp_path / "outputs" / "0001-1.png")
    told = json.loads(honest.text["ldm"])
    told["request"]["prompt"] = "a dog"
    forged = save_image(Picture(honest.pixels), tmp_path / "forged.png", text={"ldm": json.dumps(told)})
    done = ldm("verify", forged, "--model", tiny_sd1, "--json")
    assert (done.status, done.json["verdicts"][0]["outcome"]) == (Code.DIFFERENT, "different")


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_files_are_proved_and_forgeries_found(ldm: Ldm, tiny_sd1: Path, tmp_path: Path, suffix: str) -> None:
    ldm("generate", "a cat", "--model", tiny_sd1, "--seed", 1, *FEW, "--format", suffix)
    path = tmp_path / "outputs" / f"0001-1.{suffix}"
    assert ldm("verify", path, "--model", tiny_sd1).status == 0
    seen = open_image(path)
    forged = save_image(Picture(255 - seen.pixels), tmp_path / f"forged.{suffix}", text=dict(seen.text))
    assert ldm("verify", forged, "--model", tiny_sd1).status == Code.DIFFERENT


def test_another_model_under_the_name_counts_as_missing(ldm: Ldm, tiny_sd1: Path, tiny_inpaint9: Path) -> None:
    ldm("generate", "a cat", "--model", tiny_sd1, "--seed", 1, *FEW)
    done = ldm("verify", "outputs/0001-1.png", "--model", tiny_inpaint9, "--json")
    assert done.status == Code.DIFFERENT
    assert "what is there is" in done.json["verdicts"][0]["missing"][0]


def test_private_pictures_need_their_words(ldm: Ldm, tiny_sd1: Path, tmp_path: Path) -> None:
    ldm("generate", "a secret cat", "--negative", "dog", "--model", tiny_sd1, "--seed", 1, *FEW, "--private")
    path = tmp_path / "outputs" / "0001-1.png"
    assert b"secret" not in path.read_bytes() + path.with_suffix(".json").read_bytes()
    assert ldm("verify", path, "--model", tiny_sd1).status == Code.DIFFERENT
    words = ("--prompt", "a secret cat", "--negative", "dog")
    assert ldm("verify", path, "--model", tiny_sd1, *words).status == 0
    assert ldm("verify", path, "--model", tiny_sd1, "--prompt", "a cat").status == Code.DIFFERENT


def test_ctrl_c_keeps_the_picture_and_its_recipe(
    ldm: Ldm, tiny_sd1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Reporter.step

    def interrupted(self: Reporter, step: Step) -> None:
        watched(self, step)
        if (step.stage, step.index) == ("sample", 3):
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "step", interrupted)
        done = ldm("generate", "a cat", "--model", tiny_sd1, "--seed", 1, "--steps", 6, "--exact", "--count", 3)
    assert done.status == INTERRUPTED
    assert done.out == "outputs/0001-1.png\n"
    assert "3 steps run, partial" in done.err
    path = tmp_path / "outputs" / "0001-1.png"
    recipe = read_recipe(path)
    assert (recipe.partial, recipe.steps, recipe.request["steps"]) == (True, 3, 6)
    proved = ldm("verify", path, "--model", tiny_sd1)
    assert (proved.status, "equal" in proved.out) == (0, True)
    whole = ldm("generate", "--from", path, "--model", tiny_sd1, "--json")
    assert whole.json["pictures"][0]["partial"] is False


def test_grids_make_their_pictures_and_a_table(ldm: Ldm, tiny_sd1: Path, tmp_path: Path) -> None:
    axes = ("--grid", "x=guidance:1,5", "--grid", "y=steps:2,3")
    done = ldm("generate", "a cat", "--model", tiny_sd1, "--seed", 1, "--exact", *axes)
    names = [Path(line).name for line in done.out.splitlines()]
    assert names == ["0001-1.png", "0002-1.png", "0003-1.png", "0004-1.png", "0005-grid.png"]
    recipes = [read_recipe(tmp_path / "outputs" / name) for name in names[:4]]
    assert [(r.request["guidance"]["scale"], r.steps) for r in recipes] == [(1, 2), (5, 2), (1, 3), (5, 3)]
    table = open_image(tmp_path / "outputs" / names[4])
    assert table.width > 32 and table.height > 32


def test_prompts_come_from_a_file(ldm: Ldm, tiny_sd1: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n\n  a dog  \n", "utf-8")
    done = ldm("generate", "--prompts", "prompts.txt", "--model", tiny_sd1, "--seed", 1, *FEW, "--json")
    prompts = [read_recipe(tmp_path / p["path"]).prompt for p in done.json["pictures"]]
    assert prompts == ["a cat", "a dog"]


@pytest.mark.parametrize(("raw", "line"), [(b"a\n\xff\xfe\n", "Line 2"), (b"a\n\nb\0c", "Line 3")])
def test_prompts_that_are_no_text_are_refused(ldm: Ldm, tiny_sd1: Path, tmp_path: Path, raw: bytes, line: str) -> None:
    (tmp_path / "prompts.txt").write_bytes(raw)
    done = ldm("generate", "--prompts", "prompts.txt", "--model", tiny_sd1)
    assert done.status == Code.FILE
    assert line in done.err


def test_what_was_changed_on_the_way_is_told_once(ldm: Ldm, tiny_sd1: Path, tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16)).save(tmp_path / "print.jpg")
    done = ldm("generate", "a cat", "--image", "print.jpg", "--model", tiny_sd1, "--seed", 1, *FEW, "--count", 2)
    assert done.status == 0
    assert len([line for line in done.err.splitlines() if line.startswith("note: ") and "CMYK" in line]) == 1
    assert "CMYK" not in done.out


def test_a_seed_of_zero_in_a_request_file_is_a_seed(ldm: Ldm, tiny_sd1: Path, tmp_path: Path) -> None:
    (tmp_path / "cat.yaml").write_text("prompt: a cat\nsteps: 1\nseed: 0\n")
    done = ldm("generate", "--from", "cat.yaml", "--model", tiny_sd1, "--json")
    assert done.json["pictures"][0]["seed"] == 0


def test_a_sidecar_proves_a_picture_whose_metadata_is_gone(ldm: Ldm, tiny_sd1: Path, tmp_path: Path) -> None:
    ldm("generate", "a cat", "--model", tiny_sd1, "--seed", 1, *FEW)
    path = tmp_path / "outputs" / "0001-1.png"
    bare = Picture(open_image(path).pixels)
    path.unlink()
    alone = ldm("verify", path.with_suffix(".json"), "--model", tiny_sd1)
    assert (alone.status, "no picture beside it" in alone.err) == (Code.FILE, True)
    save_image(bare, path)
    assert ldm("verify", path, "--model", tiny_sd1).status == Code.FILE
    done = ldm("verify", path.with_suffix(".json"), "--model", tiny_sd1)
    assert (done.status, "equal" in done.out) == (0, True)


def test_a_pipe_takes_the_bytes(
    tiny_sd1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    status = run(
        ["generate", "a cat", "--model", str(tiny_sd1), "--seed", "1", "--steps", "2", "--out", "-", "--quiet"]
    )
    out, err = capfdbinary.readouterr()
    assert (status, err) == (0, b"")
    (tmp_path / "piped.png").write_bytes(out)
    assert read_recipe(tmp_path / "piped.png").seed == 1
    assert not (tmp_path / "outputs").exists()


def test_previews_are_saved_on_the_way(ldm: Ldm, tiny_sd1: Path, tmp_path: Path) -> None:
    ldm("generate", "a cat", "--model", tiny_sd1, "--seed", 1, "--steps", 5, "--preview-every", 2, "--count", 2)
    names = sorted(p.name for p in (tmp_path / "outputs").glob("*.png"))
    previews = [f"000{i}-{i}-step00{k}.png" for i in (1, 2) for k in (2, 4)]
    assert names == sorted(["0001-1.png", "0002-2.png", *previews])


def test_a_dry_run_makes_nothing(ldm: Ldm, tiny_sd1: Path, tmp_path: Path) -> None:
    done = ldm("generate", "a cat", "--model", tiny_sd1, "--dry-run", "--json", "--count", 3)
    plan = done.json["plans"][0]
    assert (plan["pictures"], plan["steps"]) == (3, 25)
    assert plan["seconds"] > 0 and plan["weights_mb"] > 0
    assert not (tmp_path / "outputs").exists()


def test_a_plan_is_told_in_words(ldm: Ldm, tiny_sd1: Path) -> None:
    done = ldm("generate", "a cat", "--model", tiny_sd1, "--dry-run", "--steps", 1)
    assert done.out.startswith("1 picture of ") and " 1 step of " in done.out and " MB of work" in done.out


def test_a_prompt_is_explained(ldm: Ldm, tiny_sd1: Path) -> None:
    done = ldm("generate", "a (red:1.3) cat", "--negative", "dog", "--model", tiny_sd1, "--explain-prompt")
    assert done.status == 0
    assert "1.300" in done.out and "negative: dog" in done.out


def test_any_seed_is_shown(ldm: Ldm, tiny_sd1: Path) -> None:
    seeds = {
        ldm("generate", "a", "--model", tiny_sd1, "--steps", 1, "--seed", "-1", "--json").json["pictures"][0]["seed"]
        for _ in "ab"
    }
    assert len(seeds) == 2


def test_pictures_of_other_programs_are_made_again_with_notes(ldm: Ldm, tiny_sd1: Path, tmp_path: Path) -> None:
    text = (
        "a cat\nNegative prompt: dog\nSteps: 3, Sampler: DPM++ 2M Karras, CFG scale: 4, Seed: 8, Size: 16x16, Model: v1"
    )
    theirs = save_image(Picture(np.zeros((16, 16, 3), np.uint8)), tmp_path / "theirs.png", text={"parameters": text})
    done = ldm("generate", "--from", theirs, "--model", tiny_sd1)
    assert done.status == 0
    assert "GPU" in done.err
    recipe = read_recipe(tmp_path / "outputs" / "0001-8.png")
    assert (recipe.prompt, recipe.negative, recipe.solver, recipe.spacing) == ("a cat", "dog", "dpm++ 2m", "karras")
    refused = ldm("verify", theirs)
    assert refused.status == Code.DIFFERENT
    assert "--from" in refused.err


def test_a_request_file_is_run(ldm: Ldm, tiny_sd1: Path, tmp_path: Path) -> None:
    (tmp_path / "cat.yaml").write_text("prompt: a cat\nsteps: 2\nseed: 4\nguidance: {scale: 2.0}\n")
    assert ldm("config", "check", "cat.yaml").status == 0
    assert ldm("generate", "--from", "cat.yaml", "--model", tiny_sd1, "--steps", 3).status == 0
    recipe = read_recipe(tmp_path / "outputs" / "0001-4.png")
    assert (recipe.prompt, recipe.steps, recipe.request["guidance"]) == ("a cat", 3, {"scale": 2.0})


@pytest.mark.parametrize(
    ("argv", "status", "said"),
    [
        (["--model", "nowhere"], Code.FILE, "nowhere"),
        (["--device", "warp"], Code.USAGE, "warp"),
        (["--dtype", "int3"], Code.USAGE, "int3"),
        (["--offload", "all"], Code.USAGE, "none or model"),
        (["--image", "none.png"], Code.FILE, "--image: none.png"),
        (["--image", "text.png"], Code.FILE, "text.png"),
        (["--mask", "alpha"], Code.USAGE, "--image"),
        (["--image", "blank.png", "--mask", "boxx:1,2,3,4"], Code.USAGE, "Did you mean box?"),
        (["--control", "model=x"], Code.USAGE, "image=FILE"),
        (["--solver", "DPM fast"], Code.USAGE, "solver 'DPM fast'"),
        (["--spacing", "karas"], Code.USAGE, "karras"),
        (["--prompts", "text.png"], Code.USAGE, "has a prompt too"),
        (["--from", "text.png"], Code.FILE, "text.png"),
        (["--from", "blank.png"], Code.FILE, "no recipe"),
        (["--out", "-", "--json"], Code.USAGE, "stdout"),
        (["--out", "x.png", "--grid", "x=steps:1,2"], Code.USAGE, "several pictures"),
        (["--out", "blank.png"], Code.FILE, "exists already"),
        (["--preview-every", "0"], Code.USAGE, "whole number"),
        (["--lora", "blank.png:0.5"], Code.FILE, "blank.png"),
        (["--wildcards", "nowhere"], Code.FILE, "--wildcards: nowhere"),
        (["--lora-folder", "blank.png"], Code.FILE, "is a file"),
        (["--refiner", "nowhere"], Code.FILE, "--refiner: "),
        (["--image", "blank.png", "--control", "model=nowhere"], Code.FILE, "--control: "),
        (["<lora:nowhere:1>"], Code.FILE, "nowhere.safetensors"),
        (["--out", "blank.png/x.png"], Code.FILE, "is a file, not a folder"),
        (["--out", "x.gif"], Code.USAGE, "not written"),
        (["--model", ""], Code.USAGE, "empty"),
        (["--size", "16384x16384"], Code.RESOURCE, "--tile"),
        (["--embedding", "none.safetensors"], Code.FILE, "none.safetensors"),
    ],
)
def test_what_cannot_work_is_said_and_no_picture_made(
    ldm: Ldm, tiny_sd1: Path, tmp_path: Path, argv: list[str], status: int, said: str
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (16, 16)).save(tmp_path / "blank.png")
    model = [] if "--model" in argv else ["--model", str(tiny_sd1)]
    done = ldm("generate", "a cat", "--steps", 1, *model, *argv)
    assert done.status == status, done.err
    assert said in done.err + done.out
    assert "Traceback" not in done.err
    assert not (tmp_path / "outputs").exists()


def test_nothing_is_left_in_the_settings_of_the_process(ldm: Ldm, tiny_sd1: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    ldm("generate", "a", "--model", tiny_sd1, "--steps", 1)
    assert signal.getsignal(signal.SIGINT) is before
    assert sys.stdout.writable()


def test_the_shipped_model_makes_a_proved_picture_without_any_option(ldm: Ldm, tmp_path: Path) -> None:
    done = ldm("generate", "octopus", "--seed", 1)
    assert done.status == 0
    assert ldm("verify", "outputs/0001-1.png").status == 0
    assert ldm("generate", "--from", "outputs/0001-1.png").status == 0
    assert sha256(tmp_path / "outputs" / "0002-1.png") == sha256(tmp_path / "outputs" / "0001-1.png")


def test_the_best_of_several_is_kept_with_a_seed_that_makes_it_alone(ldm: Ldm, tiny_sd1: Path, tmp_path: Path) -> None:
    clip_task(tmp_path).save(tmp_path / "judge")
    asked = ("generate", "a red picture", "--model", tiny_sd1, "--seed", 3, *FEW)
    made = ldm(*asked, "--count", 2, "--best-of", 3, "--ranker", "judge")
    assert made.status == 0
    paths = [Path(line) for line in made.out.split()]
    recipes = [read_recipe(path) for path in paths]
    cells = ldm(*asked, "--grid", "x=guidance:1,3,5,7", "--best-of", 3, "--ranker", "judge").out.split()
    assert len(cells) == 5 and cells[-1].endswith("-grid.png")  # whichever of a cell's three is the best
    assert len(recipes) == 2 and 3 <= recipes[0].seed <= 5 and 6 <= recipes[1].seed <= 8
    for path, recipe in zip(paths, recipes, strict=True):
        assert any(note.startswith("the best of 3 by judge: ") for note in recipe.notes)
        assert ldm("verify", path, "--model", tiny_sd1).status == 0


def test_what_is_missing_for_a_choice_is_said_before_a_model_is_loaded(ldm: Ldm, tiny_sd1: Path) -> None:
    asked = ("generate", "a", "--model", tiny_sd1)
    assert "--ranker FOLDER" in ldm(*asked, "--best-of", 2).err
    assert "--best-of 4" in ldm(*asked, "--ranker", "judge").err
    assert "more than 10,000" in ldm(*asked, "--best-of", 6000, "--count", 2, "--ranker", tiny_sd1).err
    assert ldm(*asked, "--best-of", "many").status == Code.USAGE


def test_settings_that_suit_a_model_stand_where_nothing_is_said(ldm: Ldm, tiny_sd1: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(tiny_sd1, tmp_path / "own"))
    (own / "sampling.json").write_text('{"steps": 2, "guidance": 3.0, "solver": "euler"}')
    first = ldm("generate", "a", "--model", own, "--seed", 1)
    recipe = read_recipe(Path(first.out.strip()))
    assert (recipe.steps, recipe.solver, recipe.request["guidance"]["scale"]) == (2, "euler", 3.0)
    said = ldm("generate", "a", "--model", own, "--seed", 1, "--steps", 3, "--guidance", 7.5)
    told = read_recipe(Path(said.out.strip()))
    assert told.steps == 3 and "guidance" not in told.request  # the request's own default, and so it is repeated
    again = ldm("generate", "--from", said.out.strip(), "--model", own)
    assert read_recipe(Path(again.out.strip())).pixels == told.pixels
