"""What a request would cost, before it runs: calls, memory, and time on this machine (`--dry-run`)."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ldm.diffusion.level import Level
from ldm.diffusion.solver import Solver
from ldm.models.cost import Cost, cost, weight_bytes
from ldm.models.latent import Cond
from pipelines.conditions import time_ids
from pipelines.jobs import jobs
from pipelines.making import Making
from pipelines.request import Request
from pipelines.work import Work, final_size, work_of

if TYPE_CHECKING:
    from pipelines.pipeline import Model, Pipeline

MEASURE_BELOW = 2.0  # seconds: a call that short is timed for real, a longer one is estimated from its arithmetic


@dataclass(frozen=True)
class Plan:
    """An estimate. `seconds` is for all pictures; memory is beyond what Python and torch themselves take."""

    width: int  # of the latent work, at its largest
    height: int
    pictures: int
    steps: int  # really run, per picture, in all passes
    calls: int  # of the network (and the refiner), per batch; a tile is a call
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
    """The cost of a request on a loaded pipeline; what cannot run is refused as a run would refuse it."""
    making = first_batch(pipeline, request)
    model, run, _ = making.passes[0]
    works = [(replace(work, calls=1, steps=0), work) for work in work_of(making)]
    speed = _speed(pipeline)
    price = {each: _price(each) for each in dict.fromkeys(each for each, _ in works)}  # equal calls once
    takes = {each: _seconds(pipeline, each, price[each], speed) for each in price}
    evaluated = [each for each, _ in works if each.kind == "network"]
    held = [*_modules(making.model), *making.networks, *(() if making.refiner is None else _modules(making.refiner))]
    width, height = final_size(making)
    batch = len(making.batch)
    return Plan(
        width,
        height,
        request.count,
        sum(work.steps for _, work in works),
        sum(work.calls for _, work in works if work.kind == "network"),
        batch,
        making.solver_name,
        Solver(run, model.parts.scheduler).spacing,
        weight_bytes(*held) / 1e6,
        max((each.kept + price[each].peak for each in price), default=0) / 1e6,
        sum(work.calls * takes[each][0] for each, work in works) * request.count / batch,
        bool(evaluated) and all(takes[each][1] for each in evaluated),
    )


def first_batch(pipeline: Pipeline, request: Request) -> Making:
    """The pictures that share the first calls, ready to be made: checked, words resolved, adapters put in."""
    begin, end = next(pipeline.run(request)).pictures  # a run computes nothing before its second step
    batch = jobs(request)[begin:end]
    return Making(pipeline, request, batch, request.count, pipeline.adapting.use(request, batch[0].loras))


def _modules(model: Model) -> tuple[nn.Module, ...]:
    return (model.network.model, model.vae.model, *(tower.model for tower in model.text.towers))


def _price(work: Work) -> Cost:
    """One call of the work; what the controls answer is held while the U-Net computes."""
    vae = work.model.vae
    width, height = work.size
    if work.kind == "encode":
        picture = functools.partial(torch.zeros, work.rows, 3, height, width, dtype=_dtype(vae.model))
        return cost(vae.model, lambda twin: twin.encode(picture()))  # type: ignore[operator]
    small = (height // vae.factor, width // vae.factor)
    if work.kind == "decode":
        latent = functools.partial(torch.zeros, work.rows, vae.channels, *small, dtype=_dtype(vae.model))
        return cost(vae.model, lambda twin: twin.decode(latent()))  # type: ignore[operator]
    own = cost(work.model.network.model, lambda twin: _call(twin, work))
    flops, most, answers = own.flops, 0, 0
    for control in work.controls:
        said: list[int] = []
        price = cost(control, functools.partial(_control_call, work=work, said=said))
        flops, most, answers = flops + price.flops, max(most, answers + price.peak), answers + said[0]
    return Cost(flops, max(most, answers + own.peak))


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _call(twin: nn.Module, work: Work, **more: Any) -> Any:
    """A U-Net or a ControlNet told everything that its configuration asks for."""
    config, model, rows, dtype = twin.config, work.model, work.rows, _dtype(twin)
    if getattr(config, "addition_embed_type", None) == "text_time":
        pooled = torch.zeros(rows, int(model.text.towers[-1].model.config.projection_dim), dtype=dtype)
        ids = time_ids(model.network, pooled, work.size, 6.0)
        assert ids is not None
        more |= {"pooled": pooled, "sizes": ids.repeat(rows, 1)}
    side = (work.size[1] // model.vae.factor, work.size[0] // model.vae.factor)
    x = torch.zeros(rows, config.in_channels, *side, dtype=dtype)  # type: ignore[union-attr, arg-type]
    text = torch.zeros(rows, work.tokens, config.cross_attention_dim, dtype=dtype)  # type: ignore[union-attr, arg-type]
    return twin(x, torch.zeros(rows, dtype=torch.long), text, **more)


def _control_call(twin: nn.Module, work: Work, said: list[int]) -> None:
    """Writes down how many bytes the control answers with."""
    hint = torch.zeros(work.rows, 3, work.size[1], work.size[0], dtype=_dtype(twin))
    down, mid = _call(twin, work, hint=hint)
    said.append(sum(t.nbytes for t in (*down, mid)))


def _seconds(pipeline: Pipeline, work: Work, price: Cost, speed: float) -> tuple[float, bool]:
    """One call: timed, if it is short and the network plain; else arithmetic over the speed of this machine."""
    guess, network = price.flops / speed, work.model.network
    plain = getattr(network.config, "addition_embed_type", None) is None and pipeline.device.type == "cpu"
    if work.kind != "network" or work.controls or guess > MEASURE_BELOW or not plain:
        return guess, False
    level = Level(*(torch.tensor([v]) for v in (500, 0.7, 0.7, 0, 1)))
    factor = work.model.vae.factor
    x = torch.zeros(work.rows, network.latent_channels, work.size[1] // factor, work.size[0] // factor)
    extra = int(network.config.in_channels) - network.latent_channels
    channels = torch.zeros(work.rows, extra, *x.shape[-2:]) if extra else None
    cond = Cond(text=torch.zeros(work.rows, work.tokens, network.config.cross_attention_dim), channels=channels)
    return _best(lambda: network(x, level, [cond])), True


def _speed(pipeline: Pipeline) -> float:
    """Floating-point operations a second of a matrix product, times the share that whole networks reach of it."""
    side = 1024
    a = torch.ones(side, side, dtype=pipeline.dtype, device=pipeline.device)
    return 0.6 * 2 * side**3 / _best(lambda: (a @ a)[0, 0].item())


def _best(call: Callable[[], object], repeats: int = 4) -> float:
    """Seconds of the fastest of several calls: the first warms caches, and others may share the machine."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)
