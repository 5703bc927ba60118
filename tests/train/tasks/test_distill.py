"""The distillation task: students start as their teacher, learn, and are what stock code and our command line use."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline
from torch import Tensor, nn

from ldm.data.batch import Batch
from ldm.diffusion.consistency import consistent
from ldm.errors import LdmError
from ldm.models.unet import guidance_embedding
from ldm.store.parts import load_parts
from pipelines.pipeline import Pipeline
from pipelines.request import Request
from tests.thin import thinned
from tests.train.tasks.making import WORDS, apart, batch, descend, gradients, setting, turn
from train.config import OptimSettings, RunSettings
from train.draws import Draws
from train.task import Turn
from train.tasks.diffusion import DiffusionTask
from train.tasks.distill import DistillTask
from train.tasks.settings import DiffusionSettings, DistillSettings, Noise
from train.trainer import Trainer

MODES: dict[str, dict[str, Any]] = {
    "guidance": {"method": "guidance"},
    "guidance, lora": {"method": "guidance", "rank": 4},
    "consistency": {},
    "consistency, lora": {"rank": 4},
}


def made(model: Path, **changes: Any) -> DistillTask:
    return DistillTask(DistillSettings(type="distill", model=model, **changes), setting())


def inputs(task: DistillTask) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    whole = batch(4)
    rows = task.denoising.rows(Draws(0, whole.places, 4), whole)
    return rows.x, rows.level.t, rows.states, torch.linspace(2, 8, 4)


@pytest.mark.parametrize("mode", MODES)
def test_at_first_the_student_says_what_the_teacher_says(mode: str, tiny_sd1: Path) -> None:
    task, plain = made(tiny_sd1, **MODES[mode]), load_parts(tiny_sd1).unet
    x, t, states, scale = inputs(task)
    level = task.schedule.at(t)
    with torch.no_grad():
        wanted = plain(x, t, states)
        assert (task._student(x, level, states, scale) - wanted).abs().max() < 1e-5
        null = plain(x, t, task.captions.empty(4))
        guided = null + scale.view(-1, 1, 1, 1) * (wanted - null)
        assert (task._teacher(x, level, states, scale) - guided).abs().max() < 1e-5 * guided.abs().max()


@pytest.mark.parametrize("mode", MODES)
def test_learns_one_batch_and_the_teacher_stays(mode: str, tiny_sd1: Path) -> None:
    task = made(tiny_sd1, **MODES[mode])
    before = copy.deepcopy({n: p for n, p in task.parts.unet.named_parameters() if ".lora_" not in n})
    losses = descend(task, batch(), steps=5, lr=1e-3 if "lora" in mode else 1e-5)
    assert losses[-1] < 0.7 * losses[0], losses
    now = dict(task.parts.unet.named_parameters())
    assert all(torch.equal(p, now[n]) for n, p in before.items())
    x, t, states, scale = inputs(task)
    with torch.no_grad():  # also after training, the teacher speaks without the LoRA
        wanted = load_parts(tiny_sd1).unet(torch.cat([x, x]), torch.cat([t, t]),
                                           torch.cat([states, task.captions.empty(4)])).chunk(2)  # fmt: skip
        guided = wanted[1] + scale.view(-1, 1, 1, 1) * (wanted[0] - wanted[1])
        assert (task._teacher(x, task.schedule.at(t), states, scale) - guided).abs().max() < 1e-5 * guided.abs().max()


@pytest.mark.parametrize("mode", MODES)
def test_micro_batches_are_one_batch(mode: str, tiny_sd1: Path) -> None:
    """A student that is far from its teacher: near it both sides are differences of nearly equal numbers."""
    task, whole = made(tiny_sd1, huber=1.0, **MODES[mode]), batch(6, first=6)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in task.learner.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.05)
    one, two = (gradients(task, whole, size) for size in (6, 2))
    assert two[0] == pytest.approx(one[0], rel=1e-5)
    assert apart(two[1], one[1]) < 1e-5
    assert all(name.startswith("student.") for name in one[1])


def test_a_whole_student_loads_in_stock_and_is_told_its_scale(tiny_sd1: Path, tmp_path: Path) -> None:
    task = made(tiny_sd1)
    descend(task, batch(), steps=3)
    task.save(tmp_path / "student")
    stock = StableDiffusionPipeline.from_pretrained(tmp_path / "student", local_files_only=True)
    stock.set_progress_bar_config(disable=True)
    assert isinstance(stock.scheduler, LCMScheduler)
    assert stock.scheduler.config.original_inference_steps == 50
    x, t, states, scale = inputs(task)
    with torch.no_grad():
        embedding = stock.get_guidance_scale_embedding(scale - 1, 256)
        assert (embedding - guidance_embedding(scale, 256)).abs().max() < 1e-5
        theirs = stock.unet.eval()(x, t, states, timestep_cond=embedding).sample
        task.student.eval()
        ours, other = (task._student(x, task.schedule.at(t), states, s) for s in (scale, scale.flip(0)))
        assert (theirs - ours).abs().max() < 1e-5
        assert (ours - other).abs().max() > 1e-3, "it listens to the scale"
    ours = Pipeline.load(tmp_path / "student")
    assert ours.model.network.told_scale
    request = Request(prompt="a dog", steps=4, seed=3, solver="lcm", guidance={"scale": 5})
    pictures = ours.results(request)[0].picture.pixels
    generator = torch.Generator().manual_seed(3)
    theirs = stock("a dog", num_inference_steps=4, guidance_scale=5, generator=generator, output_type="np").images[0]
    assert abs(theirs * 255 - pictures).max() <= 1.0


def test_a_lora_student_loads_in_stock_and_in_ours(tiny_sd1: Path, tmp_path: Path) -> None:
    task = made(tiny_sd1, rank=4)
    descend(task, batch(), steps=3, lr=1e-2)
    task.save(tmp_path / "lora")
    file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    stock = StableDiffusionPipeline.from_pretrained(tiny_sd1, local_files_only=True)
    stock.load_lora_weights(tmp_path / "lora", weight_name=file.name)
    x, t, states, scale = inputs(task)
    with torch.no_grad():
        wanted = task._student(x, task.schedule.at(t), states, scale)
        assert (stock.unet(x, t, states).sample - wanted).abs().max() < 1e-5
        assert (wanted - load_parts(tiny_sd1).unet(x, t, states)).abs().max() > 1e-3
    ours = Pipeline.load(tiny_sd1)
    request = Request(prompt="a dog", steps=4, seed=3, solver="lcm", guidance={"scale": 1}, loras=[{"path": file}])
    assert ours.results(request)[0].picture.pixels.shape == (16, 16, 3)
    with torch.no_grad():
        assert (ours.model.network.model(x, t, states) - wanted).abs().max() < 1e-5


def test_the_target_follows_once_a_step_and_goes_on_after_a_checkpoint(tiny_sd1: Path) -> None:
    task, whole = made(tiny_sd1, ema=0.9), batch()
    assert set(task.networks()) == {"student", "target"}
    assert all(not p.requires_grad for p in task.target.parameters())
    start = torch.cat([p.flatten() for p in task.target.parameters()])
    with torch.no_grad():
        for p in task.student.parameters():
            p.add_(1.0)

    def follow(task: DistillTask, step: int) -> Tensor:
        task.context(Turn("student", step, 4, Draws(0, whole.places, 4)), [whole])
        return torch.cat([p.flatten() for p in task.target.parameters()])

    once = follow(task, 0)
    assert (once - start - 0.1).abs().max() < 1e-5
    assert torch.equal(follow(task, 0), once), "a step that is begun again"
    saved = {name: copy.deepcopy(network.state_dict()) for name, network in task.networks().items()}
    other = made(tiny_sd1, ema=0.9)
    for name, network in other.networks().items():
        network.load_state_dict(saved[name])
    assert torch.equal(follow(other, 0), once), "a step that was given up, saved, and begun again"
    assert torch.equal(follow(other, 1), follow(task, 1))
    assert (follow(task, 1) - start - 0.19).abs().max() < 1e-5


def test_consistency_compares_neighbours_on_the_grid_of_lcm(tiny_sd1: Path) -> None:
    """A student that is perfect, f(x, t) = clean, costs nothing where the teacher is perfect too."""
    task, whole = made(tiny_sd1, skip=20), batch(50)
    draws, seen = Draws(0, whole.places, 50), list[Tensor]()
    rows = task.denoising.rows(draws, whole)
    task.student.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    with torch.no_grad():
        task._losses(draws, whole)
    grid = LCMScheduler(original_inference_steps=50)
    grid.set_timesteps(50)
    assert sorted(seen[0].tolist()) == sorted(grid.timesteps.tolist()), "each time once in a batch of fifty"
    level = task.schedule.at(torch.zeros(50, dtype=torch.long))
    assert torch.equal(consistent(rows.clean, rows.x, level), rows.x), "the identity at t = 0"


@pytest.mark.parametrize("skip", [30, 300])
def test_the_times_of_a_grid_are_those_that_lcm_samples(skip: int, tiny_sd1: Path) -> None:
    task, whole = made(tiny_sd1, skip=skip), batch(99)  # a multiple of the 33 and of the 3 times
    seen = list[Tensor]()
    task.student.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    with torch.no_grad():
        task._losses(Draws(0, whole.places, 99), whole)
    stock = LCMScheduler.from_config(task.scheduler)
    stock.set_timesteps(stock.config.original_inference_steps)
    assert set(seen[0].tolist()) == set(stock.timesteps.tolist())


def test_the_target_has_no_dropout(tiny_sd1: Path) -> None:
    task, whole = made(tiny_sd1), batch()
    for network in task.networks().values():
        network.train()  # as a trainer does with what it saves
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.5
    task.context(Turn("student", 0, 4, Draws(0, whole.places, 4)), [whole])
    x, t, states, scale = inputs(task)
    level = task.schedule.at(t)
    with torch.no_grad():
        a, b, c, d = (task._student(x, level, states, scale, w) for w in (task.target, task.target, None, None))
    assert torch.equal(a, b)
    assert not torch.equal(c, d)


def test_previews_and_validation(tiny_sd1: Path) -> None:
    for mode in ("consistency", "guidance, lora"):
        few = replace(setting(), captions=lambda: iter(WORDS[:2]))
        task, whole = DistillTask(DistillSettings(type="distill", model=tiny_sd1, **MODES[mode]), few), batch()
        shown = task.preview(0)["pictures"]
        assert torch.equal(shown, task.preview(0)["pictures"])
        assert shown.shape[1:] == (3, 16, 16)
        a, b = (task.validate(Draws(0, whole.places, 4, "validation"), whole)["loss"] for _ in range(2))
        assert torch.equal(a, b)
        assert whole.image is not None
        extra = {**task.cached_latents(whole.image), **task.cached_text(whole.text)}
        cached = task.validate(Draws(0, whole.places, 4, "validation"), replace(whole, image=None, extra=extra))
        assert (cached["loss"] - a).abs().max() < 1e-5
        assert task.exact


def test_a_student_that_is_told_its_scale_goes_on_to_consistency(tiny_sd1: Path, tmp_path: Path) -> None:
    first = made(tiny_sd1, method="guidance")
    first.save(tmp_path / "guided")
    task, whole = made(tmp_path / "guided"), batch()
    calls: list[int] = []
    task.parts.unet.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    loss, _ = task.loss(turn(4, whole.places), whole)
    assert calls == [4], "the teacher is told the scale: one call, no second branch"
    assert float(loss.detach()) > 0
    with pytest.raises(LdmError, match="LoRA"):
        made(tmp_path / "guided", rank=4)


def test_what_cannot_be_distilled_is_said(tiny_sd1: Path, tiny_xl: Path, tiny_inpaint9: Path, tmp_path: Path) -> None:
    parts = {"unet": tiny_sd1, "vae": tiny_sd1, "text": tiny_sd1}
    noise = Noise(kind="epsilon", bound=1e-3)
    DiffusionTask(DiffusionSettings(type="diffusion", noise=noise, **parts), setting()).save(tmp_path / "learned")
    with pytest.raises(LdmError, match="learned variances"):
        made(tmp_path / "learned")
    task = made(tmp_path / "learned", method="guidance")
    assert float(task.loss(turn(4, torch.arange(4)), batch())[0].detach()) > 0
    with pytest.raises(LdmError, match=r"task\.skip=1001"):
        made(tiny_sd1, skip=1001)
    with pytest.raises(LdmError, match="XL"):
        made(tiny_xl)
    with pytest.raises(LdmError, match="inpainting"):
        made(tiny_inpaint9)
    with pytest.raises(ValueError, match="guidance"):
        DistillSettings(type="distill", model=tiny_xl, guidance=(8.0, 2.0))


@pytest.mark.parametrize("mode", thinned(["consistency, lora", "consistency"], 2))
def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(mode: str, tiny_sd1: Path, tmp_path: Path) -> None:
    def batches(step: int) -> Iterator[Batch]:
        return (batch(4, first=4 * s) for s in count(step))

    def ran(folder: Path, cut: int | None) -> DistillTask:
        task = made(tiny_sd1, ema=0.5, **MODES[mode])
        run = RunSettings(out=folder, steps=3, batch=4, save=2)
        trainer = Trainer(task, batches, run, OptimSettings(lr=1e-3), folder)
        for step in trainer.steps():
            if step.step == cut:
                break
        return task

    whole = ran(tmp_path / "whole", None)
    ran(tmp_path / "cut", 3)  # the third step is done and lost: the newest checkpoint is of the second
    again = ran(tmp_path / "cut", None)
    for name, network in whole.networks().items():
        other = again.networks()[name].state_dict()
        assert all(torch.equal(tensor, other[key]) for key, tensor in network.state_dict().items()), name
    assert int(again.target.followed) == 2
    assert list((tmp_path / "cut" / "model").iterdir())
