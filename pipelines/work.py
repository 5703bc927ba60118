"""The network calls that one batch of a request makes: how many, of what size, with what beside them in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from ldm.diffusion.solver import Run, Solver
from ldm.models.latent import Control
from ldm.models.tiling import in_latents, tiles
from pipelines import conditions
from pipelines.making import Making, guidance_of
from pipelines.request import nearest_side

if TYPE_CHECKING:
    from pipelines.pipeline import Model

Size = tuple[int, int]  # width, height in pixels
WINDOW = 77  # tokens of a chunk of text


@dataclass(frozen=True)
class Work:
    """Equal calls of one network."""

    kind: Literal["network", "encode", "decode"]
    model: Model
    size: Size  # of one call
    rows: int  # of its batch: pictures x branches of guidance
    calls: int
    steps: int = 0  # evaluations that these calls make up
    controls: tuple[nn.Module, ...] = ()
    tokens: int = WINDOW
    kept: int = 0  # bytes that are held beside each call


def work_of(making: Making) -> Iterator[Work]:
    """All calls of a batch, in order; none where the source itself is the answer."""
    request, size, batch = making.request, making.size, len(making.batch)
    if making.canvases and (request.strength == 0.0 or making.nothing_to_paint()):
        return
    first, run, _ = making.passes[0]
    yield from _encoding(making, first, run, size, len(making.canvases), known=False)
    for model, run, _ in making.passes:
        yield from _evaluations(making, model, run, size)
    if request.hires is not None:
        large, latent = final_size(making), request.hires.upscale == "latent"
        pixels = not latent or making.model.network.inpaints
        if pixels:
            yield _autoencoding(making, "decode", making.model, large if latent else size, batch, 1)
        run = making.hires_run()
        yield from _encoding(making, making.model, run, large, batch if pixels else 0, known=latent)
        yield from _evaluations(making, making.model, run, large)
    yield _autoencoding(making, "decode", making.model, final_size(making), 1, batch)


def final_size(making: Making) -> Size:
    """Of the latent work in the last pass."""
    scale = 1.0 if making.request.hires is None else making.request.hires.scale
    width, height = making.size
    return (width, height) if scale == 1.0 else (nearest_side(width * scale), nearest_side(height * scale))


def _encoding(making: Making, model: Model, run: Run, size: Size, images: int, known: bool) -> Iterator[Work]:
    """The start of a pass: the picture itself, and for a 9-channel network the masked one."""
    masked = bool(making.canvases) and making.canvases[0].mask is not None
    if images and not known and (not masked or run.strength < 1.0 or not model.network.inpaints):
        yield _autoencoding(making, "encode", model, size, images, 1)
    if model.network.inpaints:
        yield _autoencoding(making, "encode", model, size, max(images, 1), 1)


def _autoencoding(
    making: Making, kind: Literal["encode", "decode"], model: Model, size: Size, rows: int, calls: int
) -> Work:
    """In tiles if asked: they are blended in fp32 on a canvas of pixels, or of means and deviations."""
    tile, vae = making.request.tile, model.vae
    if tile is None or max(size) <= tile.size:
        return Work(kind, model, size, rows, calls)
    side = max(tile.size // vae.factor, 2)
    part, count = _tiles(size, vae.factor, side, max(tile.size // vae.factor // 4, 1))
    canvas = (3 * rows + 1) if kind == "decode" else (2 * rows * vae.channels + 1) / vae.factor**2
    return Work(kind, model, part, rows, calls * count, kept=int(4 * canvas * size[0] * size[1]))


def _tiles(size: Size, factor: int, side: int, overlap: int) -> tuple[Size, int]:
    """The size of one tile in pixels, and how many there are; `side` and `overlap` in latents."""
    width, height = size[0] // factor, size[1] // factor
    count = sum(1 for _ in tiles(height, width, side, overlap))
    return (min(side, width) * factor, min(side, height) * factor), count


def _evaluations(making: Making, model: Model, run: Run, size: Size) -> Iterator[Work]:
    """One use of the loop. Guidance and controls act in parts of it, so its calls are of several kinds."""
    request, factor, network = making.request, model.vae.factor, model.network
    guidance = guidance_of(request.guidance, network)
    part, count = size, 1
    if request.tile is not None:
        part, count = _tiles(size, factor, *in_latents(request.tile.size, request.tile.overlap, factor))
    chunks = map(conditions.chunks_needed(model.text, request, guidance.needs_null), making.batch)
    controls = _controls(making) if model is making.model else []
    kinds: Counter[tuple[int, tuple[nn.Module, ...]]] = Counter()
    for level in Solver(run, model.parts.scheduler).levels():
        branches = 1 + (guidance.needs_null + (guidance.pag > 0)) * guidance.acts(level)
        kinds[branches, tuple(c.network for c in controls if c.weight_at(level))] += 1
    tokens = WINDOW * max(chunks)
    for (branches, acting), levels in kinds.items():
        yield Work("network", model, part, branches * len(making.batch), levels * count, levels, acting, tokens)


def _controls(making: Making) -> Sequence[Control]:
    """The controls without their hints: only when they act is asked."""
    nothing = torch.zeros(0)
    pairs = zip(making.request.controls, making.networks, strict=True)
    return [Control(network, nothing, use.weight, (use.start, use.end)) for use, network in pairs]
