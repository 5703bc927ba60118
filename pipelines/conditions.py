"""From words, hints and masks to `Cond`: what the network is told at each level of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.data.hints import make_hint
from ldm.diffusion.level import Level
from ldm.errors import Code, LdmError
from ldm.images import open_image
from ldm.models.attention import layer_prefixes
from ldm.models.latent import Cond, Control
from ldm.models.prompt import Prompt, parse
from ldm.models.text import Encoded, TextEncoder
from ldm.models.unet import UNet
from pipelines.canvas import Canvas
from pipelines.jobs import Job
from pipelines.request import ControlUse, ImageInput, Request

AESTHETIC, AESTHETIC_NULL = 6.0, 2.5  # what the stock refiner is told about wanted and unwanted pictures


@dataclass(frozen=True)
class Told:
    """The conditions at one level: with the prompt, and without."""

    cond: Cond
    null: Cond | None

    def named(self, names: Sequence[str], perturb: frozenset[str]) -> list[Cond]:
        """The conditions of the branches that guidance asks for."""
        made = {"cond": self.cond, "null": self.null, "perturbed": replace(self.cond, perturb=perturb)}
        return [c for n in names if (c := made[n]) is not None]


Timeline = Callable[[Level], Told]
Known = dict[tuple[str, int, int], Encoded]  # what was encoded, by text, layers left out, and chunks


class Words:
    """The encoded prompts of a batch at each level: one encoding for each stretch between two switches of the text."""

    def __init__(
        self,
        text: TextEncoder,
        batch: Sequence[Job],
        request: Request,
        *,
        steps: int,
        guided: bool,
        zero_null: bool,
        known: Known,
    ) -> None:
        """`steps` of the run; `zero_null`: a negative of None is all zeros, as stock XL has it; "" is not None.

        `known` grows: the same words are encoded once for all pictures, and for all passes of one model.
        """
        dialect = request.dialect
        prompts = [parse(j.prompt.text, dialect, steps=steps) for j in batch]
        negatives = [None if j.negative is None else parse(j.negative.text, dialect, steps=steps) for j in batch]
        spoken = [*prompts, *(n for n in negatives if n is not None and guided)]
        chunks = max(text.chunks(p, dialect=dialect) for p in spoken)
        self._switches = sorted({s for p in spoken for s in p.switches})
        self._stretches: list[tuple[Encoded, Encoded | None]] = []
        self.dropped: dict[str, None] = {}  # words beyond the chunk limit, in order

        def encode(prompt: Prompt, at: float, clip_skip: int = 0) -> Encoded:
            key = prompt.at(at), clip_skip, chunks
            if key not in known:
                known[key] = text.encode(prompt, dialect=dialect, clip_skip=clip_skip, at=at, chunks=chunks)
            self.dropped |= dict.fromkeys(known[key].dropped)
            return known[key]

        nothing = parse("", dialect)

        def null(negative: Prompt | None, cond: Encoded, at: float) -> Encoded:
            if negative is None and zero_null:
                pooled = None if cond.pooled is None else torch.zeros_like(cond.pooled)
                return Encoded(torch.zeros_like(cond.text), pooled)
            return encode(nothing if negative is None else negative, at)  # stock skips layers of the prompt only

        for at in (0.0, *self._switches):
            conds = [encode(p, at, request.clip_skip) for p in prompts]
            nulls = [null(n, c, at) for n, c in zip(negatives, conds, strict=True)] if guided else []
            self._stretches.append((_stack(conds), _stack(nulls) if nulls else None))

    def __call__(self, level: Level) -> tuple[Encoded, Encoded | None]:
        done = float(level.progress[0]) + 1e-6  # the progress of step 7 of 10 is a little less than 0.7
        return self._stretches[sum(s <= done for s in self._switches)]


def chunks_needed(text: TextEncoder, request: Request, guided: bool) -> Callable[[Job], int]:
    """Chunks that a picture's words take: pictures that need the same may share a call, others would be padded. Each
    text is looked at once."""
    chunks = cache(lambda spoken: text.chunks(spoken, dialect=request.dialect, steps=request.steps))

    def needed(job: Job) -> int:
        spoken = [job.prompt.text] + ([job.negative.text] if guided and job.negative is not None else [])
        return max(map(chunks, spoken))

    return needed


def _stack(encoded: Sequence[Encoded]) -> Encoded:
    pooled = [e.pooled for e in encoded if e.pooled is not None]
    return Encoded(torch.cat([e.text for e in encoded]), torch.cat(pooled) if pooled else None)


def timeline(
    spoken: Words,
    network: UNet,
    *,
    size: tuple[int, int],
    channels: Tensor | None,
    controls: tuple[Control, ...],
    guidance: float | None,
    device: torch.device,
) -> Timeline:
    """Everything that the network is told, level by level. `guidance` is for networks that are told the scale."""
    dtype = next(network.model.parameters()).dtype
    moved = Cond(channels=channels, controls=controls).to(device, dtype)  # once: conditions share a control object
    made: dict[int, Told] = {}

    def told(level: Level) -> Told:
        cond_text, null_text = spoken(level)
        if id(cond_text) not in made:
            made[id(cond_text)] = Told(
                _cond(cond_text, AESTHETIC, moved.controls),
                None
                if null_text is None
                else _cond(null_text, AESTHETIC_NULL, tuple(c for c in moved.controls if not c.guess)),
            )
        return made[id(cond_text)]

    def _cond(encoded: Encoded, aesthetic: float, acting: tuple[Control, ...]) -> Cond:
        batch = len(encoded.text)
        sizes = time_ids(network, encoded.pooled, size, aesthetic)
        cond = Cond(
            text=encoded.text,
            pooled=None if sizes is None else encoded.pooled,
            sizes=None if sizes is None else sizes.repeat(batch, 1),
            guidance=None if guidance is None else torch.full((batch,), guidance),
        )
        return replace(cond.to(device, dtype), channels=moved.channels, controls=acting)

    return told


def time_ids(network: UNet, pooled: Tensor | None, size: tuple[int, int], aesthetic: float) -> Tensor | None:
    """XL's sizes [1,6]: original, crop, target; the refiner's [1,5]: original, crop, aesthetic score; else None."""
    config = network.config
    if pooled is None or getattr(config, "addition_embed_type", None) != "text_time":
        return None
    width, height = size
    count = (config.projection_class_embeddings_input_dim - pooled.shape[-1]) // config.addition_time_embed_dim
    ids = [height, width, 0, 0] + ([aesthetic] if count == 5 else [height, width])
    return torch.tensor([ids], dtype=torch.float32)


def controls(
    uses: Sequence[ControlUse], networks: Sequence[nn.Module], size: tuple[int, int], canvas: Canvas | None, factor: int
) -> tuple[Control, ...]:
    """Hints at work size, each made by its detector from the picture that it was given; masks at latent size."""
    made = []
    for use, network in zip(uses, networks, strict=True):
        hint = hint_of(use.hint, use.image, size, canvas)
        tensor = torch.from_numpy(np.ascontiguousarray(hint.transpose(2, 0, 1))).float()[None]
        mask = None
        if use.mask is not None:
            _same_size(use)
            grey = companion(use.mask, size, canvas).mean(axis=-1)
            mask = F.avg_pool2d(torch.from_numpy(np.ascontiguousarray(grey))[None, None].float(), factor)
        made.append(Control(network, tensor, use.weight, (use.start, use.end), mask, use.guess))
    return tuple(made)


def hint_of(name: str, image: ImageInput, size: tuple[int, int], canvas: Canvas | None = None) -> np.ndarray:
    """What a control is shown, [H,W,3] in 0..1: made by a detector from a picture that was brought to the work size."""
    return make_hint(name, companion(image, size, canvas))


def _same_size(use: ControlUse) -> None:
    """A control's mask lies over its picture; another size would be a guess at what was meant."""
    mask, image = open_image(use.mask or use.image).size, open_image(use.image).size
    if mask != image:
        raise LdmError(
            Code.USAGE,
            f"the mask of control {use.model} is {mask[0]}x{mask[1]}",
            f"its picture is {image[0]}x{image[1]}",
            "Give a mask of the picture's size.",
        )


def companion(image: ImageInput, size: tuple[int, int], canvas: Canvas | None) -> np.ndarray:
    """A picture beside the work picture, brought to `size`: cut and widened like the canvas where it has its size."""
    picture = open_image(image)
    rgb = picture.rgb()
    if canvas is not None:
        left, top, right, bottom = canvas.pad
        width, height = canvas.source.size
        if any(canvas.pad) and picture.size == (width - left - right, height - top - bottom):
            rgb = np.pad(rgb, ((top, bottom), (left, right), (0, 0)))
        if rgb.shape[1::-1] == (width, height):
            rgb = canvas.frame.forward(rgb[canvas.frame.place])
    return fitted(rgb, size)


def fitted(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H,W,3] in 0..1 at another size (width, height), by Lanczos on 8-bit samples as the stock processors do."""
    if rgb.shape[1::-1] == size:
        return rgb
    eight = Image.fromarray(np.rint(rgb * 255).astype(np.uint8))
    return np.asarray(eight.resize(size, Image.Resampling.LANCZOS), np.float32) / 255


def perturbed_layers(request: Request, network: UNet) -> frozenset[str]:
    """The attention layers that perturbed-attention guidance replaces by the identity."""
    return layer_prefixes(request.guidance.pag_layers, network.model) if request.guidance.pag > 0 else frozenset()
