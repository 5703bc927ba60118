"""The tiny decoder: it learns from the large one, in latents of unit variance, and loads in stock diffusers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline

from ldm.errors import Code, LdmError
from ldm.models.autoencoder import Autoencoder
from ldm.store.parts import load_parts, load_vae
from tests import components
from tests.train.tasks.making import apart, batch, descend, gradients, setting, turn
from train import caching
from train.tasks.decoder import DecoderTask, small_config
from train.tasks.settings import Critic, DecoderSettings


def made(vae: Path, **changes: Any) -> DecoderTask:
    return DecoderTask(DecoderSettings(type="decoder", vae=vae, **changes), setting())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder with a scale and a shift, so that forgetting either is seen."""
    folder = tmp_path_factory.mktemp("large") / "vae"
    components.vae(scaling_factor=0.5, shift_factor=0.3).save_pretrained(folder)
    return folder


def test_learns_one_batch_and_writes_what_stock_code_loads(teacher: Path, tmp_path: Path) -> None:
    task, x = made(teacher), batch(4)
    losses = descend(task, x, steps=40)
    assert losses[-1] < 0.7 * losses[0]
    task.save(tmp_path / "model")
    stock = AutoencoderTiny.from_pretrained(tmp_path / "model").eval()
    ours = Autoencoder(load_vae(tmp_path / "model")[0])
    assert stock.config.scaling_factor == 1.0 and ours.scale == 1.0 and ours.factor == 2
    assert load_vae(tmp_path / "model")[1] == []
    z = task._lesson(turn(4, x.places).draws, x).z
    with torch.no_grad():
        wanted, found = task.tiny.decode(z), stock.decode(z).sample
        encoded = stock.encode(x.image).latents
    assert float((found - wanted).abs().max()) <= 1e-5
    assert float((ours.decode(z) - wanted).abs().max()) <= 1e-5
    assert x.image is not None
    own = ours.encode(x.image, [torch.Generator()] * 4)
    assert float((own - encoded).abs().max()) <= 1e-5


def test_latents_are_those_that_a_diffusion_model_sees(teacher: Path) -> None:
    """z = (encoded - shift) * scale, and what the large one makes of z is what it makes of its own latent."""
    task, x = made(teacher), batch(4)
    lesson = task._lesson(turn(4, x.places).draws, x)
    vae = load_vae(teacher)[0]
    with torch.no_grad():
        raw = vae.encode(x.image).mean
        whole = vae.decode(lesson.z / 0.5 + 0.3).clamp(-1, 1)
    assert float((lesson.mean - (raw - 0.3) * 0.5).abs().max()) < 1e-6
    assert float((lesson.picture - whole).abs().max()) < 1e-5


def test_the_encoder_sees_the_pictures_themselves(teacher: Path) -> None:
    """Not what the large one makes of them, which is another picture: so a cache of latents would not do."""
    task, x = made(teacher), batch(4)
    assert x.image is not None
    asked = turn(4, x.places)
    lesson = task._lesson(asked.draws, x)
    assert float((lesson.picture - x.image).abs().mean()) > 0.1
    with torch.no_grad():
        mean = float((task.tiny.encode(x.image) - lesson.mean).square().mean())
    assert float(task.loss(asked, x)[1]["encoder"]) == pytest.approx(mean, rel=1e-5)
    assert float(task.validate(asked.draws, x)["encoder"].mean()) == pytest.approx(mean, rel=1e-5)
    with pytest.raises(LdmError, match=r"run\.cache does nothing for this task") as error:
        caching.check(task, "decoder")
    assert "looks at the pictures themselves" in error.value.why
    moments_only = replace(x, image=None, extra={"mean": lesson.mean, "std": lesson.mean.abs()})
    with pytest.raises(LdmError, match="the pictures of the data set are not there"):
        task.loss(asked, moments_only)


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_are_exact(teacher: Path, size: int) -> None:
    one, many, whole = made(teacher), made(teacher), batch(6)
    assert one.exact
    loss, wanted, figures = gradients(one, whole, 6)
    other, found, told = gradients(many, whole, size)
    assert apart(found, wanted) <= 1e-5
    assert other == pytest.approx(loss, rel=1e-5) and told == pytest.approx(figures, rel=1e-5)


def test_recomputed_activations_change_nothing(teacher: Path) -> None:
    plain, saving, whole = made(teacher), made(teacher), batch(4)
    saving.tiny.recompute()
    a, b = (gradients(task, whole, 4) for task in (plain, saving))
    assert a[0] == pytest.approx(b[0], rel=1e-6) and apart(a[1], b[1]) <= 1e-5


def test_a_critic_may_judge_along(teacher: Path) -> None:
    task, x = made(teacher, critic=Critic(start=0.0, guard=10.0, channels=8, layers=1)), batch(4)
    assert [phase.name for phase in task.phases()] == ["decoder", "critic"] and not task.exact
    asked = replace(turn(4, x.places), phase="decoder")
    task.context(asked, [x])
    figures = task.loss(asked, x)[1]
    assert set(figures) == {"l1", "encoder", "judged", "critic weight"}
    loss, _ = task.loss(replace(asked, phase="critic"), x)
    loss.backward()
    assert task.adversary is not None
    assert all(p.grad is not None for p in task.adversary.critic.parameters())
    assert not any(p.grad is not None for p in task.tiny.parameters())


def test_preview_and_figures(teacher: Path) -> None:
    task, x = made(teacher), batch(4)
    figures = task.validate(turn(4, x.places).draws, x)
    assert set(figures) == {"loss", "l1", "psnr", "encoder", "psnr original"}
    assert all(each.shape == (4,) for each in figures.values())
    assert task.preview(0)["decoders"].shape == (8, 3, 16, 64)


def test_one_that_does_not_fit_is_refused(teacher: Path, tmp_path: Path) -> None:
    config = small_config(Autoencoder(load_vae(teacher)[0]))
    for wrong in ({"latent_channels": 8}, {"num_encoder_blocks": [1], "encoder_block_out_channels": [16],
                                           "num_decoder_blocks": [1], "decoder_block_out_channels": [16]}):  # fmt: skip
        (tmp_path / "tiny.json").write_text(json.dumps(config | wrong))
        with pytest.raises(LdmError) as caught:
            made(teacher, decoder=tmp_path / "tiny.json")
        assert caught.value.code == Code.MODEL and "task.decoder" in caught.value.what
    with pytest.raises(LdmError, match="does not fit"):
        made(teacher, decoder=teacher)


def test_it_takes_the_place_of_the_autoencoder_in_pipelines(tiny_sd1: Path, tmp_path: Path) -> None:
    """In the stock one as `vae`, and in ours by --vae."""
    task = made(tiny_sd1)
    task.save(tmp_path / "model")
    pipeline: Any = StableDiffusionPipeline.from_pretrained(tiny_sd1, safety_checker=None)
    pipeline.vae = AutoencoderTiny.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    picture = pipeline("a red circle", latents=z, num_inference_steps=2, output_type="pt", height=16, width=16).images
    latent = pipeline(
        "a red circle", latents=z, num_inference_steps=2, output_type="latent", height=16, width=16
    ).images
    parts = load_parts(tiny_sd1, vae=tmp_path / "model")
    made_here = Autoencoder(parts.vae).decode(latent)
    assert float(((made_here / 2 + 0.5).clamp(0, 1) - picture).abs().max()) <= 1e-5
