"""The chain in miniature at toy size: each part is trained from its shipped run file on what the one before wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionPipeline

from ldm.config import find, load
from pipelines.pipeline import Pipeline
from train.config import RunFile
from train.run import opened
from train.scenes_report import report

CHAIN = ("autoencoder", "clip", "diffusion", "controlnet", "decoder")


def trained(part: str, root: Path) -> Path:
    """The result of a few steps of a shipped run file, its paths moved from runs/scenes to `root`."""
    small = ["run.steps=3", "run.batch=8", "run.save=3", "run.preview=0", "run.evaluate=0", "optim.warmup=0"]
    moved = {
        "diffusion": [
            f"task.vae={root}/autoencoder/model",
            f"task.text={root}/clip/model",
            f"run.cache={root}/cache",
        ],
        "controlnet": [f"task.model={root}/diffusion/model"],
        "decoder": [f"task.vae={root}/autoencoder/model"],
    }
    overrides = [*small, "data.count=600", f"run.out={root}/{part}", *moved.get(part, [])]
    with opened(load(find(f"{part}/scenes"), RunFile, overrides)) as run:
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
    assert told["control"]["count"] == 4
    assert {p.name for p in (tmp_path / "report").iterdir()} == {
        "report.json", "index.html", "held-out.png", "control.png",
    }  # fmt: skip
