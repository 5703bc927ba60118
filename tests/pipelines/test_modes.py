"""Modes through the whole pipeline on tiny networks: what must not change does not, what is asked for happens."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from ldm.errors import Code, LdmError
from ldm.images import Picture, open_image, save_image
from ldm.models.autoencoder import Autoencoder
from ldm.store.find import TINY_DECODER
from ldm.store.parts import load_vae
from pipelines.conditions import Words
from pipelines.pipeline import Pipeline
from pipelines.request import ControlUse, HiresUse, Request, TileUse
from train.tasks.decoder import small_config

BASE: dict[str, Any] = {"prompt": "a red square", "steps": 3, "seed": 1}


def picture(width: int = 40, height: int = 24, depth: type = np.uint8, alpha: bool = False) -> Picture:
    rng = np.random.default_rng(3)
    top = np.iinfo(depth).max + 1
    pixels = rng.integers(0, top, (height, width, 3)).astype(depth)
    return Picture(pixels, rng.integers(0, top, (height, width)).astype(depth) if alpha else None)


def mask(width: int = 40, height: int = 24, soft: bool = False) -> Picture:
    grey = np.zeros((height, width, 1), np.uint8)
    grey[5:17, 6:21] = 255
    if soft:
        grey[9:12, 6:21] = 90
    return Picture(grey)


MODES: dict[str, dict[str, Any]] = {
    "inpaint": {},
    "half strength": {"strength": 0.7},
    "blur fill": {"fill": "blur"},
    "noise fill": {"fill": "noise", "count": 2},
    "only masked": {"only_masked": True, "width": 32, "height": 32, "padding": 3},
    "soft edge": {"mask_blur": 2.0},
    "larger": {"width": 64, "height": 48},
    "two passes": {"hires": HiresUse(scale=2.0, steps=2)},
    "tiles": {"tile": TileUse(size=16, overlap=4)},
    "outpaint": {"pad": (8, 0, 5, 3)},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("network", ["four", "nine"])
@pytest.mark.parametrize("kind", ["8 bit", "16 bit", "alpha"])
def test_nothing_changes_outside_the_mask(
    mode: str, network: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pipeline: Pipeline = request.getfixturevalue(network)
    source = picture(depth=np.uint16 if kind == "16 bit" else np.uint8, alpha=kind == "alpha")
    painted = mask(soft=mode == "inpaint")
    fields = BASE | MODES[mode]
    left, top, right, bottom = fields.get("pad", (0, 0, 0, 0))
    for result in pipeline.results(Request(**fields, image=source, mask=painted)):
        saved = open_image(save_image(result.picture, tmp_path / f"{result.index}.png"))
        assert saved.size == (source.width + left + right, source.height + top + bottom)
        inner = (slice(top, top + source.height), slice(left, left + source.width))
        keep = painted.pixels[..., 0] == 0
        assert saved.pixels.dtype == source.pixels.dtype
        assert np.array_equal(saved.pixels[inner][keep], source.pixels[keep])
        assert (saved.pixels[inner][~keep] != source.pixels[~keep]).mean() > 0.5
        if source.alpha is not None:
            assert saved.alpha is not None
            assert np.array_equal(saved.alpha[inner], source.alpha)


@pytest.mark.parametrize("network", ["four", "nine"])
def test_outpaint_alone_keeps_the_picture(network: str, request: pytest.FixtureRequest) -> None:
    pipeline: Pipeline = request.getfixturevalue(network)
    source = picture()
    result = pipeline.results(Request(**BASE, image=source, pad=(8, 8, 8, 8)))[0].picture
    assert np.array_equal(result.pixels[8:-8, 8:-8], source.pixels)


@pytest.mark.parametrize("why", ["strength 0", "black mask"])
def test_nothing_to_paint_gives_the_picture_back(four: Pipeline, why: str) -> None:
    source = picture()
    more = {"strength": 0.0} if why == "strength 0" else {"mask": Picture(np.zeros((24, 40, 1), np.uint8))}
    result = four.results(Request(**(BASE | more), image=source))[0]
    assert np.array_equal(result.picture.pixels, source.pixels)
    assert "nothing was painted" in " ".join(result.recipe.notes)
    assert result.recipe.steps == 0


def test_a_strength_that_runs_no_step_says_which_would(four: Pipeline) -> None:
    with pytest.raises(LdmError, match="runs no step") as error:
        four.results(Request(**(BASE | {"strength": 0.1}), image=picture()))
    assert "0.333" in error.value.fix


def test_the_recipe_counts_the_steps_really_run(four: Pipeline) -> None:
    assert four.results(Request(**(BASE | {"steps": 10, "strength": 0.5}), image=picture()))[0].recipe.steps == 5


def test_a_control_mask_limits_where_it_acts(four: Pipeline, tiny_controlnet: Path) -> None:
    hint = picture(16, 16)

    def run(**more: Any) -> np.ndarray:
        use = ControlUse(model=str(tiny_controlnet), image=hint, weight=2.0, **more)
        request = Request(**(BASE | {"controls": (use,)}))
        return four.results(request)[0].picture.pixels.astype(int)

    plain = four.results(Request(**BASE))[0].picture.pixels.astype(int)
    nowhere = Picture(np.zeros((16, 16, 1), np.uint8))
    assert np.abs(run() - plain).mean() > 5
    assert np.abs(run(mask=nowhere) - plain).max() <= 1


SAME_WORDS: dict[str, tuple[str, dict[str, Any]]] = {  # prompt, second pass
    "half of the steps": ("a red square", {"strength": 0.5}),
    "other steps": ("a red square", {"strength": 0.5, "steps": 8}),
    "a switch": ("a [red:blue:0.5] square", {"strength": 0.5}),
    "a long prompt": ("a red square " * 30, {"strength": 1.0}),
}


@pytest.mark.parametrize("case", SAME_WORDS)
def test_a_second_pass_reads_no_words_again(four: Pipeline, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, hires = SAME_WORDS[case]
    request = Request(**(BASE | {"prompt": prompt, "negative": "dog", "steps": 4, "exact": True}))
    two_passes = request.model_copy(update={"hires": HiresUse(**hires)})
    read: list[object] = []
    hook = four.model.text.towers[0].model.register_forward_pre_hook(lambda module, args: read.append(module))
    try:
        four.results(request)
        once = len(read)
        reused = four.results(two_passes)[0].picture.pixels
        assert once and len(read) == 2 * once
        with monkeypatch.context() as patch:  # nothing is known in the second pass: it reads all of them again
            patch.setattr("pipelines.conditions.Words", _forgetful(Words))
            anew = four.results(two_passes)[0].picture.pixels
        assert len(read) == 4 * once
    finally:
        hook.remove()
    assert np.array_equal(reused, anew)


def _forgetful(words: type[Words]) -> Any:
    return lambda *args, **named: words(*args, **(named | {"known": {}}))


def test_a_second_pass_reads_words_that_the_first_did_not_say(four: Pipeline) -> None:
    """`[red:blue:3]` counts steps: the first pass of two never comes to blue, the second of eight does."""
    first = Request(**(BASE | {"prompt": "a [red:blue:3] square", "steps": 2, "exact": True}))
    told = [
        four.results(first.model_copy(update={"prompt": prompt, "hires": HiresUse(strength=1.0, steps=8)}))[0]
        for prompt in (first.prompt, "a red square")
    ]
    alone = [four.results(first.model_copy(update={"prompt": p}))[0] for p in (first.prompt, "a red square")]
    assert np.array_equal(alone[0].picture.pixels, alone[1].picture.pixels)
    assert not np.array_equal(told[0].picture.pixels, told[1].picture.pixels)


def test_preview_and_partial(four: Pipeline) -> None:
    steps = list(four.run(Request(**(BASE | {"count": 2}))))
    middle = next(s for s in steps if s.stage == "sample" and s.index == 2)
    assert [p.shape for p in middle.preview()] == [(8, 8, 3)] * 2
    partial = middle.partial()
    assert len(partial) == 2
    assert all(r.recipe.partial and r.recipe.steps == 2 for r in partial)


def test_previews_are_drawn_by_the_tiny_decoder_of_a_model_that_has_one(tiny_sd1: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_sd1, folder)
    own = Autoencoder(load_vae(folder / "vae")[0])
    config = small_config(own)
    torch.manual_seed(0)
    tiny = AutoencoderTiny.from_config({k: v for k, v in config.items() if k != "_class_name"})
    tiny.save_pretrained(folder / TINY_DECODER)
    pipeline = Pipeline.load(folder, device="cpu")
    middle = next(s for s in pipeline.run(Request(**BASE)) if s.stage == "sample" and s.index == 2)
    (made,) = middle.preview()
    assert middle.clean is not None
    expected = ((tiny.decode(middle.clean).sample + 1) / 2).clamp(0, 1)[0].permute(1, 2, 0)
    assert made.shape == (16, 16, 3)
    assert np.abs(made - expected.detach().numpy()).max() < 1e-5
    other = Pipeline.load(folder, vae=tiny_sd1 / "vae", device="cpu")  # whose latents it was not taught
    assert other.preview(middle.clean)[0].shape == (8, 8, 3)


def test_python_gives_pil_images(four: Pipeline) -> None:
    images = four("a red square", steps=2, count=2)
    assert all(isinstance(i, Image.Image) and i.size == (16, 16) for i in images)


def test_broken_weights_name_the_step(tiny_sd1: Path) -> None:
    pipeline = Pipeline.load(tiny_sd1, device="cpu")
    with torch.no_grad():
        pipeline.model.network.model.conv_out.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(LdmError, match="non-finite latents at step 1 of 3") as error:
        pipeline.results(Request(**BASE))
    assert error.value.code == Code.NUMERIC


def test_the_prediction_type_can_be_set_by_hand(four: Pipeline) -> None:
    said = {
        k: four.results(Request(**BASE, prediction=k))[0].picture.pixels.astype(int)
        for k in ("epsilon", "v_prediction")
    }
    plain = four.results(Request(**BASE))[0].picture.pixels
    assert np.array_equal(said["epsilon"], plain)
    assert np.abs(said["v_prediction"] - plain).mean() > 5
    assert np.array_equal(four.results(Request(**BASE))[0].picture.pixels, plain)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"solver": "eulr"}, "did you mean 'euler'"),
        ({"spacing": "karas"}, "spacing 'karas' is unknown"),
        ({"solver": "ddim", "spacing": "karras"}, "does not take the spacing"),
        ({"solver": "ddim", "sigmas": (9, 2)}, "sigmas needs a solver that takes such a list"),
        ({"solver": "flow-euler"}, "flow-euler"),
        ({"zero_snr": True}, "zero terminal SNR"),
        ({"solver": "lcm", "steps": 60}, "too many for lcm"),
        ({"guidance": {"pag": 1.0, "pag_layers": ("up.9",)}}, "up.9"),
        ({"guidance": {"zero_steps": 2}}, "zero_steps"),
    ],
)
def test_requests_that_do_not_fit_the_model(four: Pipeline, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(LdmError) as error:
        four.results(Request(**(BASE | fields)))
    assert words in str(error.value)
    assert error.value.code == Code.USAGE


@pytest.mark.parametrize(
    ("prompt", "fields", "said"),
    [
        ("a cat", {"steps": 0}, "steps: 0: should be greater than or equal to 1"),
        ("a cat", {"stepz": 3}, "did you mean steps?"),
        (float("nan"), {}, "prompt: nan is not text"),
    ],
)
def test_a_call_is_refused_in_our_words(four: Pipeline, prompt: Any, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(LdmError) as caught:
        four(prompt, **fields)
    assert caught.value.code == Code.USAGE and said in caught.value.what
    assert "pydantic" not in str(caught.value)
