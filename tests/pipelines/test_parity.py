"""The one loop against the stock pipelines, one for each mode: the same latents from the same seed, to 1e-4 in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from PIL import Image

from pipelines.pipeline import Pipeline
from pipelines.request import ControlUse, GuidanceUse, Request
from tests import components

SOLVERS = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "dpm++ 2m": DPMSolverMultistepScheduler}
PROMPT, NEGATIVE, STEPS, SEED = "a photo of a red square", "blue circle", 6, 11
SIDE = components.PIXELS
BOUND = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parity")
    components.save(components.sd1(), root / "sd1")
    components.save(components.sd1_inpaint(), root / "inpaint")
    components.save(components.xl(scheduler=components.ddim()), root / "xl")
    components.save(components.xl_refiner(scheduler=components.ddim()), root / "refiner")
    components.controlnet().save_pretrained(root / "control")
    return root


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def hole() -> Image.Image:
    grey = np.zeros((SIDE, SIDE), np.uint8)
    grey[4:12, 2:10] = 255
    return Image.fromarray(grey)


def ours(where: Path, solver: str, **fields: Any) -> torch.Tensor:
    pipeline = Pipeline.load(where, device="cpu")
    fields = {
        "prompt": PROMPT,
        "negative": NEGATIVE,
        "steps": STEPS,
        "seed": SEED,
        "guidance": GuidanceUse(scale=5.0),
    } | fields
    request = Request(solver=solver, spacing="leading" if solver != "dpm++ 2m" else "linspace", **fields)
    return next(s.clean for s in pipeline.run(request) if s.stage == "decode" and s.clean is not None)


def theirs(pipe: Any, solver: str, **call: Any) -> torch.Tensor:
    spacing = "leading" if solver != "dpm++ 2m" else "linspace"
    pipe.scheduler = SOLVERS[solver].from_config(components.scheduler_config(timestep_spacing=spacing))
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": 5.0} | call
    return pipe(**call, generator=torch.Generator().manual_seed(SEED), output_type="latent").images


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= BOUND
    assert float(a.std()) > 0.1  # not a comparison of nothing with nothing


each_solver = pytest.mark.parametrize("solver", SOLVERS)


@each_solver
def test_text_to_image(folder: Path, solver: str) -> None:
    close(ours(folder / "sd1", solver), theirs(components.sd1(), solver, height=SIDE, width=SIDE))


@each_solver
def test_image_to_image(folder: Path, solver: str) -> None:
    pipe = StableDiffusionImg2ImgPipeline(**components.sd1().components, requires_safety_checker=False)
    want = theirs(pipe, solver, image=picture(1), strength=0.6)
    close(ours(folder / "sd1", solver, image=picture(1), strength=0.6), want)


@each_solver
@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_nine_channel_inpaint(folder: Path, solver: str, strength: float) -> None:
    want = theirs(
        components.sd1_inpaint(),
        solver,
        image=picture(2),
        mask_image=hole(),
        strength=strength,
        height=SIDE,
        width=SIDE,
    )
    close(ours(folder / "inpaint", solver, image=picture(2), mask=hole(), strength=strength), want)


@each_solver
@pytest.mark.parametrize("guess", [False, True])
def test_control(folder: Path, solver: str, guess: bool) -> None:
    pipe = StableDiffusionControlNetPipeline(
        **components.sd1().components, controlnet=components.controlnet(), requires_safety_checker=False
    )
    call = {"control_guidance_start": 0.2, "control_guidance_end": 0.8, "controlnet_conditioning_scale": 0.7}
    want = theirs(pipe, solver, image=picture(3), guess_mode=guess, height=SIDE, width=SIDE, **call)
    use = ControlUse(model=str(folder / "control"), image=picture(3), weight=0.7, start=0.2, end=0.8, guess=guess)
    close(ours(folder / "sd1", solver, controls=(use,)), want)


@each_solver
def test_two_controls(folder: Path, solver: str) -> None:
    nets = [components.controlnet(seed=5), components.controlnet(seed=6)]
    nets[1].save_pretrained(folder / "second")
    pipe = StableDiffusionControlNetPipeline(
        **components.sd1().components, controlnet=nets, requires_safety_checker=False
    )
    want = theirs(
        pipe, solver, image=[picture(3), picture(4)], controlnet_conditioning_scale=[0.5, 0.9], height=SIDE, width=SIDE
    )
    uses = tuple(
        ControlUse(model=str(folder / n), image=picture(i), weight=w)
        for n, i, w in (("control", 3, 0.5), ("second", 4, 0.9))
    )
    close(ours(folder / "sd1", solver, controls=uses), want)


@each_solver
def test_control_and_image_to_image(folder: Path, solver: str) -> None:
    pipe = StableDiffusionControlNetImg2ImgPipeline(
        **components.sd1().components, controlnet=components.controlnet(), requires_safety_checker=False
    )
    want = theirs(
        pipe, solver, image=picture(1), control_image=picture(3), strength=0.7, controlnet_conditioning_scale=1.0,
        height=SIDE, width=SIDE,
    )  # fmt: skip
    use = ControlUse(model=str(folder / "control"), image=picture(3))
    close(ours(folder / "sd1", solver, image=picture(1), strength=0.7, controls=(use,)), want)


@each_solver
def test_control_and_nine_channel_inpaint(folder: Path, solver: str) -> None:
    parts = components.sd1_inpaint().components  # a ControlNet sees the four latent channels only
    pipe = StableDiffusionControlNetInpaintPipeline(
        **parts, controlnet=components.controlnet(), requires_safety_checker=False
    )
    want = theirs(
        pipe, solver, image=picture(2), mask_image=hole(), control_image=picture(3), strength=1.0,
        controlnet_conditioning_scale=1.0, height=SIDE, width=SIDE,
    )  # fmt: skip
    use = ControlUse(model=str(folder / "control"), image=picture(3))
    close(ours(folder / "inpaint", solver, image=picture(2), mask=hole(), strength=1.0, controls=(use,)), want)


@each_solver
@pytest.mark.parametrize("negative", [NEGATIVE, None, ""])
def test_xl(folder: Path, solver: str, negative: str | None) -> None:
    want = theirs(components.xl(), solver, negative_prompt=negative, height=SIDE, width=SIDE)
    close(ours(folder / "xl", solver, negative=negative), want)


@each_solver
def test_xl_base_and_refiner(folder: Path, solver: str) -> None:
    base = theirs(components.xl(), solver, denoising_end=0.6, height=SIDE, width=SIDE)
    pipe: StableDiffusionXLImg2ImgPipeline = components.xl_refiner()
    want = theirs(pipe, solver, image=base, denoising_start=0.6)
    close(ours(folder / "xl", solver, refiner=str(folder / "refiner"), refiner_start=0.6), want)


@each_solver
def test_guidance_rescale(folder: Path, solver: str) -> None:
    want = theirs(components.sd1(), solver, guidance_rescale=0.7, height=SIDE, width=SIDE)
    close(ours(folder / "sd1", solver, guidance=GuidanceUse(scale=5.0, rescale=0.7)), want)


@each_solver
@pytest.mark.parametrize("scale", [5.0, 1.0])
def test_perturbed_attention(folder: Path, solver: str, scale: float) -> None:
    pipe = StableDiffusionPAGPipeline(
        **components.sd1().components, pag_applied_layers=["mid"], requires_safety_checker=False
    )
    want = theirs(pipe, solver, guidance_scale=scale, pag_scale=2.0, height=SIDE, width=SIDE)
    close(ours(folder / "sd1", solver, guidance=GuidanceUse(scale=scale, pag=2.0)), want)


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_pictures_outside_the_loop_are_equal_too(folder: Path, strength: float) -> None:
    """Decoded and rounded: a stock recipe with the same seed gives the same picture, to one level in 255."""
    pipe = StableDiffusionImg2ImgPipeline(**components.sd1().components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    want = pipe(
        PROMPT, image=picture(1), strength=strength, num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(SEED), output_type="np",
    ).images[0]  # fmt: skip
    request = Request(prompt=PROMPT, image=picture(1), strength=strength, steps=STEPS, seed=SEED, solver="ddim")
    got = np.asarray(Pipeline.load(folder / "sd1", device="cpu")(request)[0], np.float32)
    assert np.abs(got - want * 255).max() <= 1.0
