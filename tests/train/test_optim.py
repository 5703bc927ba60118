"""Optimisers: which parameter goes to which, the learning rate of each step, and state that comes back to the bit."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ldm.errors import Code, LdmError
from tests.train import toys
from train.config import OptimSettings
from train.optim import LossScale, Optimiser, is_hidden, rate
from train.trainer import Trainer

KINDS = ["adamw", "adamw8bit", "sgd", "muon", pytest.param("schedule_free", id="schedule_free")]


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    shapes = {"net.in.weight": (8, 3, 3, 3), "net.mid.weight": (8, 8), "net.mid.bias": (8,), "net.scale": ()}
    made = {name: nn.Parameter(torch.randn(shape, generator=g)) for name, shape in shapes.items()}
    made["net.large.weight"] = nn.Parameter(torch.randn(72, 65, generator=g))  # for eight bits, and no whole block
    made["net.wide.weight"] = nn.Parameter(torch.randn(8, 8, 3, 3, generator=g).to(memory_format=torch.channels_last))
    return made


def move(optimiser: Optimiser, first: int, last: int) -> None:
    for step in range(first, last):
        for index, p in enumerate(optimiser.params.values()):
            p.grad = torch.empty_like(p).copy_(
                torch.randn(p.shape, generator=torch.Generator().manual_seed(99 * step + index))
            )
        optimiser.step(step)


def settings(kind: str, **changes: Any) -> OptimSettings:
    return OptimSettings(**({"kind": kind, "lr": 0.01, "weight_decay": 0.1, "warmup": 2} | changes))


@pytest.mark.parametrize("kind", KINDS)
def test_state_comes_back_to_the_bit(kind: str) -> None:
    """Through names and JSON, into new objects, in another order, with another layout in memory."""
    whole, cut = (Optimiser(parameters(), settings(kind), 1.0, 9) for _ in range(2))
    move(whole, 0, 9)
    move(cut, 0, 4)
    tensors = {name: t.clone().contiguous() for name, t in reversed(cut.tensors().items())}
    numbers = json.loads(json.dumps(cut.numbers()))
    weights = {name: p.detach().clone() for name, p in cut.params.items()}
    again = Optimiser(parameters(1), settings(kind), 1.0, 9)
    with torch.no_grad():
        for name, p in again.params.items():
            p.copy_(weights[name])
    again.load(tensors, numbers)
    move(again, 4, 9)
    assert all(torch.equal(p, whole.params[name]) for name, p in again.params.items())
    found, wanted = again.tensors(), whole.tensors()
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert again.numbers() == whole.numbers()
    assert all(torch.equal(t, whole.average()[name]) for name, t in again.average().items())


def test_adamw_is_that_of_torch() -> None:
    """With decay on matrices only, and the learning rate of each step."""
    ours = Optimiser(parameters(), settings("adamw", decay="linear"), 2.0, 9)
    move(ours, 0, 5)
    theirs = parameters()
    groups = [
        {"params": [p for p in theirs.values() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    for step, share in enumerate((0.5, 8 / 9, 7 / 9, 6 / 9, 5 / 9)):
        for group in adamw.param_groups:
            group["lr"] = 2.0 * 0.01 * share
        for index, p in enumerate(theirs.values()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(99 * step + index))
        adamw.step()
    assert max(float((p.detach() - theirs[name].detach()).abs().max()) for name, p in ours.params.items()) < 1e-6


def test_schedule_free_answers_with_its_own_average(tmp_path: Path) -> None:
    """What the library gives in `eval` mode is put in for looking and saving, and the training weights come back."""
    import schedulefree as library

    ours = Optimiser(parameters(), settings("schedule_free", warmup=0), 1.0, 9)
    theirs = parameters()
    groups = [
        {"params": [p for p in theirs.values() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    schedule_free = library.AdamWScheduleFree(groups, lr=0.01, betas=(0.9, 0.99))
    schedule_free.train()
    for step in range(6):
        for index, p in enumerate(theirs.values()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(99 * step + index))
        schedule_free.step()
    move(ours, 0, 6)
    assert max(float((p.detach() - theirs[name].detach()).abs().max()) for name, p in ours.params.items()) < 1e-6
    schedule_free.eval()
    assert max(float((t - theirs[name].detach()).abs().max()) for name, t in ours.average().items()) < 1e-6
    assert max(float((t - ours.params[name].detach()).abs().max()) for name, t in ours.average().items()) > 1e-3

    trainer = toys.trained(toys.Toy(), tmp_path, toys.optim(kind="schedule_free", ema=0.999), steps=5)
    raw = {name: p.detach().clone() for name, p in trainer.params.items()}
    with trainer.averaged():
        assert any(not torch.equal(p, raw[name]) for name, p in trainer.params.items())
    assert all(torch.equal(p, raw[name]) for name, p in trainer.params.items())


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(LdmError) as error:
        Optimiser(parameters(), OptimSettings(kind="schedule_free"), 1.0, 9)
    assert "ldm[train]" in error.value.fix


def test_the_learning_rate_is_a_function_of_the_step() -> None:
    told = OptimSettings(warmup=4, decay="cosine", decay_from=0.5, floor=0.1)
    shares = [rate(told, step, 20) for step in range(20)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[4:11] == [1.0] * 7
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert abs(shares[15] - 0.55) < 1e-9
    assert rate(told, 20, 20) == pytest.approx(0.1)
    assert rate(OptimSettings(decay="linear"), 5, 20) == pytest.approx(0.75)
    assert rate(OptimSettings(decay="constant"), 19, 20) == 1.0
    assert rate(OptimSettings(kind="schedule_free"), 19, 20) == 1.0


def test_muon_takes_matrices_between_hidden_layers(unet: UNet2DConditionModel) -> None:
    hidden = {name for name, p in unet.named_parameters() if is_hidden(f"unet.{name}", p.shape)}
    assert "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight" in hidden
    assert "time_embedding.linear_1.weight" in hidden
    assert "down_blocks.0.resnets.0.conv1.weight" in hidden
    assert not {"conv_in.weight", "conv_out.weight", "conv_in.bias", "conv_norm_out.weight"} & hidden
    assert not is_hidden("text.text_model.embeddings.token_embedding.weight", torch.Size((500, 32)))
    assert not is_hidden("clip.positional_embedding", torch.Size((77, 32)))
    assert not is_hidden("vae.quant_conv.weight", torch.Size((8, 8, 1, 1)))
    assert not is_hidden("critic.main.0.weight", torch.Size((64, 3, 4, 4)))
    assert not is_hidden("controlnet.controlnet_down_blocks.0.weight", torch.Size((32, 32, 1, 1)))


def test_muon_and_adamw_each_move_their_own_at_their_own_rate() -> None:
    optimiser = Optimiser(parameters(), settings("muon", muon_lr=0.5, weight_decay=0.0, warmup=0), 1.0, 9)
    before = {name: p.detach().clone() for name, p in optimiser.params.items()}
    move(optimiser, 0, 1)
    moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in optimiser.params.items()}
    assert all(abs(moved[name] - 0.01) < 1e-4 for name in ("net.in.weight", "net.mid.bias", "net.scale"))
    assert all(moved[name] > 0.1 for name in ("net.mid.weight", "net.wide.weight"))


@pytest.mark.parametrize(
    ("kind", "changes", "field"),
    [
        ("adamw", {"muon_lr": 0.1}, "muon_lr"),
        ("schedule_free", {"floor": 0.1}, "floor"),
        ("schedule_free", {"ema": 0.5}, "ema"),
    ],
)
def test_a_field_that_acts_on_nothing_is_refused(kind: str, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(LdmError, match=f"optim.{field} does nothing"):
        Optimiser(parameters(), OptimSettings(**{"kind": kind} | changes), 1.0, 9)


def test_betas_that_no_optimiser_can_work_with_are_refused() -> None:
    with pytest.raises(LdmError, match="schedule_free"):
        Optimiser(parameters(), OptimSettings(kind="schedule_free", betas=(0.0, 0.99)), 1.0, 9)
    with pytest.raises(ValueError, match="less than 1"):
        OptimSettings(betas=(0.9, 1.0))


def test_another_kind_does_not_go_on_from_this_state(tmp_path: Path) -> None:
    toys.trained(toys.Toy(), tmp_path, toys.optim(), steps=2)
    with pytest.raises(LdmError, match=r"optim\.kind") as error:
        Trainer(toys.Toy(), toys.feed(8), toys.run(tmp_path), toys.optim(kind="sgd"), tmp_path).fit()
    assert error.value.code is Code.USAGE


def test_the_loss_scale_falls_and_rises() -> None:
    scale = LossScale()
    scale.update(False)
    assert scale.value == 2.0**15
    for _ in range(LossScale.PATIENCE):
        scale.update(True)
    assert (scale.value, scale.good) == (2.0**16, 0)
    again = LossScale()
    again.load(json.loads(json.dumps(scale.numbers())))
    assert again.numbers() == scale.numbers()


def test_state_is_named_by_parameter(tmp_path: Path) -> None:
    names: set[str] = set(toys.trained(toys.Gan(), tmp_path, toys.optim(), steps=4).state().optimizer)
    assert "generator/net.0.weight/exp_avg" in names
    assert "penalty/critic.0.weight/step" in names
    assert not any("net.0" in name for name in names if name.startswith("critic/"))


def test_no_gradient_means_no_step() -> None:
    """A parameter that a loss does not depend on is neither decayed nor moved."""
    optimiser = Optimiser(parameters(), settings("adamw"), 1.0, 9)
    before: Tensor = optimiser.params["net.mid.weight"].detach().clone()
    for name, p in optimiser.params.items():
        p.grad = None if name == "net.mid.weight" else torch.ones_like(p)
    optimiser.step(0)
    assert torch.equal(optimiser.params["net.mid.weight"], before)
    assert math.isclose(float(optimiser.tensors()["net.scale/step"]), 1.0)


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit", "muon", "sgd", "schedule_free"])
def test_some_parameters_move_at_a_share_of_the_rate_of_the_others(kind: str) -> None:
    """As if they were alone with an optimiser of that rate."""
    even, alone = (
        settings(kind, warmup=0),
        settings(kind, warmup=0, lr=0.04, **({"muon_lr": 0.08} if kind == "muon" else {})),
    )
    names = list(parameters())
    fast = names[:2]
    mixed = Optimiser(parameters(), even, 1.0, 9, rates=lambda name: 4.0 if name in fast else 1.0)
    slow, quick = Optimiser(parameters(), even, 1.0, 9), Optimiser(parameters(), alone, 1.0, 9)
    for optimiser in (mixed, slow, quick):
        move(optimiser, 0, 3)
    for name, p in mixed.params.items():
        assert torch.equal(p, (quick if name in fast else slow).params[name]), name
