"""The plan of a request against what the request then does: calls, sizes, steps, memory, refusals."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler
from torch import nn
from torch.profiler import ProfilerActivity, profile

from ldm.errors import Code, LdmError
from ldm.images import Picture
from ldm.models.cost import cost
from ldm.models.unet import UNet
from pipelines.pipeline import Pipeline
from pipelines.plan import first_batch, plan
from pipelines.request import ControlUse, GuidanceUse, HiresUse, Request, TileUse
from pipelines.work import work_of
from tests import components
from tests.thin import thinned

BASE: dict[str, Any] = {"prompt": "a red square", "steps": 4, "seed": 1}


def picture(width: int = 40, height: int = 24) -> Picture:
    return Picture(np.random.default_rng(3).integers(0, 256, (height, width, 3)).astype(np.uint8))


def mask(value: int = 255) -> Picture:
    grey = np.zeros((24, 40, 1), np.uint8)
    grey[5:17, 6:21] = value
    return Picture(grey)


@pytest.fixture(scope="module")
def xl(tiny_xl: Path) -> Pipeline:
    return Pipeline.load(tiny_xl, device="cpu")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A network that is told the guidance scale."""
    config = {k: v for k, v in components.scheduler_config().items() if k != "timestep_spacing"}
    stock = components.sd1(unet=components.unet(time_cond_proj_dim=32), scheduler=LCMScheduler(**config))
    return Pipeline.load(components.save(stock, tmp_path_factory.mktemp("plan") / "lcm"), device="cpu")


class Watch:
    """Shapes [rows,C,h,w] of what U-Nets, encoders and decoders are really given."""

    def __init__(self, *pipelines: Any) -> None:
        self.calls: dict[str, list[tuple[int, ...]]] = {"network": [], "encode": [], "decode": []}
        self._hooks: list[Any] = []
        for model in pipelines:
            parts = {
                "network": model.network.model,
                "encode": model.vae.model.encoder,
                "decode": model.vae.model.decoder,
            }
            for kind, module in parts.items():
                self._hooks.append(module.register_forward_pre_hook(self._note(kind)))

    def _note(self, kind: str) -> Any:
        def noted(module: nn.Module, args: tuple[Any, ...]) -> None:
            self.calls[kind].append(tuple(args[0].shape))

        return noted

    def stop(self) -> dict[str, list[tuple[int, ...]]]:
        for hook in self._hooks:
            hook.remove()
        return self.calls


def compared(pipeline: Pipeline, request: Request) -> tuple[int, int]:
    """Planned calls of U-Nets and steps, after every call was found in the run: how many, how many rows, how large."""
    wanted: dict[str, Counter[tuple[int, int, int]]] = {k: Counter() for k in ("network", "encode", "decode")}
    works = list(work_of(first_batch(pipeline, request)))
    for work in works:
        factor = 1 if work.kind == "encode" else work.model.vae.factor
        wanted[work.kind][work.rows, work.size[1] // factor, work.size[0] // factor] += work.calls
    refiner = pipeline.refiner(request)
    watch = Watch(pipeline.model, *([] if refiner is None else [refiner]))
    results = pipeline.results(request)
    found = {k: Counter((s[0], s[2], s[3]) for s in shapes) for k, shapes in watch.stop().items()}
    assert found == wanted
    steps = sum(work.steps for work in works)
    assert steps == results[0].recipe.steps
    return sum(wanted["network"].values()), steps


MODES: dict[str, tuple[str, dict[str, Any], int]] = {  # pipeline, fields, calls
    "text": ("four", {}, 4),
    "no guidance": ("four", {"guidance": GuidanceUse(scale=1.0)}, 4),
    "two pictures": ("four", {"count": 2}, 4),
    "image": ("four", {"image": picture(), "strength": 1.0}, 4),
    "half strength": ("four", {"image": picture(), "strength": 0.5}, 2),
    "inpaint": ("four", {"image": picture(), "mask": mask(), "strength": 0.5}, 2),
    "noise fill": ("four", {"image": picture(), "mask": mask(), "fill": "noise", "count": 2, "strength": 1.0}, 4),
    "only masked": ("four", {"image": picture(), "mask": mask(), "only_masked": True, "strength": 1.0}, 4),
    "outpaint": ("four", {"image": picture(), "pad": (8, 0, 5, 3), "strength": 1.0}, 4),
    "nine channels": ("nine", {"image": picture(), "mask": mask(), "strength": 1.0}, 4),
    "nine channels, half": ("nine", {"image": picture(), "mask": mask(), "strength": 0.5, "count": 2}, 2),
    "nine channels, text": ("nine", {}, 4),
    "nine channels, hires": ("nine", {"hires": HiresUse(strength=0.5, upscale="latent")}, 6),
    "heun": ("four", {"solver": "heun"}, 7),
    "heun and hires": ("four", {"solver": "heun", "hires": HiresUse(strength=0.5)}, 7 + 3),
    "hires with own steps": ("four", {"hires": HiresUse(strength=0.3, steps=10, scale=1.6), "count": 2}, 4 + 3),
    "hires of latents": ("four", {"hires": HiresUse(strength=0.5, upscale="latent")}, 6),
    "interval": ("four", {"guidance": GuidanceUse(interval=(0.25, 0.75))}, 4),
    "perturbed attention": ("four", {"guidance": GuidanceUse(pag=2.0)}, 4),
    "perturbed alone": ("four", {"guidance": GuidanceUse(scale=1.0, pag=2.0)}, 4),
    "tiles": ("four", {"width": 48, "height": 32, "tile": TileUse(size=16, overlap=4)}, 4 * 4 * 3),
    "tiles larger than the picture": ("four", {"tile": TileUse(size=512)}, 4),
    "tiles, image and hires": (
        "four",
        {"image": picture(), "tile": TileUse(size=24, overlap=8), "hires": HiresUse(strength=0.5), "strength": 0.5},
        2 * 2 + 2 * 5 * 3,
    ),
    "a long prompt": ("four", {"prompt": "a red square " * 30}, 4),
    "told the scale": ("told", {}, 4),
    "xl": ("xl", {}, 4),
}


@pytest.mark.parametrize("mode", MODES)
def test_calls_are_those_of_the_run(mode: str, request: pytest.FixtureRequest) -> None:
    name, fields, calls = MODES[mode]
    assert compared(request.getfixturevalue(name), Request(**(BASE | fields)))[0] == calls


@pytest.mark.parametrize("mode", ["half strength", "heun and hires", "tiles", "nine channels, hires", "xl"])
def test_the_plan_adds_the_calls_up(mode: str, request: pytest.FixtureRequest) -> None:
    name, fields, calls = MODES[mode]
    pipeline, asked = request.getfixturevalue(name), Request(**(BASE | fields))
    made = plan(pipeline, asked)
    assert made.calls == calls
    assert made.steps == sum(work.steps for work in work_of(first_batch(pipeline, asked)))
    assert made.measured is (name != "xl")
    assert made.seconds > 0


def test_a_refiner_has_its_weights_and_its_steps(xl: Pipeline, tiny_refiner: Path) -> None:
    plain = plan(xl, Request(**(BASE | {"steps": 5})))
    request = Request(**(BASE | {"steps": 5}), refiner=str(tiny_refiner), refiner_start=0.6)
    both = plan(xl, request)
    assert compared(xl, request) == (5, 5)
    refiner = components.xl_refiner()
    own = sum(p.numel() * 4 for m in (refiner.unet, refiner.vae, refiner.text_encoder_2) for p in m.parameters())
    assert both.calls == both.steps == 5
    assert (both.weights_mb - plain.weights_mb) * 1e6 == pytest.approx(own)


def test_controls_cost_weights_calls_and_memory(four: Pipeline, tiny_controlnet: Path) -> None:
    use = ControlUse(model=str(tiny_controlnet), image=picture(16, 16), start=0.0, end=0.5)
    request = Request(**BASE, controls=(use,))
    plain, with_it = plan(four, Request(**BASE)), plan(four, request)
    assert compared(four, request) == (4, 4)
    own = sum(p.numel() * 4 for p in components.controlnet().parameters())
    assert (with_it.weights_mb - plain.weights_mb) * 1e6 == pytest.approx(own)
    assert with_it.working_mb > plain.working_mb


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"image": picture(640, 480), "strength": 0.5}, (640, 480)),
        ({"image": picture(), "mask": mask()}, (40, 24)),
        ({"image": picture(), "mask": mask(), "width": 64, "height": 48}, (64, 48)),
        ({"image": picture(), "pad": (8, 0, 5, 3)}, (56, 32)),
        ({"hires": HiresUse(scale=2.0)}, (32, 32)),
        ({}, (16, 16)),
    ],
)
def test_size_is_that_of_the_work(four: Pipeline, fields: dict[str, Any], size: tuple[int, int]) -> None:
    made = plan(four, Request(**(BASE | fields)))
    assert (made.width, made.height) == size


def test_memory_is_that_of_a_tile(four: Pipeline) -> None:
    side = {"width": 64, "height": 64}
    whole, small = plan(four, Request(**BASE, **side)), plan(four, Request(**BASE))
    tiled = plan(four, Request(**BASE, **side, tile=TileUse(size=16, overlap=4)))
    assert small.working_mb <= tiled.working_mb < small.working_mb + 1 < whole.working_mb
    assert whole.working_mb > 10 * small.working_mb


def test_nothing_to_paint_costs_nothing(four: Pipeline) -> None:
    for fields in ({"strength": 0.0}, {"mask": mask(0)}):
        request = Request(**(BASE | fields), image=picture())
        assert compared(four, request) == (0, 0)
        made = plan(four, request)
        assert (made.calls, made.steps, made.seconds, made.working_mb) == (0, 0, 0, 0)


def test_all_pictures_take_their_time(four: Pipeline) -> None:
    """Seconds are for all batches; calls, rows and memory for one."""
    one = plan(four, Request(**BASE, count=2, batch=2))
    many = plan(four, Request(**BASE, count=200, batch=2))
    assert (many.calls, many.batch, many.working_mb) == (one.calls, 2, one.working_mb)
    assert 20 < many.seconds / one.seconds < 500  # two timings on a shared machine


@pytest.mark.parametrize(
    "fields",
    [
        {"solver": "eulr"},
        {"solver": "ddim", "spacing": "karras"},
        {"solver": "flow-euler"},
        {"zero_snr": True},
        {"solver": "lcm", "steps": 60},
        {"image": picture(), "strength": 0.1},
        {"hires": HiresUse(strength=0.1)},
        {"guidance": {"pag": 1.0, "pag_layers": ("up.9",)}},
        {"guidance": {"zero_steps": 2}},
        {"prompt": "a <lora:nowhere:1>"},
        {"loras": ({"path": Path("nowhere.safetensors")},)},
        {"controls": ({"model": "nowhere", "image": picture()},)},
        {"refiner": "nowhere"},
        {"image": picture(), "mask": Picture(np.zeros((9, 9, 1), np.uint8))},
    ],
)
def test_what_a_run_refuses_the_plan_refuses(four: Pipeline, fields: dict[str, Any]) -> None:
    request = Request(**(BASE | fields))
    with pytest.raises(LdmError) as ran:
        four.results(request)
    with pytest.raises(LdmError) as planned:
        plan(four, request)
    assert str(planned.value) == str(ran.value)
    assert planned.value.code is not Code.BUG


def measured_peak(work: Any) -> int:
    """The most bytes that torch's allocator held at once, as the profiler saw them come and go."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = sorted(
        (e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()
    )
    sizes = np.cumsum([e.nbytes() for e in events])
    return int(sizes.max())


def test_memory_of_a_network_against_the_allocator() -> None:
    net = components.unet(sample_size=48, block_out_channels=(64, 128), norm_num_groups=32)
    UNet(net, "epsilon")  # with our attention

    def call(network: nn.Module) -> object:
        text = torch.zeros(2, 77, components.TEXT)
        return network(torch.zeros(2, 4, 48, 48), torch.zeros(2, dtype=torch.long), encoder_hidden_states=text)

    assert cost(net, call).peak == pytest.approx(measured_peak(lambda: call(net)), rel=0.25)


@pytest.mark.parametrize("tile", thinned([TileUse(size=64, overlap=16), None], 2))
def test_memory_of_a_whole_run_against_the_allocator(four: Pipeline, tile: TileUse | None) -> None:
    request = Request(**(BASE | {"steps": 1}), width=96, height=96, hires=HiresUse(strength=1.0), tile=tile)
    four.results(request)
    assert plan(four, request).working_mb * 1e6 == pytest.approx(measured_peak(lambda: four.results(request)), rel=0.35)


@pytest.mark.parametrize("half", ["encode", "decode"])
def test_memory_of_an_autoencoder_against_the_allocator(half: str) -> None:
    net = components.vae(block_out_channels=(32, 64), norm_num_groups=32)

    def call(vae: Any) -> object:
        return vae.encode(torch.zeros(1, 3, 96, 96)) if half == "encode" else vae.decode(torch.zeros(1, 4, 48, 48))

    assert cost(net, call).peak == pytest.approx(measured_peak(lambda: call(net)), rel=0.25)
