"""What a request would cost, before it runs: calls, memory, and time on this machine (`--dry-run`)."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ldm.diffusion.level import Level
from ldm.diffusion.solver import Run, Solver
from ldm.models.cost import Cost, cost, weight_bytes
from ldm.models.latent import Cond
from pipelines.conditions import time_ids
from pipelines.request import Request, nearest_side

if TYPE_CHECKING:
    from pipelines.pipeline import Pipeline

MEASURE_BELOW = 2.0  # seconds: a call that short is timed for real, a longer one is estimated from its arithmetic


@dataclass(frozen=True)
class Plan:
    """An estimate. `seconds` is for all pictures; memory is beyond what Python and torch themselves take."""

    width: int
    height: int
    pictures: int
    steps: int  # really run, per picture
    calls: int  # of the network, per batch
    batch: int
    solver: str
    spacing: str
    weights_mb: float
    working_mb: float
    seconds: float
    measured: bool  # a real call was timed; else computed from its arithmetic and a probe of this machine

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        how = "one call timed" if self.measured else "computed"
        return (
            f"{self.pictures} picture(s) of {self.width}x{self.height}, {self.steps} steps of {self.solver} "
            f"({self.spacing}), {self.calls} network calls a batch of {self.batch}; "
            f"about {self.seconds:.3g} s ({how}), {self.weights_mb:.0f} MB of weights, {self.working_mb:.0f} MB of work"
        )


def plan(pipeline: Pipeline, request: Request) -> Plan:
    """The cost of a request on a loaded pipeline."""
    model, size = pipeline.model, pipeline.size(request)
    name = pipeline.solver_name(request)
    strength = 1.0 if request.image is None else request.strength
    run = Run(
        name, request.steps, pipeline.spacing(request), strength, sigmas=request.sigmas, zero_snr=request.zero_snr
    )
    solver = Solver(run, model.parts.scheduler)
    batch = min(request.count, 1 if request.exact else request.batch)
    inside = sum(
        request.guidance.interval[0] <= i / max(solver.count, 1) < request.guidance.interval[1]
        for i in range(solver.count)
    )
    branches = 1 + (request.guidance.scale > 1) + (request.guidance.pag > 0)
    passes = [(size, inside, branches), (size, solver.count - inside, 1)]
    if request.hires is not None:
        large = (nearest_side(size[0] * request.hires.scale), nearest_side(size[1] * request.hires.scale))
        steps = int((request.hires.steps or request.steps) * request.hires.strength)
        passes.append((large, steps, branches))
        size = large
    controls = pipeline.controlnets(request)
    seconds, working, timed = 0.0, 0, True
    for shape, calls, rows in passes:
        if calls:
            price = _call_cost(pipeline, shape, batch * rows, controls)
            each, real = _seconds(pipeline, price, shape, batch * rows)
            seconds, working, timed = seconds + calls * each, max(working, price.peak), timed and real
    decode = _decode_cost(pipeline, size)
    seconds += batch * decode.flops / _speed(pipeline)
    working = max(working, decode.peak)
    towers = [t.model for t in model.text.towers]
    weights = weight_bytes(model.network.model, model.vae.model, *towers, *controls)
    batches = -(-request.count // batch)
    return Plan(
        *size, request.count, solver.count, sum(c for _, c, _ in passes), batch, name, solver.spacing,
        weights / 1e6, working / 1e6, seconds * batches, timed,
    )  # fmt: skip


def _latent(pipeline: Pipeline, size: tuple[int, int]) -> tuple[int, int]:
    return size[1] // pipeline.model.vae.factor, size[0] // pipeline.model.vae.factor


def _call_cost(pipeline: Pipeline, size: tuple[int, int], rows: int, controls: list[nn.Module]) -> Cost:
    """U-Net and controls; the controls' share of arithmetic is that of their weights."""
    network, height_width = pipeline.model.network, _latent(pipeline, size)
    config = network.config
    dtype = next(network.model.parameters()).dtype

    def call(twin: nn.Module) -> object:
        more: dict[str, Any] = {}
        if getattr(config, "addition_embed_type", None) == "text_time":
            pooled = torch.zeros(rows, _pooled(pipeline), dtype=dtype)
            ids = time_ids(network, pooled, size, 6.0)
            assert ids is not None
            more["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids.repeat(rows, 1)}
        x = torch.zeros(rows, config.in_channels, *height_width, dtype=dtype)
        text = torch.zeros(rows, 77, config.cross_attention_dim, dtype=dtype)
        return twin(x, torch.zeros(rows, dtype=torch.long), encoder_hidden_states=text, **more)

    price = cost(network.model, call)
    share = 1 + weight_bytes(*controls) / weight_bytes(network.model) if controls else 1.0
    return Cost(int(price.flops * share), price.peak)


def _pooled(pipeline: Pipeline) -> int:
    return int(pipeline.model.text.towers[-1].model.config.projection_dim)


def _decode_cost(pipeline: Pipeline, size: tuple[int, int]) -> Cost:
    vae = pipeline.model.vae
    dtype = next(vae.model.parameters()).dtype

    def decode(twin: Any) -> object:
        return twin.decode(torch.zeros(1, vae.channels, *_latent(pipeline, size), dtype=dtype))

    return cost(vae.model, decode)


def _seconds(pipeline: Pipeline, price: Cost, size: tuple[int, int], rows: int) -> tuple[float, bool]:
    """One call: timed, if it is short and the model plain; else arithmetic over the speed of this machine."""
    guess = price.flops / _speed(pipeline)
    network = pipeline.model.network
    plain = getattr(network.config, "addition_embed_type", None) is None and pipeline.device.type == "cpu"
    if guess > MEASURE_BELOW or not plain:
        return guess, False
    level = Level(*(torch.tensor([v]) for v in (500, 0.7, 0.7, 0, 1)))
    x = torch.zeros(rows, network.latent_channels, *_latent(pipeline, size))
    extra = int(network.config.in_channels) - network.latent_channels
    channels = torch.zeros(rows, extra, *x.shape[-2:]) if extra else None
    cond = Cond(text=torch.zeros(rows, 77, network.config.cross_attention_dim), channels=channels)
    network(x, level, [cond])  # the first call warms caches
    begin = time.perf_counter()
    network(x, level, [cond])
    return time.perf_counter() - begin, True


def _speed(pipeline: Pipeline) -> float:
    """Floating-point operations a second of a matrix product, times the share that whole networks reach of it."""
    side = 1024
    a = torch.ones(side, side, dtype=pipeline.dtype, device=pipeline.device)
    a @ a
    begin, repeats = time.perf_counter(), 4
    for _ in range(repeats):
        (a @ a)[0, 0].item()
    return 0.6 * repeats * 2 * side**3 / (time.perf_counter() - begin)
