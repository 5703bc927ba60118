"""What a file is, its family, prediction and fingerprint: from headers alone, in under a second, without torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file, save_file

from ldm.diffusion.level import Kind
from ldm.errors import LdmError
from ldm.store.configs import config_path, family_config
from ldm.store.describe import describe
from ldm.store.detect import KINDS, facts_of_config, facts_of_shapes, family_of, prediction_of_file
from ldm.store.fingerprint import content_hash
from ldm.store.header import Header, read_header
from ldm.store.parts import load_parts
from ldm.store.save import save_folder, save_single, single_state
from tests import components
from tests.conftest import ROOT
from tests.store import models
from tests.store.test_single import _hollow


def test_the_kinds_are_those_of_the_loop() -> None:
    assert get_args(Kind) == KINDS


@pytest.mark.parametrize("name", models.LAYOUTS)
def test_known_families_by_header_alone(tmp_path: Path, name: str) -> None:
    family, channels = models.LAYOUTS[name]
    full = models.full_size(family, channels)
    path = tmp_path / "anything.safetensors"
    _hollow(path, {n: t.shape for n, t in single_state(full).items()})
    start = time.process_time()
    told = describe(path)
    assert time.process_time() - start < 1.0
    assert (told.kind, told.family, told.inpainting) == ("single file", family, channels == 9)
    assert told.size == path.stat().st_size
    assert told.dtypes == {"F16": told.tensors}
    assert told.prediction == ("v_prediction" if family == "sd2" else "epsilon")
    assert told.reason
    facts = facts_of_config(full.unet.config)
    assert facts == facts_of_shapes({n: tuple(t.shape) for n, t in full.unet.state_dict().items()})
    assert json.dumps(told.as_dict())


def test_describing_imports_no_torch(tiny_sd1: Path) -> None:
    code = (
        "import sys; from ldm.store.describe import describe; told = describe(sys.argv[1]);"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules); print(told.kind, told.family)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny_sd1)], capture_output=True, text=True)
    assert done.stdout == "model folder own\n", done.stderr


MARKS: list[tuple[str, set[str], dict[str, str], str, str, bool]] = [
    ("sd1", set(), {}, "x", "epsilon", False),
    ("sd1", {"v_pred"}, {}, "x", "v_prediction", False),
    ("xl", {"v_pred", "ztsnr"}, {}, "x", "v_prediction", True),
    ("xl", set(), {"modelspec.prediction_type": "v"}, "x", "v_prediction", False),
    ("xl", {"v_pred"}, {"modelspec.prediction_type": "epsilon"}, "x", "epsilon", False),
    ("xl", set(), {"modelspec.title": "Some v-pred tune"}, "x", "v_prediction", False),
    ("sd2", set(), {}, "v2-1_768-ema-pruned.safetensors", "v_prediction", False),
    ("sd2", set(), {}, "768-v-ema.safetensors", "v_prediction", False),
    ("sd2", set(), {}, "512-base-ema.safetensors", "epsilon", False),
    ("sd2", set(), {}, "v2-1_512-ema-pruned.safetensors", "epsilon", False),
    ("sd2", set(), {}, "512-inpainting-ema.safetensors", "epsilon", False),
    ("sd2", set(), {"modelspec.prediction_type": "epsilon"}, "768-v-ema.safetensors", "epsilon", False),
]


@pytest.mark.parametrize(("family", "names", "told", "file", "kind", "zero"), MARKS)
def test_prediction_type(family: str, names: set[str], told: dict[str, str], file: str, kind: str, zero: bool) -> None:
    found, reason, snr = prediction_of_file(family, names, told, file)  # type: ignore[arg-type]
    assert (found, snr) == (kind, zero)
    assert len(reason) > 20


def test_marks_reach_the_scheduler(tmp_path: Path, tiny_xl: Path) -> None:
    stock = models.xl()
    stock.save_pretrained(tmp_path / "m")
    path = save_single(load_parts(tmp_path / "m"), tmp_path / "a.safetensors")
    state, told = load_file(path), dict(read_header(path).metadata)
    del told["modelspec.prediction_type"]
    save_file(state | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, tmp_path / "v.safetensors", told)
    parts = load_parts(tmp_path / "v.safetensors", components=())
    assert parts.prediction == parts.scheduler["prediction_type"] == "v_prediction"
    assert parts.scheduler["rescale_betas_zero_snr"] is True
    by_hand = load_parts(tmp_path / "v.safetensors", components=(), prediction="epsilon")
    assert (by_hand.prediction, by_hand.reason) == ("epsilon", "set by hand")


def test_every_kind_of_file(tmp_path: Path, tiny_sd1: Path, tiny_controlnet: Path) -> None:
    unet = components.unet(cross_attention_dim=768)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_k", "to_v"]), unet)
    lora = {f"base_model.model.{n}": t.contiguous() for n, t in get_peft_model_state_dict(unet).items()}
    files = {
        "lora": lora,
        "textual inversion": {"<style>": torch.randn(3, 768)},
        "vae": components.vae().state_dict(),
        "text tower": components.text_tower().state_dict(),
        "unet": components.unet().state_dict(),
        "controlnet": components.controlnet().state_dict(),
        "unknown": {f"layer.{i}": torch.ones(2, 2, 2) for i in range(9)},
    }
    for kind, state in files.items():
        path = tmp_path / f"{kind}.safetensors"
        save_file(state, path)
        assert describe(path).kind == kind
    assert describe(tmp_path / "lora.safetensors").family == "sd1"
    assert describe(tiny_controlnet).kind == "controlnet"
    assert describe(tiny_sd1 / "vae").kind == "vae"
    with pytest.raises(LdmError):
        describe(tmp_path)
    with pytest.raises(LdmError):
        describe(tmp_path / "none.safetensors")


def test_folder(tiny_inpaint9: Path, tiny_refiner: Path) -> None:
    told = describe(tiny_inpaint9)
    assert (told.kind, told.family, told.inpainting, told.prediction) == ("model folder", "own", True, "epsilon")
    parts = load_parts(tiny_inpaint9)
    networks = [parts.unet, parts.vae, parts.towers[0][1]]
    assert told.parameters == sum(p.numel() for network in networks for p in network.parameters())
    assert told.fingerprint == parts.fingerprint
    assert describe(tiny_refiner).family == "xl-refiner"


def test_fingerprint_is_of_the_weights_and_not_of_the_file(tmp_path: Path) -> None:
    models.sd1().save_pretrained(tmp_path / "a")
    parts = load_parts(tmp_path / "a")
    assert parts.fingerprint
    same = {describe(save_single(parts, tmp_path / "one.safetensors")).fingerprint}
    for dtype in (torch.float16, torch.bfloat16):
        for network in (parts.unet, parts.vae, parts.towers[0][1]):
            network.to(dtype)
        same.add(describe(save_folder(parts, tmp_path / str(dtype))).fingerprint)
        parts = load_parts(tmp_path / "a")
    assert same == {parts.fingerprint}
    assert len(parts.fingerprint) == 16
    others = [components.unet(seed=2), components.unet(9), components.unet(layers_per_block=2)]
    names = {
        describe(save_folder(dataclasses.replace(parts, unet=u), tmp_path / str(i))).fingerprint
        for i, u in enumerate(others)
    }
    assert len(names | same) == 4


def test_a_short_training_changes_the_fingerprint(tmp_path: Path, tiny_sd1: Path) -> None:
    """A control on its sharpness: one step of the size that a fine-tuning makes turns some signs."""
    parts = load_parts(tiny_sd1)
    with torch.no_grad():
        for weight in parts.unet.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 1e-3)
    assert describe(save_folder(parts, tmp_path / "tuned")).fingerprint != parts.fingerprint


def test_content_hash(tiny_sd1: Path, tmp_path: Path) -> None:
    file = tiny_sd1 / "unet" / "diffusion_pytorch_model.safetensors"
    assert content_hash(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    whole = content_hash(tiny_sd1)
    assert whole == content_hash(str(tiny_sd1))
    assert whole != content_hash(tiny_sd1 / "unet")
    assert Header({}).shapes == {}


def test_configurations_are_found_and_ship_in_the_wheel() -> None:
    assert config_path("models/sd1").is_dir()
    assert config_path("models/scenes-unet").name == "scenes-unet.json"
    assert '"configs" = "ldm/configs"' in (ROOT / "pyproject.toml").read_text()
    for odd in ("models/none", "../pyproject.toml", "../../etc/passwd"):
        with pytest.raises(LdmError):
            config_path(odd)
    for family in ("sd1", "sd2", "xl", "xl-refiner"):
        facts = facts_of_config(family_config(family, "unet"))
        assert family_of(facts) == family
        assert family_config(family, "scheduler")["beta_end"] == 0.012
