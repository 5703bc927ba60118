"""What goes wrong between features: failures in the middle, shared weights, cut hints, split runs, odd sizes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ldm.errors import Code, LdmError
from ldm.images import Picture
from ldm.models.autoencoder import Autoencoder
from ldm.models.prompt import resolve
from pipelines.canvas import prepare
from pipelines.conditions import companion
from pipelines.pipeline import Pipeline
from pipelines.request import ControlUse, GuidanceUse, HiresUse, LoraUse, Request, TileUse
from tests import components
from tests.thin import thinned

BASE: dict[str, Any] = {"prompt": "a red square", "steps": 4, "seed": 1, "exact": True}


@pytest.fixture
def pipeline(tiny_sd1: Path) -> Pipeline:
    return Pipeline.load(tiny_sd1, device="cpu")


def picture(width: int = 16, height: int = 16, alpha: bool = False) -> Picture:
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture(pixels, rng.integers(0, 256, (height, width), dtype=np.uint8) if alpha else None)


def made(pipeline: Pipeline, **fields: Any) -> np.ndarray:
    return pipeline.results(Request(**(BASE | fields)))[0].picture.pixels.astype(int)


def lora(pipeline: Pipeline, path: Path, size: float = 0.3) -> LoraUse:
    drawn = torch.Generator().manual_seed(0)
    tensors = {}
    for name, module in pipeline.model.network.model.named_modules():
        if name.endswith("to_v"):
            rows, columns = module.weight.shape
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(2, columns, generator=drawn) * size
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(rows, 2, generator=drawn) * size
    save_file(tensors, path)
    return LoraUse(path=path)


def test_a_failed_request_leaves_no_adapter_behind(pipeline: Pipeline, tmp_path: Path) -> None:
    plain, use = made(pipeline), lora(pipeline, tmp_path / "a.safetensors")
    changed = made(pipeline, loras=(use,))
    assert np.abs(changed - plain).max() > 5
    with pytest.raises(LdmError, match=r"gone.safetensors"):
        made(pipeline, loras=(LoraUse(path=tmp_path / "gone.safetensors"),))
    assert np.array_equal(made(pipeline), plain)
    with pytest.raises(LdmError):
        made(pipeline, loras=(use,), embeddings=(tmp_path / "gone.safetensors",))
    assert np.array_equal(made(pipeline), plain)
    assert np.array_equal(made(pipeline, loras=(use,)), changed)


def test_a_changed_adapter_file_is_read_again(pipeline: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    first = pipeline.results(Request(**BASE, loras=(lora(pipeline, path),)))[0]
    plain = made(pipeline)
    os.utime(path, ns=(1, 1))
    second = pipeline.results(Request(**BASE, loras=(lora(pipeline, path, 0.1),)))[0]
    assert first.recipe.adapters[0].sha256 != second.recipe.adapters[0].sha256
    assert np.abs(first.picture.pixels.astype(int) - second.picture.pixels).max() > 2
    assert np.array_equal(made(pipeline), plain)


def test_two_runs_of_one_pipeline_do_not_mix(pipeline: Pipeline, tmp_path: Path) -> None:
    plain, use = made(pipeline), lora(pipeline, tmp_path / "a.safetensors")
    steps = pipeline.run(Request(**BASE))
    for _ in range(3):
        next(steps)
    made(pipeline, loras=(use,))
    results = [r for s in steps for r in s.done]
    assert np.array_equal(results[0].picture.pixels, plain)


@pytest.mark.parametrize("done", [1, 3])
def test_another_run_does_not_change_the_words_of_this_one(pipeline: Pipeline, tmp_path: Path, done: int) -> None:
    """A learned word holds for the run that brought it, whenever another one comes between."""
    save_file({"red": torch.full((3, components.TEXT), 2.0)}, tmp_path / "red.safetensors")
    hires = HiresUse(strength=0.5)
    plain, learned = (
        made(pipeline, hires=hires),
        made(pipeline, hires=hires, embeddings=(tmp_path / "red.safetensors",)),
    )
    assert np.abs(plain - learned).max() > 5
    steps = pipeline.run(Request(**BASE, hires=hires, embeddings=(tmp_path / "red.safetensors",)))
    for _ in range(done):
        next(steps)
    made(pipeline)
    results = [r for s in steps for r in s.done]
    assert np.array_equal(results[0].picture.pixels, learned)


def test_a_missing_tag_is_told_before_the_first_picture(pipeline: Pipeline) -> None:
    """Also where only a later picture draws it."""
    prompt = "a {<lora:nowhere:1>|cat}"
    last = next(seed for seed in range(1, 100) if resolve(prompt, seed=seed).loras)
    assert not resolve(prompt, seed=0).loras
    fields = BASE | {"prompt": prompt, "seed": 0}
    assert next(pipeline.run(Request(**fields, count=last))).stage == "prepare"
    with pytest.raises(LdmError, match="'nowhere' of the prompt's <lora:"):
        next(pipeline.run(Request(**fields, count=last + 1)))


@pytest.mark.parametrize("mode", ["whole", "only masked", "cover", "outpaint", "hires"])
def test_a_hint_is_cut_like_the_picture(mode: str) -> None:
    """The source as its own hint must be the work picture itself."""
    source = picture(40, 24)
    grey = np.zeros((24, 40, 1), np.uint8)
    grey[2:10, 20:36] = 255
    fields: dict[str, Any] = {"image": source}
    fields |= {"mask": Picture(grey), "only_masked": True, "padding": 2} if mode == "only masked" else {}
    fields |= {"pad": (8, 0, 0, 16)} if mode == "outpaint" else {}
    size = (32, 32) if mode in {"only masked", "cover"} else None
    canvas = prepare(Request(**fields), size, torch.Generator())
    want = (canvas.image[0].permute(1, 2, 0).numpy() + 1) / 2
    if mode == "hires":
        doubled = companion(source, (80, 48), canvas)
        assert doubled.shape == (48, 80, 3)
        assert abs(float(doubled.mean()) - float(want.mean())) < 0.01
        return
    got = companion(source, canvas.size, canvas)
    if mode == "outpaint":
        inner = (slice(0, 24), slice(8, 48))
        got, want = got[inner], want[inner]
    assert np.abs(got - want).max() < 1e-5


def test_a_long_neighbour_does_not_change_a_short_prompt(pipeline: Pipeline) -> None:
    fields = {"prompt": "{a cat|a " + "red square " * 60 + "}", "count": 6, "steps": 3, "seed": 1}
    results = pipeline.results(Request(**fields))
    assert len({len(r.recipe.prompt) for r in results}) == 2
    for result in results:
        alone = pipeline.results(Request(**(fields | {"count": 1, "seed": result.seed})))[0]
        assert np.abs(alone.picture.pixels.astype(int) - result.picture.pixels).max() <= 2


def test_an_unused_negative_prompt_changes_nothing_and_says_so(pipeline: Pipeline) -> None:
    fields = BASE | {"guidance": GuidanceUse(scale=1.0)}
    plain = pipeline.results(Request(**fields))[0]
    unused = pipeline.results(Request(**fields, negative="blue " * 100))[0]
    assert np.array_equal(plain.picture.pixels, unused.picture.pixels)
    assert "negative prompt is not used" in " ".join(unused.recipe.notes)


def grey_mask() -> Picture:
    grey = np.zeros((16, 16, 1), np.uint8)
    grey[4:12, 2:8], grey[4:12, 8:14] = 255, 120
    return Picture(grey)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "[a red square:a blue circle:0.5]"},
        {"prompt": "[a red square|a blue circle]"},
        {"guidance": GuidanceUse(scale=5.0, interval=(0.0, 0.5))},
        {"image": picture(), "mask": grey_mask(), "strength": 1.0},
        {"image": picture(), "strength": 0.7},
        {"image": picture(), "strength": 0.2},
    ],
    ids=["schedule", "alternation", "interval", "grey mask", "strength", "all of it in the refiner"],
)
def test_a_model_as_its_own_refiner_changes_nothing(tiny_sd1: Path, pipeline: Pipeline, fields: dict[str, Any]) -> None:
    """DDIM has no memory, so a run that is split at any level must be the run that is not."""
    fields = {"steps": 10, "solver": "ddim", "spacing": "leading"} | fields
    split = made(pipeline, refiner=str(tiny_sd1), refiner_start=0.5, **fields)
    assert np.abs(split - made(pipeline, **fields)).max() <= 1


def test_alternation_counts_the_steps_really_run(pipeline: Pipeline) -> None:
    fields = {"steps": 20, "image": picture(), "strength": 0.3}
    both = made(pipeline, prompt="[red|blue]", **fields)
    assert np.abs(both - made(pipeline, prompt="red", **fields)).max() > 0
    assert np.abs(both - made(pipeline, prompt="blue", **fields)).max() > 0


def test_a_control_for_another_base_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    components.controlnet(components.unet(cross_attention_dim=64)).save_pretrained(tmp_path / "other")
    use = ControlUse(model=str(tmp_path / "other"), image=picture())
    with pytest.raises(LdmError, match="made for another base") as error:
        made(pipeline, controls=(use,))
    assert error.value.code == Code.MODEL


def test_a_nine_channel_refiner_is_refused(pipeline: Pipeline, tiny_inpaint9: Path) -> None:
    with pytest.raises(LdmError, match="refiner"):
        made(pipeline, refiner=str(tiny_inpaint9))


def test_controls_stay_with_the_base(tiny_xl: Path, tiny_refiner: Path, tmp_path: Path) -> None:
    xl = Pipeline.load(tiny_xl, device="cpu")
    components.controlnet(components.unet_xl()).save_pretrained(tmp_path / "control")
    use = ControlUse(model=str(tmp_path / "control"), image=picture())
    result = xl.results(Request(**BASE, refiner=str(tiny_refiner), refiner_start=0.5, controls=(use,)))[0]
    assert "not in the refiner's" in " ".join(result.recipe.notes)


def test_a_control_is_computed_once_for_all_branches(pipeline: Pipeline, tiny_controlnet: Path) -> None:
    request = Request(
        **BASE,
        guidance=GuidanceUse(scale=5.0, pag=1.0),
        controls=(ControlUse(model=str(tiny_controlnet), image=picture()),),
    )
    rows: list[int] = []
    network = pipeline.controlnets(request)[0]
    network.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    pipeline.results(request)
    assert rows == [3] * 4


def test_image_to_image_in_two_passes_keeps_shape_and_alpha(pipeline: Pipeline) -> None:
    source = picture(37, 21, alpha=True)
    fields = {"image": source, "strength": 0.8, "hires": HiresUse(scale=2.0, steps=4)}
    result = pipeline.results(Request(**BASE, **fields))[0].picture
    assert result.size == (74, 42)
    assert result.alpha is not None
    assert result.alpha.shape == (42, 74)


def test_a_second_pass_without_a_step_is_refused_at_once(pipeline: Pipeline) -> None:
    calls: list[int] = []
    pipeline.model.network.model.register_forward_pre_hook(lambda module, args: calls.append(1))
    with pytest.raises(LdmError, match="hires"):
        made(pipeline, hires=HiresUse(strength=0.1, steps=5))
    assert not calls


@pytest.mark.parametrize(("size", "overlap"), thinned([(17, 0), (16, 15), (64, 63), (19, 18)], 2))
def test_tiles_of_odd_sizes(pipeline: Pipeline, size: int, overlap: int) -> None:
    assert made(pipeline, width=48, height=32, tile=TileUse(size=size, overlap=overlap)).shape == (32, 48, 3)


def test_partial_results_count_all_stages(pipeline: Pipeline) -> None:
    steps = list(pipeline.run(Request(**BASE, hires=HiresUse(strength=0.5, steps=4))))
    second = next(s for s in steps if s.stage == "hires" and s.index == 1)
    assert second.partial()[0].recipe.steps == 5
    assert steps[-1].done[0].recipe.steps == 6
    whole = next(s for s in steps if s.stage == "decode").partial()[0].recipe
    assert not whole.partial


def test_encoding_is_upcast_where_the_autoencoder_asks_for_it() -> None:
    vae = Autoencoder(components.vae(force_upcast=True))
    model = vae.model.half()
    seen: list[torch.dtype] = []
    model.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    vae.encode(torch.zeros(1, 3, 16, 16), [torch.Generator()])
    assert seen == [torch.float32]
    assert next(model.parameters()).dtype == torch.float16


def test_seeds_do_not_run_over() -> None:
    with pytest.raises(ValueError, match="beyond the largest seed"):
        Request(seed=2**63 - 1, count=2)


def test_a_sigma_list_is_taken_as_it_stands(pipeline: Pipeline) -> None:
    short, long = (
        made(pipeline, solver="euler", sigmas=s, image=picture(), strength=0.5)
        for s in ((14.0, 5.0, 2.0, 0.8), (14.0, 5.0, 2.0, 0.8, 0.0))
    )
    assert np.array_equal(short, long)
    with pytest.raises(LdmError, match="exclude each other"):
        made(pipeline, solver="euler", sigmas=(5.0, 1.0), spacing="karras")


def test_a_flow_model_goes_through_every_mode(tmp_path: Path) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    components.save(components.sd1(scheduler=scheduler), tmp_path / "flow")
    flow = Pipeline.load(tmp_path / "flow", device="cpu")
    assert flow.model.network.kind == "flow"
    guidance = GuidanceUse(scale=4.0, method="cfg-zero", zero_steps=1)
    for fields in (
        {},
        {"image": picture(), "strength": 0.6},
        {"image": picture(), "mask": grey_mask(), "strength": 1.0},
    ):
        assert np.ptp(made(flow, guidance=guidance, **fields)) > 20
    with pytest.raises(LdmError, match="flow-euler"):
        made(flow, solver="euler")
