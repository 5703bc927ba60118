"""The chain in miniature at toy size: each part is trained from its shipped run file on what the one before wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    VQModel,
)

from ldm.config import find, load
from pipelines.pipeline import Pipeline
from pipelines.request import Request
from train.config import RunFile
from train.run import opened
from train.scenes_report import report

CHAIN = ("autoencoder", "clip", "diffusion", "controlnet", "decoder")


def trained(part: str, root: Path, clip: Path | None = None, variant: str = "scenes") -> Path:
    """The result of a few steps of a shipped run file, its paths moved from runs/scenes to `root`; `clip` where that
    lies elsewhere."""
    small = ["run.steps=3", "run.batch=8", "run.save=3", "run.preview=0", "run.evaluate=0", "optim.warmup=0"]
    moved = {
        "diffusion": [
            f"task.vae={root}/autoencoder/model",
            f"task.text={clip or root / 'clip' / 'model'}",
            f"run.cache={root}/cache",
        ],
        "controlnet": [f"task.model={root}/diffusion/model"],
        "decoder": [f"task.vae={root}/autoencoder/model"],
    }
    overrides = [*small, "data.count=600", f"run.out={root}/{part}", *moved.get(part, [])]
    with opened(load(find(f"{part}/{variant}"), RunFile, overrides)) as run:
        run.fit()
    return root / part / "model"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("chain")
    return {part: trained(part, root) for part in CHAIN}


def test_stock_pipelines_load_every_part(chain: dict[str, Path]) -> None:
    stock = StableDiffusionPipeline.from_pretrained(chain["diffusion"], safety_checker=None)
    control = ControlNetModel.from_pretrained(chain["controlnet"])
    StableDiffusionControlNetPipeline(**stock.components, controlnet=control)
    tiny = AutoencoderTiny.from_pretrained(chain["decoder"])
    assert tiny.config.latent_channels == stock.vae.config.latent_channels
    assert stock.text_encoder.config.hidden_size == stock.unet.config.cross_attention_dim


def test_our_pipeline_makes_a_picture_of_it(chain: dict[str, Path]) -> None:
    picture = Pipeline.load(chain["diffusion"], device="cpu")("a red circle", seed=1, steps=2)[0]
    assert picture.size == (32, 32)


def test_the_report_counts_what_it_was_told(chain: dict[str, Path], tmp_path: Path) -> None:
    told = report(chain["diffusion"], tmp_path / "report", chain["controlnet"], chain["decoder"], count=8, steps=2)
    assert told["accuracy"]["checker_on_renders"]["all"]["share"] == 1.0
    assert told["accuracy"]["checker_on_noise"]["all"]["share"] == 0.0
    assert told["accuracy"]["held_out"]["all"]["count"] == 8
    share = told["accuracy"]["held_out"]["shape"]["share"]
    assert told["bars"]["shape"].startswith("reached" if share >= 0.9 else "missed")
    assert told["control"]["count"] == 4
    assert {p.name for p in (tmp_path / "report").iterdir()} == {
        "report.json", "index.html", "held-out.png", "control.png",
    }  # fmt: skip


@pytest.fixture(scope="module")
def codes(chain: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The parts of `make scenes-vq` that differ; the text tower is that of the other chain, and there is no control."""
    root = tmp_path_factory.mktemp("codes")
    made = {"autoencoder": trained("autoencoder", root, variant="scenes-vq")}
    return made | {part: trained(part, root, chain["clip"]) for part in ("diffusion", "decoder")}


@pytest.mark.torture
def test_the_variant_with_codes_makes_its_pictures_of_them(codes: dict[str, Path]) -> None:
    """The same as stock parts do (the stock pipeline itself cannot call a VQModel); and what is decoded are codes: near
    one of them nothing changes."""
    vae = VQModel.from_pretrained(codes["diffusion"], subfolder="vae")
    learned = dict(VQModel.from_pretrained(codes["autoencoder"]).named_parameters())
    assert vae.config.num_vq_embeddings == 256
    assert all(torch.equal(p, learned[name]) for name, p in vae.named_parameters())
    stock = StableDiffusionPipeline.from_pretrained(codes["diffusion"], safety_checker=None)
    stock.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "guidance_scale": 4.0, "height": 32, "width": 32, "output_type": "latent"}
    latents = stock("a red circle", generator=torch.Generator().manual_seed(1), **settings).images
    ours = Pipeline.load(codes["diffusion"], device="cpu")
    request = Request(prompt="a red circle", seed=1, steps=2, guidance={"scale": 4.0}, width=32, height=32)
    z = vae.quantize.embedding.weight.detach()[:64].T.reshape(1, 4, 8, 8)
    with torch.no_grad():
        theirs = (vae.decode(latents).sample[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()
        assert abs(theirs * 255 - ours.results(request)[0].picture.pixels).max() <= 1.0
        assert torch.equal(ours.model.vae.decode(z + 1e-4), ours.model.vae.decode(z))
        assert not torch.equal(ours.model.vae.decode(z.flip(2)), ours.model.vae.decode(z))


def test_the_report_takes_the_variant_with_codes(codes: dict[str, Path], tmp_path: Path) -> None:
    told = report(codes["diffusion"], tmp_path / "report", None, codes["decoder"], count=8, steps=2)
    assert told["accuracy"]["held_out"]["all"]["count"] == 8
    assert told["psnr_db"] > 0 and told["decoder_psnr_db"] > 0
    assert {p.name for p in (tmp_path / "report").iterdir()} == {"report.json", "index.html", "held-out.png"}
