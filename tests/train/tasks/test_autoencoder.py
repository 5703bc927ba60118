"""The autoencoder task: it learns, its latents are unit latents by weights alone, and its critic keeps the rules."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor

from ldm.data.batch import Batch
from ldm.errors import Code, LdmError
from ldm.models.autoencoder import Autoencoder
from ldm.models.nets.coder import VQCoder
from ldm.store.parts import load_parts, load_vae
from ldm.store.save import save_single
from pipelines.pipeline import Pipeline
from tests import components
from tests.components import seeded
from tests.train.tasks.making import apart, batch, descend, gradients, setting, turn
from tests.train.toys import furthest, optim, plain, run, saved, together
from train.task import Phase, Setting, Task, Turn
from train.tasks import errors
from train.tasks.adversary import Guard
from train.tasks.autoencoder import AutoencoderTask, recoloured
from train.tasks.settings import AutoencoderSettings, Critic
from train.trainer import Trainer

CRITIC = Critic(start=0.0, guard=10.0, channels=8, layers=1, ramp=0.0)


@pytest.fixture(scope="module")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """As `.json`: KL, KL without outer convolutions, VQ, VQ with codes narrower than the latent, and one to refuse."""
    folder = tmp_path_factory.mktemp("architectures")
    plain = {**components.vae(scaling_factor=0.18215).config, "_class_name": "AutoencoderKL"}
    codes = {k: v for k, v in plain.items() if k in VQ} | {"_class_name": "VQModel", "num_vq_embeddings": 24}
    made = {
        "kl": plain,
        "bare": {**plain, "use_quant_conv": False, "use_post_quant_conv": False},
        "vq": codes,
        "narrow": {**codes, "vq_embed_dim": 3},
        "lookup": {**codes, "lookup_from_codebook": True},
    }
    for name, config in made.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    return {name: folder / f"{name}.json" for name in made}


VQ = ("in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels", "layers_per_block",
      "latent_channels", "norm_num_groups", "sample_size")  # fmt: skip


def made(vae: Path, about: Setting | None = None, **changes: Any) -> AutoencoderTask:
    return AutoencoderTask(AutoencoderSettings(type="autoencoder", vae=vae, **changes), about or few())


def few(**changes: Any) -> Setting:
    """A setting whose data set has 48 pictures."""
    about = setting(**changes)
    return replace(about, look=lambda count: about.look(min(count, 48)))


def asked(whole: Batch, phase: str = "autoencoder", step: int = 0) -> Turn:
    return replace(turn(len(whole), whole.places), phase=phase, step=step)


def feed(total: int) -> Callable[[int], Iterator[Batch]]:
    def batches(first: int) -> Iterator[Batch]:
        step = first
        while True:
            yield batch(total, step * total)
            step += 1

    return batches


# Learning, and what is written.


@pytest.mark.parametrize("kind", ["kl", "bare", "vq", "narrow"])
def test_learns_one_batch_and_writes_what_stock_code_loads(
    kind: str, architectures: dict[str, Path], tmp_path: Path
) -> None:
    """Same pictures before and after, and latents of mean 0 and variance 1 in each channel, with scaling factor 1."""
    task, x = made(architectures[kind], l2=1.0, gradients=0.5, kl=1e-3), batch(4)
    assert x.image is not None
    losses = descend(task, x)
    assert losses[-1] < 0.8 * losses[0]
    task.save(tmp_path / "model")
    coder, vae = task.coder, task.coder.vae.eval()
    stock = (VQModel if kind in ("vq", "narrow") else AutoencoderKL).from_pretrained(tmp_path / "model").eval()
    ours = Autoencoder(load_vae(tmp_path / "model")[0])
    assert ours.scale == 1.0 and ours.shift == 0.0
    with torch.no_grad():
        before, after = coder.trip(x.image, None).made, stock(x.image)[0]
        if kind in ("kl", "bare"):
            dist = stock.encode(x.image).latent_dist
            after, latents, extra = stock.decode(dist.mode()).sample, dist.mean, dist.var.mean((0, 2, 3))
        else:
            latents, extra = stock.encode(x.image).latents, torch.zeros(ours.channels)
    assert float((before - after).abs().max()) <= 1e-5
    assert float((ours.decode(latents) - after).abs().max()) <= 1e-5
    measured = torch.cat([p.image for p in few().look(4096) if p.image is not None])
    with torch.no_grad():
        encoded = stock.encode(measured)
    dist = encoded.latent_dist if hasattr(encoded, "latent_dist") else None
    z = dist.mean if dist is not None else encoded.latents
    extra = dist.var.mean((0, 2, 3)) if dist is not None else torch.zeros(z.shape[1])
    assert float(z.mean((0, 2, 3)).abs().max()) < 1e-4
    assert float((z.var((0, 2, 3), correction=0) + extra - 1).abs().max()) < 1e-3
    assert not vae.training and task.networks()["vae"] is vae  # what was trained is not what was folded


def test_goes_on_from_a_folder_without_touching_it(architectures: dict[str, Path], tmp_path: Path) -> None:
    made(architectures["kl"]).save(tmp_path / "first")
    file = tmp_path / "first" / "diffusion_pytorch_model.safetensors"
    before = file.read_bytes()
    task = made(tmp_path / "first")
    losses = descend(task, batch(4), steps=8)
    assert losses[-1] < losses[0]
    assert file.read_bytes() == before


def test_preview_and_figures(architectures: dict[str, Path]) -> None:
    for kind, own in (("kl", {"kl"}), ("vq", {"codes used", "perplexity"})):
        task, x = made(architectures[kind]), batch(4)
        figures = task.validate(turn(4, x.places).draws, x)
        assert set(figures) == {"loss", "l1", "psnr"} | own
        assert all(each.shape == (4,) and bool(torch.isfinite(each).all()) for each in figures.values())
        shown = task.preview(0)["reconstruction"]
        assert shown.shape == (8, 3, 16, 32)
        first = next(setting().look(8)).image
        assert first is not None and float((shown[..., :16] - first).abs().max()) == 0


def test_psnr_is_that_of_pictures_with_a_range_of_two() -> None:
    x = torch.zeros(2, 3, 4, 4)
    assert errors.psnr(x + torch.tensor([0.2, 0.02]).view(2, 1, 1, 1), x).tolist() == pytest.approx([20.0, 40.0])


def test_recolouring_takes_its_share_and_leaves_the_rest() -> None:
    x = torch.rand(400, 3, 2, 2) * 2 - 1
    draws = turn(400, torch.arange(400)).draws
    shown = recoloured(draws, x, 0.25)
    changed = (shown != x).flatten(1).any(1)
    assert 60 < int(changed.sum()) < 140
    assert float(shown.abs().max()) <= 1
    assert recoloured(draws, x, 0.0) is x


@pytest.mark.parametrize(
    ("kind", "changes", "word"),
    [
        ("lookup", {}, "lookup_from_codebook"),
        ("kl", {"perceptual": 1.0}, "perceptual_net"),
        ("kl", {"critic": Critic(layers=3)}, "layers"),
    ],
)
def test_what_cannot_be_is_refused(
    kind: str, changes: dict[str, Any], word: str, architectures: dict[str, Path]
) -> None:
    with pytest.raises(LdmError) as caught:
        made(architectures[kind], **changes)
    assert word in str(caught.value)


def test_a_size_that_the_autoencoder_does_not_divide_is_refused(architectures: dict[str, Path]) -> None:
    with pytest.raises(LdmError, match=r"data\.size=17") as caught:
        made(architectures["kl"], setting(size=17))
    assert caught.value.code == Code.USAGE and "16" in caught.value.fix


def test_a_vq_model_makes_pictures_in_a_pipeline_and_is_no_single_file(
    architectures: dict[str, Path], tmp_path: Path
) -> None:
    task = made(architectures["vq"])
    components.save(components.sd1(vae=folded_copy(task, tmp_path)), tmp_path / "model")
    pipeline = Pipeline.load(tmp_path / "model")
    assert isinstance(pipeline.model.vae.model, VQCoder)
    assert pipeline("a red circle", seed=1, steps=2, width=16, height=16)[0].size == (16, 16)
    with pytest.raises(LdmError, match="VQModel"):
        save_single(load_parts(tmp_path / "model"), tmp_path / "model.safetensors")


def folded_copy(task: AutoencoderTask, folder: Path) -> VQModel:
    task.save(folder / "vae")
    return VQModel.from_pretrained(folder / "vae")


# Micro-batches and the critic.


@pytest.mark.parametrize("kind", ["kl", "vq"])
@pytest.mark.parametrize("size", [1, 3])
def test_without_a_critic_micro_batches_are_exact(kind: str, size: int, architectures: dict[str, Path]) -> None:
    whole = batch(6)
    one, many = (made(architectures[kind], gradients=0.5, kl=1e-2) for _ in range(2))
    assert one.exact and one.exception == ""
    loss, wanted, figures = gradients(one, whole, 6)
    other, found, told = gradients(many, whole, size)
    assert apart(found, wanted) <= 1e-5
    assert other == pytest.approx(loss, rel=1e-5)
    assert told == pytest.approx(figures, rel=1e-4)


def descended(rank: int, world: int, vae: Path, folder: Path) -> None:
    def batches(first: int) -> Iterator[Batch]:
        share = 8 // world
        for whole in feed(8)(first):
            yield whole[rank * share : (rank + 1) * share]

    task = made(vae, gradients=0.5, kl=1e-2, revive=0.5)
    told = optim(kind="sgd", lr=0.05, clip=0.0)
    with plain():
        Trainer(task, batches, run(folder, batch=8, steps=12), told, folder).fit()


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_two_processes_train_as_one(kind: str, architectures: dict[str, Path], tmp_path: Path) -> None:
    """Twelve steps, in which codes are counted, chosen and moved."""
    descended(0, 1, architectures[kind], tmp_path / "one")
    together(2, descended, architectures[kind], tmp_path / "two")
    assert furthest(saved(tmp_path / "two"), saved(tmp_path / "one")) <= 1e-5


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_the_critics_part_is_that_of_the_paper(kind: str, architectures: dict[str, Path]) -> None:
    """The gradient of error + cost + weight lambda judged, lambda by eq. 7 of Esser et al., by plain autograd."""
    task, x = made(architectures[kind], l2=0.5, critic=CRITIC, revive=0.0), batch(4)
    assert task.adversary is not None and x.image is not None and not task.exact and "critic" in task.exception
    task.adversary.guard.since.fill_(0.0)
    vae, critic = task.coder.vae, task.adversary.critic
    loss, figures = task.loss(asked(x), x)
    found = torch.autograd.grad(loss, list(vae.parameters()))

    trip = task.coder.trip(x.image, asked(x).draws)
    error = errors.l1(trip.made, x.image).mean() + 0.5 * errors.l2(trip.made, x.image).mean()
    judged = -critic(trip.made).mean()
    last = vae.decoder.conv_out.weight
    pull, push = (torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (error, judged))
    weight = (pull / (push + 1e-4)).clamp(max=1e4).detach()
    plain = error + trip.cost.mean() + 0.5 * weight * judged
    wanted = torch.autograd.grad(plain, list(vae.parameters()))
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    assert float(figures["critic weight"]) == pytest.approx(0.5 * float(weight), rel=1e-4)
    largest = max(float(w.abs().max()) for w in wanted)
    assert max(float((f - w).abs().max()) for f, w in zip(found, wanted, strict=True)) <= 1e-5 * largest


def test_the_guard_opens_late_and_only_when_the_error_is_small() -> None:
    guard = Guard(start=200, bound=0.1)
    assert not guard.wants(90) and guard.wants(100) and not guard.wants(105)
    for step in range(100, 200, 10):
        guard.see(step, torch.tensor(0.05))
    assert not guard.open(199)  # good enough, and too early
    guard.average.fill_(0.2)
    for step in (200, 210):
        guard.see(step, torch.tensor(0.2))
    assert not guard.open(210)  # late enough, and not good
    steps = 0
    while not guard.open(220 + steps):
        guard.see(220 + steps, torch.tensor(0.05))
        steps += 10
    assert 20 < steps < 200  # an average, not a single batch
    assert not guard.wants(220 + steps)
    guard.average.fill_(1.0)
    assert guard.open(10_000)  # once in, it stays
    longer = Guard(start=400, bound=0.1)
    longer.load_state_dict(guard.state_dict())
    assert not longer.open(399)  # the phase of the critic is not due yet: a pull would be of one that learns nothing
    assert longer.open(400)


def test_until_the_guard_opens_the_critic_neither_learns_nor_speaks(
    architectures: dict[str, Path], tmp_path: Path
) -> None:
    """L1 is below 10 always, and below 1e-6 never: with the first guard the critic begins, with the second nothing
    differs from a run without one."""
    runs = {}
    for name, critic in {"none": None, "shut": CRITIC.model_copy(update={"guard": 1e-6}), "open": CRITIC}.items():
        task = made(architectures["kl"], critic=critic)
        first = {n: p.clone() for n, p in task.networks()["vae"].named_parameters()}
        fixed = None if task.adversary is None else [p.clone() for p in task.adversary.critic.parameters()]
        Trainer(task, feed(4), run(tmp_path / name, batch=4, steps=3), optim(), tmp_path / name).fit()
        runs[name] = {n: p.detach() for n, p in task.networks()["vae"].named_parameters()}
        assert furthest(runs[name], first) > 0
        if task.adversary is not None and fixed is not None:
            moved = [not torch.equal(a, b) for a, b in zip(task.adversary.critic.parameters(), fixed, strict=True)]
            assert all(moved) if name == "open" else not any(moved)
    assert all(torch.equal(runs["none"][n], p) for n, p in runs["shut"].items())
    assert furthest(runs["open"], runs["none"]) > 1e-4


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_run_with_a_critic_resumes_to_the_bit(kind: str, architectures: dict[str, Path], tmp_path: Path) -> None:
    """It is cut between the step at which the guard opens and codes are chosen, and that at which they are moved."""

    def task() -> Task:
        return made(architectures[kind], few(steps=14), critic=CRITIC.model_copy(update={"start": 0.72}), revive=0.5)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    Trainer(task(), feed(4), run(whole, batch=4, steps=14), optim(), whole).fit()
    first = Trainer(task(), feed(4), run(parts, batch=4, steps=14, save=11), optim(), parts)
    assert 11 in (done.step for done in first.steps())  # and no further
    Trainer(task(), feed(4), run(parts, batch=4, steps=14), optim(), parts).fit()
    for part in ("model", "ema", "optimizer"):
        a, b = saved(whole, part), saved(parts, part)
        assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
    assert float(saved(whole)["guard.since"]) == 10.0


def test_phases_do_not_touch_each_others_parameters(architectures: dict[str, Path]) -> None:
    phases = made(architectures["kl"], critic=CRITIC).phases()
    assert [phase.name for phase in phases] == ["autoencoder", "critic"]
    mine, its = ({id(p) for p in phase.params} for phase in phases)
    assert not mine & its and phases[0].average and not phases[1].average and isinstance(phases[0], Phase)


def test_a_perceptual_net_looks_along(architectures: dict[str, Path], tmp_path: Path) -> None:
    from ldm.models.perceptual import SmallClassifier
    from ldm.store.write import write_weights

    with seeded(1):
        net = SmallClassifier(3, (8, 8))
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "config.json").write_text(json.dumps(net.config))
    write_weights(tmp_path / "net" / "model.safetensors", net.state_dict())
    task, x = made(architectures["kl"], perceptual=1.0, perceptual_net=tmp_path / "net"), batch(4)
    plain = made(architectures["kl"])
    assert set(task.frozen()) == {"perceptual"}
    assert x.image is not None
    with torch.no_grad():
        seen: Tensor = net.eval()(x.image)[0]
        loss, other = task.loss(asked(x), x)[0], plain.loss(asked(x), x)[0]
    assert seen.shape == (4, 8, 16, 16)
    assert float(loss) > float(other) + 1e-3
    assert "perceptual" in task.validate(asked(x).draws, x)
