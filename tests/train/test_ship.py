"""What ships of a chain: parts in their places and under their names, half precision, the settings that suit them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import ldm
from ldm.errors import LdmError
from ldm.store.parts import load_parts
from ldm.store.weights import load_weights
from train.ship import main, ship

SCENES = Path(ldm.__file__).parent / "pretrained" / "scenes"


def fingerprint() -> str:
    return load_parts(SCENES, components={"unet"}).fingerprint


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """The shipped `scenes` stands for what runs have made."""
    made = tmp_path / "chain"
    shutil.copytree(SCENES, made / "diffusion/model", ignore=shutil.ignore_patterns("controlnet-*", "training.json"))
    shutil.copytree(SCENES / "controlnet-edges", made / "controlnet/model")
    (made / "distill/model/scheduler").mkdir(parents=True)
    (made / "distill/model/scheduler/scheduler_config.json").write_text("{}", "utf-8")
    metadata = {"ldm.base_fingerprint": fingerprint()}
    save_file({"a.lora_A.weight": torch.ones(2, 3)}, made / "distill/model/pytorch_lora_weights.safetensors", metadata)
    for name in ("clip/model/text_encoder", "clip/model/tokenizer"):
        (made / name).mkdir(parents=True)
        (made / name / "config.json").write_text("{}", "utf-8")
    for name in ("open_clip_config.json", "tokenizer.json"):
        (made / "clip/model" / name).write_text("{}", "utf-8")
    save_file({"logit_scale": torch.tensor(4.6)}, made / "clip/model/open_clip_model.safetensors")
    return made


def test_each_part_lies_where_its_name_is_looked_for(chain: Path, tmp_path: Path) -> None:
    for name, steps in (("toy", 25), ("toy-fast", 4)):
        (tmp_path / "suited" / name).mkdir(parents=True)
        (tmp_path / "suited" / name / "sampling.json").write_text(json.dumps({"steps": steps}), "utf-8")
    (tmp_path / "suited/toy/prompts.json").write_text('{"prior": ["a dog"]}', "utf-8")
    beside = {"distill": "toy-fast", "controlnet": "toy-scribble", "clip": "toy-clip"}
    made = ship(chain, tmp_path / "out/toy", beside=beside, suited=tmp_path / "suited")
    assert [folder.name for folder in made] == ["toy", "toy-fast", "toy-scribble", "toy-clip"]
    found = {
        str(p.relative_to(tmp_path / "out")) for name in beside.values() for p in (tmp_path / "out" / name).rglob("*.*")
    }
    assert found == {
        "toy-fast/toy-fast.safetensors", "toy-fast/sampling.json", "toy-fast/scheduler/scheduler_config.json",
        "toy-scribble/config.json", "toy-scribble/diffusion_pytorch_model.safetensors",
        "toy-clip/open_clip_config.json", "toy-clip/open_clip_model.safetensors", "toy-clip/tokenizer.json",
    }  # fmt: skip
    assert json.loads((tmp_path / "out/toy/sampling.json").read_text()) == {"steps": 25}
    assert json.loads((tmp_path / "out/toy-fast/sampling.json").read_text()) == {"steps": 4}
    assert (tmp_path / "out/toy/prompts.json").is_file()


def test_an_adapter_in_half_precision_still_names_its_base(chain: Path, tmp_path: Path) -> None:
    ship(chain, tmp_path / "toy", beside={"distill": "toy-fast"})
    file = tmp_path / "toy-fast/toy-fast.safetensors"
    assert load_weights(file)["a.lora_A.weight"].dtype == torch.float16
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["ldm.base_fingerprint"] == fingerprint()


def test_an_adapter_of_other_weights_than_those_that_ship_is_refused(chain: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(chain / "diffusion/model", other)
    file = other / "unet/diffusion_pytorch_model.safetensors"
    save_file({name: -tensor for name, tensor in load_weights(file).items()}, file)
    with pytest.raises(LdmError, match="made for another base"):
        ship(chain, tmp_path / "toy", beside={"distill": "toy-fast"}, model=other)
    assert not (tmp_path / "toy").exists()
    assert ship(chain, tmp_path / "toy", model=other) == [tmp_path / "toy"]


def test_a_part_that_was_not_trained_is_named_and_nothing_is_written(chain: Path, tmp_path: Path) -> None:
    with pytest.raises(LdmError, match="decoder/model is not there"):
        ship(chain, tmp_path / "toy", {"decoder": "tiny-decoder"})
    assert not (tmp_path / "toy").exists()


def test_what_is_in_the_way_is_found_before_anything_is_written(chain: Path, tmp_path: Path) -> None:
    (tmp_path / "toy-fast").mkdir()
    with pytest.raises(LdmError, match="toy-fast exists already"):
        ship(chain, tmp_path / "toy", beside={"distill": "toy-fast"})
    assert not (tmp_path / "toy").exists()
    with pytest.raises(LdmError, match="has that part itself"):
        ship(chain, tmp_path / "toy", {"controlnet": "vae"})
    with pytest.raises(LdmError, match="two are equal"):
        ship(chain, tmp_path / "toy", beside={"distill": "toy-x", "clip": "toy-x"})
    assert not (tmp_path / "toy").exists()


def test_a_folder_without_settings_is_an_error(chain: Path, tmp_path: Path) -> None:
    with pytest.raises(LdmError, match="holds nothing for toy"):
        ship(chain, tmp_path / "toy", suited=tmp_path / "nowhere")


@pytest.mark.parametrize("word", ["decoder", "=a", "decoder=", "decoder=a/b", "decoder=..", "decoder=."])
def test_words_that_are_no_pair_are_refused(
    word: str, chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["ship", str(chain), str(tmp_path / "toy"), "--inside", word])
    with pytest.raises(SystemExit, match="is not understood"):
        main()
