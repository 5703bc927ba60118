"""What ships beside models is asked for by name, and a picture made with it can be repeated."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ldm as package
from ldm.errors import Code
from ldm.images import from_rgb, open_image, save_image
from ldm.store import find
from pipelines.pipeline import Pipeline
from pipelines.recipe import read_recipe
from pipelines.request import LoraUse
from tests.app.conftest import Ldm

PRETRAINED = Path(package.__file__).parent / "pretrained"


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped `scenes`, with an adapter for it and a control in folders of their own."""
    home = tmp_path / "pretrained"
    shutil.copytree(PRETRAINED / "scenes", home / "scenes")
    shutil.copytree(PRETRAINED / "scenes/controlnet-edges", home / "scenes-scribble")
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    width = 32
    drawn = torch.Generator().manual_seed(0)
    factors = {f"{name}.lora_A.weight": torch.randn(4, width, generator=drawn),
               f"{name}.lora_B.weight": torch.randn(width, 4, generator=drawn)}  # fmt: skip
    (home / "scenes-fast").mkdir()
    save_file(factors, home / "scenes-fast/scenes-fast.safetensors")
    (home / "scenes-fast/sampling.json").write_text('{"steps": 2, "guidance": 1.0, "solver": "euler"}', "utf-8")
    monkeypatch.setattr(find, "_PRETRAINED", home)
    return home


def test_what_ships_is_listed_with_how_it_is_used(ldm: Ldm, shipped: Path) -> None:
    told = ldm("models", "list", "--json").json
    assert (told["adapters"], told["beside"]) == (["scenes-fast"], {"scenes-scribble": "controlnet"})
    shown = ldm("models", "list").out
    assert "--lora scenes-fast" in shown
    assert "--control model=scenes-scribble" in shown


def test_a_shipped_adapter_acts_by_its_name_and_brings_its_settings(ldm: Ldm, shipped: Path) -> None:
    order = ("generate", "a red circle", "--model", "scenes", "--seed", 1, "--steps", 3)
    plain = ldm(*order, "--out", "plain.png")
    assert plain.status == 0, plain.err
    with_it = ldm("generate", "a red circle", "--model", "scenes", "--seed", 1, "--lora", "scenes-fast", "--json")
    assert with_it.status == 0, with_it.err
    recipe = read_recipe("outputs/0001-1.png")
    assert (recipe.request["steps"], recipe.request["solver"]) == (2, "euler")
    assert [a.name for a in recipe.adapters] == ["scenes-fast.safetensors"]
    tagged = ldm(
        "generate", "a red circle<lora:scenes-fast:1>", "--model", "scenes", "--seed", 1, "--out", "tagged.png"
    )
    assert tagged.status == 0, tagged.err
    assert (open_image("tagged.png").pixels == open_image("outputs/0001-1.png").pixels).all()
    (image,) = Pipeline.load("scenes")("a red circle", seed=1, loras=[LoraUse(path=Path("scenes-fast"))])
    assert (np.asarray(image) == open_image("outputs/0001-1.png").pixels).all()
    verified = ldm("verify", "outputs/0001-1.png")
    assert verified.status == 0, verified.err


def test_an_adapter_asked_for_as_a_model_says_how_it_is_used(ldm: Ldm, shipped: Path) -> None:
    wrong = ldm("generate", "a red circle", "--model", "scenes-fast")
    assert wrong.status == Code.MODEL
    assert "--lora scenes-fast" in wrong.err


def test_an_unknown_adapter_lists_those_that_ship(ldm: Ldm, shipped: Path) -> None:
    wrong = ldm("generate", "a red circle", "--model", "scenes", "--lora", "scenes-fats")
    assert (wrong.status, "scenes-fast" in wrong.err) == (Code.FILE, True)
    tag = ldm("generate", "a red circle<lora:scenes-fats:1>", "--model", "scenes")
    assert (tag.status, "<lora:scenes-fast:...>" in tag.err) == (Code.FILE, True)


def test_of_several_prompts_each_has_the_settings_of_its_own_tags(ldm: Ldm, shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle<lora:scenes-fast:1>\na red circle\n", "utf-8")
    done = ldm("generate", "--prompts", "prompts.txt", "--model", "scenes", "--seed", 1)
    assert done.status == 0, done.err
    assert [read_recipe(f"outputs/000{i}-1.png").steps for i in (1, 2)] == [2, 25]


def test_the_folder_of_an_adapter_as_it_is_shipped_stands_for_its_file(shipped: Path, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(shipped / "scenes-fast", tmp_path / "elsewhere/scenes-fast")
    assert find.find_adapter(elsewhere) == elsewhere / "scenes-fast.safetensors"


def test_a_control_that_is_nearly_named_right_is_suggested(ldm: Ldm, shipped: Path, tmp_path: Path) -> None:
    save_image(from_rgb(np.zeros((32, 32, 3), np.float32)), tmp_path / "lines.png")
    wrong = ldm("generate", "a red circle", "--model", "scenes", "--control", "model=scenes-scribbel,image=lines.png")
    assert wrong.status == Code.FILE and "Use scenes-scribble" in wrong.err


def test_each_cell_of_a_grid_has_the_settings_of_its_own_adapters(ldm: Ldm, shipped: Path) -> None:
    prompts = "x=prompt:a red circle,a red circle <lora:scenes-fast:1>"
    done = ldm("generate", "a red circle", "--model", "scenes", "--seed", 1, "--grid", prompts)
    assert done.status == 0, done.err
    assert [read_recipe(f"outputs/000{i}-1.png").steps for i in (1, 2)] == [25, 2]


def test_what_a_wildcard_brings_says_what_it_was_made_for(ldm: Ldm, shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "wild").mkdir()
    (tmp_path / "wild/fast.txt").write_text("<lora:scenes-fast:1>\n", "utf-8")
    prompt = ("generate", "a red circle __fast__", "--model", "scenes", "--wildcards", "wild")
    done = ldm(*prompt, "--seed", 1, "--steps", 3)
    assert done.status == 0 and "scenes-fast.safetensors was made for solver euler" in done.err, done.err


def test_parts_asked_for_in_the_wrong_place_say_where_they_belong(ldm: Ldm, tmp_path: Path) -> None:
    save_image(from_rgb(np.zeros((64, 64, 3), np.float32)), tmp_path / "lines.png")
    for options, told in (
        (["--model", "emoji-clip"], "--ranker emoji-clip"),
        (["--model", "emoji-scribble"], "--control model=emoji-scribble"),
        (["--control", "model=emoji-clip,image=lines.png"], "is a CLIP, not a ControlNet"),
        (["--control", "model=edges,image=lines.png"], "--model scenes"),
        (["--lora", "emoji-fats"], "emoji-fast"),
        (["--lora", "emoji-scribble"], "is no adapter"),
        (["--model", "emoji-fas"], "Use emoji-fast"),
    ):
        wrong = ldm("generate", "red apple", "--seed", 1, *options)
        assert wrong.status != 0 and told in wrong.err, (options, wrong.err)


def test_a_converted_model_keeps_its_settings_and_its_tiny_decoder(ldm: Ldm) -> None:
    assert ldm("models", "convert", "emoji", "copy").status == 0
    for name in ("sampling.json", "prompts.json", "tiny-decoder/config.json"):
        assert Path("copy", name).read_bytes() == (PRETRAINED / "emoji" / name).read_bytes()


def test_a_folder_of_that_name_is_no_adapter_and_hides_none(ldm: Ldm, shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "scenes-fast").mkdir()
    done = ldm("generate", "a red circle", "--model", "scenes", "--lora", "scenes-fast", "--seed", 1)
    assert done.status == 0, done.err


def test_words_are_remarked_on_beside_what_ships_and_not_beside_ones_own(
    ldm: Ldm, shipped: Path, tmp_path: Path
) -> None:
    def notes(*order: object) -> str:
        done = ldm("generate", *order, "--model", "scenes", "--seed", 1, "--json")
        assert done.status == 0, done.err
        return " ".join(read_recipe(sorted((tmp_path / "outputs").glob("*.png"))[-1]).notes)

    assert "never read 'dog'" in notes("a dog", "--lora", "scenes-fast")
    assert "never read 'dog'" in notes("a dog<lora:scenes-fast:1>")
    (tmp_path / "loras").mkdir()
    shutil.copy(shipped / "scenes-fast/scenes-fast.safetensors", tmp_path / "loras")
    assert "never read" not in notes("a dog<lora:scenes-fast:1>")


def test_a_private_recipe_names_a_control_that_ships(ldm: Ldm, shipped: Path) -> None:
    order = ("generate", "a red circle", "--model", "scenes", "--seed", 1, "--steps", 2)
    assert ldm(*order, "--out", "a.png").status == 0
    control = "model=scenes-scribble,image=a.png,hint=canny"
    done = ldm(*order, "--control", control, "--private", "--out", "b.png")
    assert done.status == 0, done.err
    verified = ldm("verify", "b.png", "--prompt", "a red circle")
    assert verified.status == 0, verified.err


def test_a_damaged_folder_does_not_hide_the_others(ldm: Ldm, shipped: Path) -> None:
    (shipped / "scenes-scribble/diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    assert ldm("models", "list", "--json").json["beside"] == {"scenes-scribble": "unreadable"}
    assert "scenes-scribble" in ldm("models", "list").out


def test_a_file_of_that_name_goes_before_the_shipped_adapter(ldm: Ldm, shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "scenes-fast").write_bytes(b"no weights")
    wrong = ldm("generate", "a red circle", "--model", "scenes", "--lora", "scenes-fast")
    assert wrong.status != 0


def test_a_shipped_adapter_is_inspected_by_its_name(ldm: Ldm, shipped: Path) -> None:
    assert ldm("adapter", "inspect", "scenes-fast", "--json").json["tensors"] == 2


def test_a_wrong_option_is_found_before_torch_is_loaded(tmp_path: Path) -> None:
    """Settings are looked for beside adapters before an order is checked; that must not cost seconds."""
    code = (
        "import sys; from app.cli import run;"
        "status = run(['generate', 'a <lora:x:1>', '--model', 'scenes', '--mask', 'nowhere.png']);"
        "print(status, 'torch' in sys.modules)"
    )
    done = subprocess.run((sys.executable, "-c", code), capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == [str(int(Code.FILE)), "False"]
