"""The ControlNet task: nothing changes at step 0, it learns to steer, and stock code loads what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel
from torch import Tensor

from ldm.data.batch import Batch
from ldm.errors import LdmError
from ldm.store.parts import load_controlnet
from tests.components import PIXELS, controlnet
from tests.train.tasks.making import apart, batch, descend, gradients, setting, turn
from train.draws import Draws
from train.tasks.controlnet import ControlTask
from train.tasks.settings import ControlSettings, Noise
from train.tasks.shapes import varied


def outline(of: Batch) -> Tensor:
    """[n,3,H,W]: where the picture is bright."""
    assert of.image is not None
    return (of.image.mean(1, keepdim=True) > 0).float().expand(-1, 3, -1, -1)


def hinted(count: int = 4, first: int = 0) -> Batch:
    return batch(count, first, hint=outline(batch(count, first)))


def made(model: Path, **changes: Any) -> ControlTask:
    return ControlTask(ControlSettings(type="controlnet", model=model, **changes), setting(hint=outline))


def test_at_first_the_model_is_unchanged(tiny_sd1: Path) -> None:
    task, whole = made(tiny_sd1), hinted()
    rows = task.denoising.rows(Draws(0, whole.places, 4), whole)
    with torch.no_grad():
        plain = task.parts.unet(rows.x, rows.level.t, rows.states)
        assert torch.equal(task.output(rows, whole.extra["hint"]), plain)
    known = task.parts.unet.state_dict()
    same = [torch.equal(t, known[n]) for n, t in task.control.state_dict().items() if n in known]
    assert len(same) > 50
    assert all(same)


def test_learns_saves_and_gives_the_same_output(tiny_sd1: Path, tmp_path: Path) -> None:
    task, whole = made(tiny_sd1, vary=False, drop_caption=0.0), hinted()
    losses = descend(task, whole, steps=12)
    assert losses[-1] < 0.9 * losses[0]
    task.save(tmp_path / "control")
    stock = ControlNetModel.from_pretrained(tmp_path / "control", local_files_only=True)
    rows = task.denoising.rows(Draws(0, whole.places, 4), whole)
    task.control.eval()
    with torch.no_grad():
        told = (rows.x, rows.level.t, rows.states, whole.extra["hint"])
        wanted, mid = task.control(*told)
        assert float(mid.abs().max()) > 1e-3, "it has learned to say something"
        for down, other in (stock(*told, return_dict=False), load_controlnet(tmp_path / "control")(*told)):
            assert max(float((a - b).abs().max()) for a, b in zip([*down, other], [*wanted, mid], strict=True)) < 1e-5


@pytest.mark.parametrize("model", ["tiny_sd1", "tiny_inpaint9"])
def test_micro_batches_are_one_batch(model: str, request: pytest.FixtureRequest) -> None:
    task, whole = made(request.getfixturevalue(model), drop_caption=0.4), hinted(6, first=6)
    with torch.no_grad():  # zero convolutions hide all gradients but their own
        for layer in (*task.control.controlnet_down_blocks, task.control.controlnet_mid_block):
            layer.weight.normal_(std=0.1)
    one, two = (gradients(task, whole, size) for size in (6, 2))
    assert two[0] == pytest.approx(one[0], rel=1e-5)
    assert apart(two[1], one[1]) < 1e-5
    assert task.control.config.in_channels == 4


def test_only_the_control_learns(tiny_sd1: Path) -> None:
    task, whole = made(tiny_sd1), hinted()
    task.loss(turn(4, whole.places), whole)[0].backward()
    assert set(task.networks()) == {"controlnet"}
    assert all(p.grad is None for network in task.frozen().values() for p in network.parameters())
    assert any(p.grad is not None and bool(p.grad.any()) for p in task.control.parameters())


def test_starts_from_an_architecture_or_from_weights(tiny_sd1: Path, tiny_controlnet: Path, tmp_path: Path) -> None:
    config = dict(controlnet().config) | {"down_block_types": ["DownBlock2D", "DownBlock2D"]}
    (tmp_path / "control.json").write_text(json.dumps(config))
    new = made(tiny_sd1, controlnet=tmp_path / "control.json")
    known = new.parts.unet.state_dict()
    assert torch.equal(new.control.state_dict()["down_blocks.0.resnets.0.conv1.weight"],
                       known["down_blocks.0.resnets.0.conv1.weight"])  # fmt: skip
    assert not any(p.any() for layer in new.control.controlnet_down_blocks for p in layer.parameters())
    again = made(tiny_sd1, controlnet=tiny_controlnet)
    wanted = load_controlnet(tiny_controlnet).state_dict()
    assert all(torch.equal(t, wanted[n]) for n, t in again.control.state_dict().items())


def test_hints_vary_by_place_and_are_still_hints() -> None:
    places = torch.arange(300)
    hint = torch.zeros(300, 3, 20, 24)
    hint[:, :, 5:7, 4:18] = 1.0
    changed = varied(hint, Draws(0, places, 300))
    assert torch.equal(varied(hint[3:5], Draws(0, places[3:5], 300)), changed[3:5])
    assert bool((changed[:, :1] == changed).all()), "all three channels alike"
    drawn, plain = changed[:, 0].sum((1, 2)), float(hint[0, 0].sum())
    assert 0.2 < float((drawn > plain).float().mean()) < 0.45, "a third is thicker"
    assert 0.2 < float((drawn < plain).float().mean()) < 0.45, "a third has gaps"
    aside = changed[:, 0].sum(2).argmax(1)
    assert 0.05 < float((changed == hint).flatten(1).all(1).float().mean()) < 0.45
    assert set(aside.tolist()) <= {4, 5, 6, 7}
    large = varied(torch.nn.functional.interpolate(hint[:6], scale_factor=32), Draws(0, places[:6], 300))
    assert large.shape == (6, 3, 640, 768)


def test_previews_and_validation(tiny_sd1: Path) -> None:
    task, whole = made(tiny_sd1), hinted()
    shown = task.preview(0)
    assert set(shown) == {"hints", "originals", "pictures"}
    assert all(p.shape == (4, 3, PIXELS, PIXELS) for p in shown.values())
    assert torch.equal(shown["pictures"], task.preview(0)["pictures"])
    figures = task.validate(Draws(0, whole.places, 4, "validation"), whole)
    assert figures["loss"].shape == (4,)


def test_what_cannot_be_done_is_said(tiny_sd1: Path, tiny_xl: Path) -> None:
    task = made(tiny_sd1)
    with pytest.raises(LdmError, match=r"data\.hint"):
        task.loss(turn(4, torch.arange(4)), batch())
    with pytest.raises(LdmError, match="XL"):
        made(tiny_xl)
    with pytest.raises(LdmError, match=r"task\.noise\.kind"):
        made(tiny_sd1, noise=Noise(kind="v_prediction"))
    assert made(tiny_sd1, noise=Noise(kind="epsilon", times="logit_normal")).denoising.noise.times == "logit_normal"
