"""One batch of pictures on its way from noise to results: the stages of a run, each a use of the one loop."""

from __future__ import annotations

import functools
from collections.abc import Generator as Yielding
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.diffusion.denoise import Guidance, clamped, guided, keeping
from ldm.diffusion.level import Level
from ldm.diffusion.sample import Denoiser, Prediction, sample
from ldm.diffusion.solver import Run, Solver
from ldm.errors import Code, LdmError
from ldm.images import Picture, from_rgb, from_tensor, to_tensor
from ldm.models.latent import Cond, Network
from ldm.models.tiling import in_latents, pooled_mask, tiled
from ldm.models.unet import UNet
from pipelines import conditions
from pipelines.adapting import Acting
from pipelines.canvas import Canvas, prepare
from pipelines.device import place
from pipelines.fit import check_size
from pipelines.frame import Filter, resize
from pipelines.jobs import Job, generator, start_noise
from pipelines.recording import record
from pipelines.remarks import remarks
from pipelines.request import GuidanceUse, Request, nearest_side
from pipelines.steps import Result, Stage, Step

if TYPE_CHECKING:
    from pipelines.pipeline import Model, Pipeline

FILTERS = {"lanczos": Filter.LANCZOS, "bicubic": Filter.BICUBIC, "nearest": Filter.NEAREST}
Steps = Yielding[Step, None, Tensor]  # yields steps, returns the latents


@dataclass(frozen=True, eq=False)
class Start:
    """Where a pass begins: x, and what is known beside it (latents to keep, where to paint, extra input channels)."""

    x: Tensor
    known: Tensor | None = None
    mask: Tensor | None = None
    channels: Tensor | None = None


class Making:
    """The state that the stages of one batch share."""

    def __init__(self, pipeline: Pipeline, request: Request, batch: Sequence[Job], total: int, acting: Acting) -> None:
        self.pipeline, self.request, self.batch, self.total = pipeline, request, batch, total
        self.acting = acting
        self.model, self.device = pipeline.model_for(request), pipeline.device
        self.generators = [generator(job.seed) for job in batch]
        self.solver_name = pipeline.solver_name(request)
        self.networks = pipeline.controlnets(request)  # one for each control
        self.size = pipeline.size(request)
        self.canvases = self._canvases()
        self.refiner = pipeline.refiner(request)
        self.evaluations = 0  # done so far, in all stages
        self.spacing = ""
        self.notes: dict[str, None] = {}
        self.encoded: dict[Model, conditions.Known] = {}  # by whose text towers
        self.passes = self._passes()

    def steps(self) -> Iterator[Step]:
        request = self.request
        if self.canvases and (request.strength == 0.0 or self.nothing_to_paint()):
            yield self._step("done", done=self._untouched())
            return
        images = torch.cat([c.image for c in self.canvases]) if self.canvases else None
        first, run, _ = self.passes[0]
        start = self._start(first, run, self.size, images, self._mask(self.size))
        x = start.x
        for model, run, stage in self.passes:
            channels = start.channels if model is first else None
            x = yield from self._pass(model, run, self.size, replace(start, x=x, channels=channels), stage)
        if request.hires is not None:
            x = yield from self._hires(x)
        yield self._step("decode", clean=x, whole=True)
        yield self._step("done", done=self._finish(x))

    def _passes(self) -> list[tuple[Model, Run, Stage]]:
        """The uses of the loop at the first size: the base, and the refiner for the rest; an empty part is left out.

        Every solver of the request is built once here: what does not fit is said before anything is computed.
        """
        request, base = self.request, self._run()
        passes: list[tuple[Model, Run, Stage]] = [(self.model, base, "sample")]
        if self.refiner is not None:
            share = request.refiner_start
            spacing = Solver(base, self.model.parts.scheduler).spacing
            rest = replace(base, start=share, spacing=spacing)
            passes = [(self.model, replace(base, stop=share), "sample"), (self.refiner, rest, "refine")]
        counted = [(p, Solver(p[1], p[0].parts.scheduler).count) for p in passes]
        if request.hires is not None and Solver(self.hires_run(), self.model.parts.scheduler).count == 0:
            raise _no_step("hires.strength", request.hires.strength, self.hires_run().steps)
        if not any(count for _, count in counted) and not (self.canvases and request.strength == 0.0):
            raise _no_step("strength", base.strength, base.steps)
        for (_, _, stage), count in counted:
            if count == 0 and len(passes) > 1:
                self.notes[f"the part of the {'refiner' if stage == 'refine' else 'base model'} has no step"] = None
        if self.refiner is not None and request.controls:
            self.notes["controls act in the base model's part, not in the refiner's"] = None
        for model, _, _ in passes:
            conditions.perturbed_layers(request, model.network)  # refuses places that the network has not
        self.notes |= dict.fromkeys(remarks(request, self.model, self.size, self.solver_name, self.batch))
        if request.negative and request.guidance.scale <= 1:
            self.notes["the negative prompt is not used: the guidance scale is 1 or less"] = None
        return [p for p, count in counted if count] or passes[:1]

    def _step(
        self,
        stage: Stage,
        index: int = 0,
        count: int = 0,
        clean: Tensor | None = None,
        done: tuple[Result, ...] = (),
        whole: bool = False,
    ) -> Step:
        """What a caller sees; decoding `clean` early gives a partial result, unless it is the `whole` one."""
        span = (self.batch[0].index, self.batch[-1].index + 1)
        finish = functools.partial(self._finish, partial=None if whole else self.evaluations)
        return Step(stage, index, count, span, self.total, done, (), clean, self.pipeline.preview, finish)

    def _run(self) -> Run:
        r = self.request
        return Run(
            self.solver_name,
            r.steps,
            self.pipeline.spacing(r),
            1.0 if r.image is None else r.strength,
            sigmas=r.sigmas,
            eta=r.eta,
            zero_snr=r.zero_snr,
            family=self.model.parts.family,
        )

    def hires_run(self) -> Run:
        hires = self.request.hires
        assert hires is not None
        return replace(self._run(), steps=hires.steps or self.request.steps, strength=hires.strength)

    def _canvases(self) -> list[Canvas]:
        """What is painted on: one for all, or one for each where the fill is random."""
        request = self.request
        if request.image is None:
            return []
        count = len(self.batch) if request.fill == "noise" else 1
        free = request.width is None and request.height is None and not request.only_masked
        canvases = [prepare(request, None if free else self.size, generator(self.batch[i].seed)) for i in range(count)]
        self.size = canvases[0].size
        check_size(self.size, self.model.vae.factor)
        return canvases

    def _mask(self, size: tuple[int, int]) -> Tensor | None:
        """Where to paint, [1 or B,1,H,W], at a size of work."""
        if not self.canvases or self.canvases[0].mask is None:
            return None
        mask = torch.cat([c.mask for c in self.canvases if c.mask is not None])
        return F.interpolate(mask, size=(size[1], size[0])) if size != self.canvases[0].size else mask

    def nothing_to_paint(self) -> bool:
        mask = self._mask(self.size)
        return mask is not None and not bool((mask > 0).any())

    def _start(
        self,
        model: Model,
        run: Run,
        size: tuple[int, int],
        images: Tensor | None,
        mask: Tensor | None,
        known: Tensor | None = None,
    ) -> Start:
        """x of the first level. Random numbers are drawn as stock draws them: picture, noise, masked picture."""
        vae = place(model.vae, self.device)
        shape = (model.network.latent_channels, size[1] // vae.factor, size[0] // vae.factor)
        nine = model.network.inpaints
        if known is None and images is not None and (mask is None or run.strength < 1.0 or not nine):
            known = vae.encode(images, self.generators, self._tile)
        noises = [
            start_noise(j, shape, self.request.variation, g) for j, g in zip(self.batch, self.generators, strict=True)
        ]
        noise = torch.cat(noises).to(self.device)
        solver = Solver(run, model.parts.scheduler, self.device)
        x = solver.start(noise, known if mask is None or run.strength < 1.0 else None)
        channels = self._nine(model, size, images, mask) if nine else None
        self._release(vae.model)
        if nine or mask is None:
            return Start(x, channels=channels)
        return Start(x, known, pooled_mask(mask, vae.factor).to(self.device))

    def _nine(self, model: Model, size: tuple[int, int], images: Tensor | None, mask: Tensor | None) -> Tensor:
        """Mask and masked picture for a 9-channel U-Net; without a mask, everything is to be painted."""
        width, height = size
        image = torch.zeros(1, 3, height, width) if images is None else images
        binary = (torch.ones_like(image[:, :1]) if mask is None else mask >= 0.5).float()
        latents = model.vae.encode(image * (binary < 0.5), self.generators, self._tile)
        small = F.interpolate(binary, size=latents.shape[-2:]).to(latents)
        return torch.cat([small.expand(len(latents), -1, -1, -1), latents], dim=1)

    def _pass(self, model: Model, run: Run, size: tuple[int, int], start: Start, stage: Stage) -> Steps:
        """One use of the loop."""
        solver = Solver(run, model.parts.scheduler, self.device)
        controls = self.networks if model is self.model else []
        denoise = self._denoiser(model, solver, size, start, controls)
        self.spacing = self.spacing or solver.spacing
        said: list[Tensor] = []

        def watched(scaled: Tensor, level: Level) -> Prediction:
            prediction = denoise(scaled, level)
            said[:] = [prediction.clean]
            return prediction

        x = start.x
        try:
            for i, x in enumerate(sample(watched, solver, x, self.generators), 1):  # noqa: B020  the last x is the result
                if not torch.isfinite(x).all():
                    raise _non_finite(stage, i, solver.count, self.pipeline.dtype)
                self.evaluations += 1
                yield self._step(stage, i, solver.count, said[0])
        finally:
            self._release(model.network.model, *controls)
        return x

    def _denoiser(
        self, model: Model, solver: Solver, size: tuple[int, int], start: Start, controls: Sequence[nn.Module]
    ) -> Denoiser:
        """The network with everything that this request puts around it."""
        request, network, factor = self.request, model.network, model.vae.factor
        guidance = guidance_of(request.guidance, network)
        self.pipeline.adapting.install(self.acting)  # if another run of this pipeline came before these words are read
        text = place(model.text, self.device)
        words = conditions.Words(
            text,
            self.batch,
            request,
            steps=solver.steps,
            guided=guidance.needs_null,
            zero_null=model.zero_null,
            known=self.encoded.setdefault(model, {}),
        )
        self._release(*(tower.model for tower in text.towers))
        if words.dropped:
            self.notes[f"beyond the longest prompt, not used: {' '.join(words.dropped)}"] = None
        canvas = self.canvases[0] if self.canvases else None
        uses = request.controls if controls else ()
        timeline = conditions.timeline(
            words,
            network,
            size=size,
            channels=start.channels,
            controls=conditions.controls(uses, controls, size, canvas, factor),
            guidance=request.guidance.scale if network.told_scale else None,
            device=self.device,
        )
        perturb = conditions.perturbed_layers(request, network)
        calls = self._shared(network, controls)
        if request.tile is not None:
            calls = tiled(calls, *in_latents(request.tile.size, request.tile.overlap, factor), factor)

        def branches(x: Tensor, level: Level, names: tuple[str, ...]) -> dict[str, Prediction]:
            return dict(zip(names, calls(x, level, timeline(level).named(names, perturb)), strict=True))

        denoise = guided(branches, guidance)
        scheduler = model.parts.scheduler
        if scheduler.get("clip_sample"):
            denoise = clamped(denoise, float(scheduler.get("clip_sample_range", 1.0)))
        if start.known is not None and start.mask is not None:
            denoise = keeping(denoise, start.known, start.mask)
        return denoise

    def _shared(self, network: UNet, controls: Sequence[nn.Module]) -> Network:
        """The network as this batch calls it, with its own adapters; runs that go on beside it may share its calls."""

        def called(x: Tensor, level: Level, conds: Sequence[Cond]) -> list[Prediction]:
            self.pipeline.adapting.install(self.acting)  # if another run of this pipeline came between two steps
            for part in (network.model, *controls):
                place(part, self.device)
            return network(x, level, conds)

        return self.pipeline.sharing(called, (id(network.model), network.kind, self.acting.key))

    def _hires(self, x: Tensor) -> Steps:
        """The second pass: enlarge, add noise, denoise again."""
        hires, vae = self.request.hires, place(self.model.vae, self.device)
        assert hires is not None
        self.size = size = (nearest_side(self.size[0] * hires.scale), nearest_side(self.size[1] * hires.scale))
        known = None
        if hires.upscale == "latent":
            known = F.interpolate(
                x, size=(size[1] // vae.factor, size[0] // vae.factor), mode="bicubic", antialias=True
            )
            rgb = vae.decode(known, self._tile).cpu() if self.model.network.inpaints else None
        else:
            small = from_tensor(vae.decode(x, self._tile))
            rgb = torch.cat([to_tensor(resize(r, size, FILTERS[hires.upscale])) for r in small])
        run = self.hires_run()
        start = self._start(self.model, run, size, rgb, self._mask(size), known)
        return (yield from self._pass(self.model, run, size, start, "hires"))

    @property
    def _tile(self) -> int | None:
        return None if self.request.tile is None else self.request.tile.size

    def _release(self, *modules: nn.Module) -> None:
        """Make room on a small card: what is not computing waits in main memory."""
        if self.pipeline.offload == "model":
            self.model.network.forget()
            for module in modules:
                nn.Module.to(module, "cpu")

    def _finish(self, x: Tensor, partial: int | None = None) -> tuple[Result, ...]:
        """Decode, bring back to the canvas, and write down the recipe; `partial`: evaluations done, of more."""
        self.model.network.forget()  # whoever else computes beside reads again
        vae = place(self.model.vae, self.device)
        vae.retried = False
        pictures = [
            self._placed(from_tensor(vae.decode(latent, self._tile))[0], i) for i, latent in enumerate(x.chunk(len(x)))
        ]
        self._release(vae.model)
        notes = [*self.notes] + ["the half-precision decode overflowed and was repeated in fp32"] * vae.retried
        return self._results(pictures, self.evaluations if partial is None else partial, notes, partial is not None)

    def _placed(self, rgb: np.ndarray, row: int) -> Picture:
        """A decoded picture where it belongs: by itself, or in the user's picture."""
        if not self.canvases:
            return from_rgb(rgb)
        canvas = self.canvases[min(row, len(self.canvases) - 1)]
        if canvas.mask is None and rgb.shape[1::-1] != canvas.size:
            return canvas.enlarged(rgb)
        return canvas.finish(resize(rgb, canvas.size, FILTERS["lanczos"]))

    def _untouched(self) -> tuple[Result, ...]:
        """The source itself: strength 0, or nothing to paint."""
        canvas = self.canvases[0]
        notes = (*canvas.notes, "nothing was painted: the picture came back as it is")
        return self._results([replace(canvas.source, notes=notes, exact=True)] * len(self.batch), 0, [], False)

    def _results(self, pictures: Sequence[Picture], steps: int, notes: list[str], partial: bool) -> tuple[Result, ...]:
        made = []
        for job, picture in zip(self.batch, pictures, strict=True):
            recipe = record(self, job, picture, steps, (*notes, *picture.notes), partial)
            made.append(Result(picture, recipe, job.seed, job.index))
        return tuple(made)


def guidance_of(asked: GuidanceUse, network: UNet) -> Guidance:
    """The request's guidance for a network; one that is told the scale needs no second call."""
    return Guidance(
        scale=1.0 if network.told_scale else asked.scale,
        rescale=asked.rescale,
        interval=asked.interval,
        method=asked.method,
        apg_eta=asked.apg_eta,
        apg_norm=asked.apg_norm,
        apg_momentum=asked.apg_momentum,
        zero_steps=asked.zero_steps,
        pag=asked.pag,
        kind=network.kind,
    )


def _no_step(name: str, strength: float, steps: int) -> LdmError:
    return LdmError(
        Code.USAGE,
        f"{name}={strength:g} with steps={steps} runs no step",
        "the number of steps really run is int(steps x strength)",
        f"Use {name} of at least {1 / steps:.3g}" + (", or 0 to get the picture back." if name == "strength" else "."),
    )


def _non_finite(stage: str, step: int, count: int, dtype: torch.dtype) -> LdmError:
    half = dtype != torch.float32
    return LdmError(
        Code.NUMERIC,
        f"non-finite latents at step {step} of {count} ({stage})",
        "the network overflowed in half precision" if half else "the weights hold non-finite or far too large numbers",
        "Run with dtype float32."
        if half
        else "Check the model and the adapters; load them again from a trusted source.",
    )
