"""A picture is a function of its recipe: not of its batch, its neighbours, their order, or what ran before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import Code, LdmError
from pipelines.pipeline import Pipeline
from pipelines.request import Request
from pipelines.steps import Result

FIELDS = {"prompt": "a red square", "negative": "blue", "steps": 4, "seed": 100}


@pytest.fixture(scope="module")
def pipeline(tiny_sd1: Path) -> Pipeline:
    return Pipeline.load(tiny_sd1, device="cpu")


def pixels(results: list[Result]) -> dict[int, np.ndarray]:
    return {r.seed: r.picture.pixels.astype(int) for r in results}


def crude(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


@pytest.mark.parametrize("solver", ["ddim", "euler-a", "dpm++ 2m sde", "ddpm", "lcm"])
@pytest.mark.parametrize("image", [None, 1])
def test_alone_in_a_batch_or_in_another_order(pipeline: Pipeline, solver: str, image: int | None) -> None:
    """Solvers that draw noise in every step are the ones that usually fail here."""
    fields = FIELDS | {"solver": solver} | ({"image": crude(), "strength": 0.8} if image else {})
    batch = pixels(pipeline.results(Request(**fields, count=8, batch=8)))
    threes = pixels(pipeline.results(Request(**fields, count=8, batch=3)))
    for seed in (107, 100, 103):
        alone = pixels(pipeline.results(Request(**(fields | {"seed": seed}))))[seed]
        assert np.abs(alone - batch[seed]).max() <= 2
        assert np.abs(alone - threes[seed]).max() <= 2
    assert np.abs(batch[100] - batch[101]).max() > 20  # the pictures do differ from each other


def test_exact_is_bit_equal(pipeline: Pipeline) -> None:
    fields = FIELDS | {"solver": "euler-a", "exact": True}
    batch = pixels(pipeline.results(Request(**fields, count=8, batch=8)))
    for seed in (105, 100, 107, 102):
        assert np.array_equal(pixels(pipeline.results(Request(**(fields | {"seed": seed}))))[seed], batch[seed])


def test_exact_is_bit_equal_in_a_fresh_pipeline(tiny_sd1: Path, pipeline: Pipeline) -> None:
    request = Request(**FIELDS, exact=True)
    fresh = Pipeline.load(tiny_sd1, device="cpu")
    assert np.array_equal(pixels(fresh.results(request))[100], pixels(pipeline.results(request))[100])


def test_exact_refuses_half_precision(tiny_sd1: Path) -> None:
    with pytest.raises(LdmError, match="exact") as error:
        Pipeline.load(tiny_sd1, device="cpu", dtype="bf16").results(Request(**FIELDS, exact=True))
    assert error.value.code == Code.USAGE


def test_half_precision_stays_near(tiny_sd1: Path, pipeline: Pipeline) -> None:
    """The stated bound for bf16 on random weights: mean 6/255 of the fp32 picture."""
    half = pixels(Pipeline.load(tiny_sd1, device="cpu", dtype="bfloat16").results(Request(**FIELDS)))[100]
    full = pixels(pipeline.results(Request(**FIELDS)))[100]
    assert np.abs(half - full).mean() <= 6


def test_more_threads_change_little(pipeline: Pipeline) -> None:
    one = pixels(pipeline.results(Request(**FIELDS)))[100]
    torch.set_num_threads(2)
    assert np.abs(one - pixels(pipeline.results(Request(**FIELDS)))[100]).max() <= 2


def test_earlier_requests_leave_nothing_behind(tiny_sd1: Path) -> None:
    pipeline = Pipeline.load(tiny_sd1, device="cpu")
    request = Request(**FIELDS, exact=True)
    before = pixels(pipeline.results(request))[100]
    pipeline.results(Request(prompt="a cat", guidance={"pag": 2.0, "method": "apg"}, count=2, steps=3, solver="unipc"))
    steps = pipeline.run(Request(prompt="left half way", steps=5))
    next(steps), next(steps)
    steps.close()
    assert np.array_equal(pixels(pipeline.results(request))[100], before)


def test_variations_start_from_the_seed_and_end_at_the_other(pipeline: Pipeline) -> None:
    def picture(**more: object) -> np.ndarray:
        return next(iter(pixels(pipeline.results(Request(**(FIELDS | more)))).values()))

    seed, other = picture(), picture(seed=500)
    assert np.abs(picture(variation_seed=500, variation=0.0) - seed).max() <= 2
    assert np.abs(picture(variation_seed=500, variation=1.0) - other).max() <= 2
    near, far = picture(variation_seed=500, variation=0.1), picture(variation_seed=500, variation=0.6)
    assert 0 < np.abs(near - seed).mean() < np.abs(far - seed).mean()


def test_a_variation_of_a_batch_is_the_same_alone(pipeline: Pipeline) -> None:
    fields = FIELDS | {"variation": 0.4}
    results = pipeline.results(Request(**fields, variation_seed=7, count=3))
    alone = pipeline.results(Request(**fields, variation_seed=9))[0]
    assert np.abs(results[2].picture.pixels.astype(int) - alone.picture.pixels).max() <= 2
    assert results[2].recipe.request["variation_seed"] == 9


def test_wildcards_of_picture_i_are_those_of_seed_plus_i(pipeline: Pipeline) -> None:
    fields = FIELDS | {"prompt": "a {red|green|blue|yellow} {square|circle|triangle}"}
    results = pipeline.results(Request(**fields, count=6))
    assert len({r.recipe.prompt for r in results}) > 1
    for result in results[::2]:
        alone = pipeline.results(Request(**(fields | {"seed": result.seed})))[0]
        assert alone.recipe.prompt == result.recipe.prompt
        assert np.abs(alone.picture.pixels.astype(int) - result.picture.pixels).max() <= 2
