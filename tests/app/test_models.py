"""`ldm models` and `ldm adapter`: what is here, what a file is, and the ways between formats."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftConfig
from safetensors.torch import load_file, save, save_file

from ldm.errors import Code
from pipelines.pipeline import Pipeline
from pipelines.request import LoraUse
from tests.app.conftest import Ldm
from tests.store.hub import Hub, files_of, serving


def test_models_are_listed(ldm: Ldm) -> None:
    told = ldm("models", "list", "--json").json
    assert set(told) == {"shipped", "controls", "beside", "adapters", "pulled"}
    assert told["controls"] == {"edges": "scenes"}
    shown = ldm("models", "list")
    assert shown.status == 0
    assert all(name in shown.out for name in [*told["shipped"], "--control model=edges"])


def test_a_control_inside_a_shipped_model_is_shown_by_its_short_name(ldm: Ldm) -> None:
    shown = [ldm("models", "show", name, "--json").json for name in ("edges", "controlnet-edges")]
    assert shown[0] == shown[1]
    assert (shown[0]["kind"], shown[0]["tensors"]) == ("controlnet", 60)


def test_a_model_is_shown_from_its_headers(ldm: Ldm, tiny_sd1: Path) -> None:
    told = ldm("models", "show", tiny_sd1, "--json").json
    assert (told["kind"], told["prediction"], told["path"]) == ("model folder", "epsilon", tiny_sd1.name)
    shown = ldm("models", "show", tiny_sd1).out
    assert told["fingerprint"] in shown
    assert "epsilon (scheduler_config.json" in shown


def test_a_folder_goes_through_conversion_unchanged(ldm: Ldm, tiny_sd1: Path, tmp_path: Path) -> None:
    assert ldm("models", "convert", tiny_sd1, "copy").status == 0
    assert ldm("models", "convert", tiny_sd1, "copy").status == Code.FILE  # never overwritten
    pixels = [
        ldm("generate", "a cat", "--model", m, "--seed", 1, "--steps", 2, "--exact", "--json").json["pictures"][0][
            "pixels"
        ]
        for m in (tiny_sd1, "copy")
    ]
    assert pixels[0] == pixels[1]


def test_pickles_are_refused_until_trusted(ldm: Ldm, tmp_path: Path) -> None:
    torch.save({"state_dict": {"a.weight": torch.ones(2, 2)}}, tmp_path / "old.ckpt")
    refused = ldm("models", "convert", "old.ckpt", "new.safetensors")
    assert refused.status == Code.REFUSED
    assert "--i-trust-this-file" in refused.err
    assert ldm("models", "convert", "old.ckpt", "new", "--i-trust-this-file").status == Code.USAGE
    done = ldm("models", "convert", "old.ckpt", "new.safetensors", "--i-trust-this-file", "--json")
    assert done.json == {"path": "new.safetensors"}
    assert ldm("models", "show", "new.safetensors", "--json").json["tensors"] == 1


@pytest.mark.parametrize("repo", ["no id", "../x/y", "/etc/passwd", ""])
def test_what_is_no_hub_id_is_not_asked_for(ldm: Ldm, repo: str) -> None:
    assert ldm("models", "pull", repo).status == Code.USAGE


@pytest.mark.torture
@pytest.mark.loopback
def test_a_variant_is_pulled_and_used(tiny_sd1: Path, tmp_path: Path) -> None:
    """In processes of their own: huggingface_hub reads its settings once, when it is imported."""
    plain = "unet/diffusion_pytorch_model.safetensors"
    half = "unet/diffusion_pytorch_model.fp16.safetensors"
    tensors = {name: tensor.half() for name, tensor in load_file(tiny_sd1 / plain).items()}
    with serving(Hub("author/tiny", files_of(tiny_sd1) | {half: save(tensors)})) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}

        def ldm(*argv: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", "from app.cli import main; main()", *argv]
            return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)

        wrong = ldm("models", "pull", "author/tiny", "--variant", "fp61", "--yes")
        assert (wrong.returncode, "--variant fp16" in wrong.stderr) == (Code.USAGE, True)
        pulled = ldm("models", "pull", "author/tiny", "--variant", "fp16", "--yes", "--json")
        assert pulled.returncode == 0, pulled.stderr
        folder = Path(json.loads(pulled.stdout)["path"])
        assert (folder / half).is_file() and not (folder / plain).exists()
        assert (folder / "vae" / "diffusion_pytorch_model.safetensors").is_file()
        made = ldm("generate", "a cat", "--model", "author/tiny", "--steps", "1", "--seed", "1")
        assert made.returncode == 0, made.stderr
    assert (tmp_path / "outputs" / "0001-1.png").is_file()


@pytest.fixture
def style(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {
        f"{name}.lora_down.weight": torch.randn(2, 64, generator=generator),
        f"{name}.lora_up.weight": torch.randn(64, 2, generator=generator),
        f"{name}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, tmp_path / "style.safetensors")
    return tmp_path / "style.safetensors"


def test_a_folder_as_peft_writes_it_draws_as_its_file_does_and_can_be_repeated(ldm: Ldm, tmp_path: Path) -> None:
    name = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    drawn = torch.Generator().manual_seed(0)
    (tmp_path / "mine").mkdir()
    factors = {f"{name}.lora_A.weight": torch.randn(4, 32, generator=drawn),
               f"{name}.lora_B.weight": torch.randn(32, 4, generator=drawn)}  # fmt: skip
    save_file(factors, tmp_path / "mine/adapter_model.safetensors")
    config = {"r": 4, "lora_alpha": 32, "peft_type": "LORA", "target_modules": ["to_q"]}
    (tmp_path / "mine/adapter_config.json").write_text(json.dumps(config), "utf-8")
    order = ("generate", "a red circle", "--model", "scenes", "--seed", 1, "--steps", 2, "--json")
    made = {use: ldm(*order, "--lora", use) for use in ("mine", "mine/adapter_model.safetensors")}
    assert [done.status for done in made.values()] == [0, 0], made
    pixels = {done.json["pictures"][0]["pixels"] for done in made.values()}
    assert len(pixels) == 1
    assert ldm(*order).json["pictures"][0]["pixels"] not in pixels
    assert ldm("verify", "outputs/0001-1.png", "--inputs", "mine").status == 0
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "mine/adapter_model.safetensors", tmp_path / "alone")  # as strong as nobody knows
    missing = ldm("verify", "outputs/0001-1.png", "--inputs", "alone")
    assert (missing.status, "lora 1" in missing.err + missing.out) == (Code.DIFFERENT, True)


def test_a_changed_strength_in_peft_s_configuration_is_read_again(ldm: Ldm, tmp_path: Path) -> None:
    test_a_folder_as_peft_writes_it_draws_as_its_file_does_and_can_be_repeated(ldm, tmp_path)
    pipeline, loras = Pipeline.load("scenes"), [LoraUse(path=tmp_path / "mine")]
    first = pipeline("a red circle", seed=1, steps=2, loras=loras)[0].tobytes()
    config = tmp_path / "mine/adapter_config.json"
    config.write_text(config.read_text("utf-8").replace("32", "320"), "utf-8")
    assert pipeline("a red circle", seed=1, steps=2, loras=loras)[0].tobytes() != first


def test_an_adapter_is_inspected_and_renamed(ldm: Ldm, style: Path) -> None:
    told = ldm("adapter", "inspect", style, "--json").json
    assert (told["dialect"], told["tensors"], told["ranks"]) == ("kohya", 3, {"2": 1})
    shown = ldm("adapter", "inspect", style)
    assert shown.status == 0 and "kohya" in shown.out
    assert ldm("adapter", "convert", style, "peft", "--to", "peft").status == 0
    again = ldm("adapter", "inspect", "peft", "--json").json
    assert (again["dialect"], again["norm"]) == ("peft", pytest.approx(told["norm"]))
    assert PeftConfig.from_pretrained("peft").r == 2
    one = ldm("adapter", "convert", style, "peft.safetensors", "--to", "peft")
    assert one.status == Code.USAGE and "Name a folder: peft." in one.err
    wrong = ldm("adapter", "convert", style, "x.safetensors", "--to", "koyha")
    assert wrong.status == Code.USAGE and "kohya" in wrong.err


def test_an_embedding_is_inspected(ldm: Ldm, tmp_path: Path) -> None:
    save_file({"<mine>": torch.ones(2, 768)}, tmp_path / "mine.safetensors")
    told = ldm("adapter", "inspect", "mine.safetensors", "--json").json
    assert (told["kind"], told["token"]) == ("textual inversion", "<mine>")
    assert "2 vectors of width 768" in told["vectors"].values()
    save_file({"<one>": torch.ones(1, 768)}, tmp_path / "one.safetensors")
    one = ldm("adapter", "inspect", "one.safetensors", "--json").json
    assert "1 vector of width 768" in one["vectors"].values()


def test_what_is_no_adapter_is_refused(ldm: Ldm, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_text("<html>")
    assert ldm("adapter", "inspect", "x.safetensors").status == Code.FILE
    assert ldm("adapter", "inspect", "none.safetensors").status == Code.FILE


@pytest.mark.parametrize(("out", "status"), [("out.ckpt", Code.USAGE), ("out.BIN", Code.USAGE), ("v1.5", 0)])
def test_no_folder_gets_the_name_of_a_file(ldm: Ldm, tiny_sd1: Path, tmp_path: Path, out: str, status: int) -> None:
    done = ldm("models", "convert", tiny_sd1, out)
    assert done.status == status
    assert (tmp_path / out).is_dir() == (status == 0)


def test_a_model_that_is_not_there_is_told_before_a_missing_out(ldm: Ldm) -> None:
    assert ldm("models", "convert", "nope.ckpt").status == Code.FILE
