"""The canvas: from the user's picture to what the model works on, and back without touching anything outside the mask.

prepare: open, widen (outpaint), soften the mask inside, crop or scale to the work size, fill the hole
finish:  undo scale and crop, blend inside the mask; where the mask is 0 the source's own samples are copied
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Generator, Tensor

from ldm.errors import Code, LdmError
from ldm.images import DEFAULT_MAX_PIXELS, KEPT_TEXT, Picture, from_rgb, open_image, to_tensor
from ldm.images.colour import from_srgb
from ldm.images.picture import check_finite, samples, unit
from pipelines.frame import Filter, Frame, around, cover, resize, whole
from pipelines.hole import fill_hole, read_mask, soften
from pipelines.request import MAX_SIDE, Request, nearest_side

# Below this strength a repainted pixel still shows the same thing as the source, so the two are mixed; above it they
# may differ, and mixing would show both at once.
OPAQUE_FROM = 0.25


@dataclass(frozen=True, eq=False)
class Canvas:
    """What image-to-image, inpainting and outpainting work on; made once per request by `prepare`."""

    image: Tensor  # [1,3,h,w] in [-1,1]: cropped, scaled, the hole filled
    mask: Tensor | None  # [1,1,h,w] in [0,1], 1: paint, grey: strength; None: image-to-image
    size: tuple[int, int]  # (w, h) of the work
    notes: tuple[str, ...]
    source: Picture  # upright, widened for outpaint
    frame: Frame
    strength: np.ndarray | None  # [H,W] in 0..1: the mask over the whole canvas
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)  # how much the canvas was widened: left, top, right, bottom

    @property
    def empty(self) -> bool:
        """Whether there is a mask and it is black everywhere: the source is the answer."""
        return self.strength is not None and not self.strength.any()

    def finish(self, rgb01: np.ndarray) -> Picture:
        """A painting [h,w,3] in 0..1 of the work size, in its place in the source."""
        if rgb01.shape != (self.size[1], self.size[0], 3):
            raise ValueError(f"the painting is {rgb01.shape}, not {(self.size[1], self.size[0], 3)}")
        check_finite(rgb01, "the painting")
        kept = {k: v for k, v in self.source.text.items() if k in KEPT_TEXT}
        if self.strength is None:
            resized = self.frame.scaled != self.frame.box_size
            painting = rgb01 if resized else self.frame.back(rgb01)
            return replace(self._repainted(painting), text=kept, notes=self.notes)
        pixels = self.source.pixels.copy()
        if not self.empty:
            self._blend(pixels[self.frame.place], self.strength[self.frame.place], self.frame.back(rgb01))
        return replace(self.source, pixels=pixels, text=kept, notes=self.notes, sha256="", exact=True)

    def _blend(self, region: np.ndarray, strength: np.ndarray, painted: np.ndarray) -> None:
        """Write the painting into `region`, integer samples of the source, where strength > 0 and nowhere else."""
        inside = strength > 0
        weight = np.minimum(1, strength / OPAQUE_FROM)[..., None]
        own = from_srgb(painted, self.source.icc, region.shape[2])
        mixed = samples(weight * own + (1 - weight) * unit(region), region.dtype)
        region[inside] = mixed[inside]

    def enlarged(self, rgb01: np.ndarray) -> Picture:
        """Image-to-image in two passes: a painting [H,W,3] larger than the work size, less the work's padding."""
        scale = rgb01.shape[1] / self.size[0], rgb01.shape[0] / self.size[1]
        width, height = round(self.frame.scaled[0] * scale[0]), round(self.frame.scaled[1] * scale[1])
        kept = {k: v for k, v in self.source.text.items() if k in KEPT_TEXT}
        return replace(self._repainted(rgb01[:height, :width]), text=kept, notes=self.notes)

    def _repainted(self, rgb: np.ndarray) -> Picture:
        """Image-to-image: the whole painting, with the source's alpha cropped and scaled alike."""
        bare = replace(self.source, alpha=None, sha256="")
        if self.source.pixels.shape[2] == 1:  # nothing of the grey picture stays, so the painting may have colours
            bare = replace(bare, pixels=np.repeat(bare.pixels, 3, axis=2), icc=None)
        result = from_rgb(rgb, bare)
        if self.source.alpha is None:
            return result
        alpha = resize(unit(self.source.alpha)[self.frame.place][..., None], result.size, Filter.LANCZOS)[..., 0]
        return replace(result, alpha=samples(alpha, self.source.alpha.dtype), sha256="")


def prepare(request: Request, size: tuple[int, int] | None, generator: Generator) -> Canvas:
    """The canvas of a request that has an image; `size` is the work size, None: what the picture itself has."""
    if request.image is None:
        raise LdmError(Code.USAGE, "image is missing", "This mode starts from a picture.", "Give an image.")
    check_size(size)
    source = open_image(request.image, keep_location=request.keep_location)
    mask = None
    notes = list(source.notes)
    if request.mask is not None:
        mask = soften(read_mask(request.mask, source.size, may_resize=request.resize_mask), request.mask_blur)
    if any(request.pad):
        source, mask = widen(source, mask, request.pad)
        notes.append(f"the canvas was widened to {source.width}x{source.height}")
    frame = choose_frame(request, source, mask, size)
    notes += explain(frame, source, mask)
    rows, columns = frame.place
    alpha = None if source.alpha is None else source.alpha[rows, columns]
    rgb = frame.forward(replace(source, pixels=source.pixels[rows, columns], alpha=alpha).rgb())
    if mask is None:
        return Canvas(to_tensor(rgb), None, frame.work, tuple(notes), source, frame, None)
    hole = work_mask(frame, mask)
    image = to_tensor(fill_hole(rgb, hole, request, generator))
    tensor = torch.from_numpy(np.ascontiguousarray(hole[None, None]))
    return Canvas(image, tensor, frame.work, tuple(notes), source, frame, mask, request.pad)


def check_size(size: tuple[int, int] | None) -> None:
    """Work sizes are multiples of 8, because a latent pixel stands for 8x8."""
    for name, side in zip(("width", "height"), size or (), strict=False):
        if not 8 <= side <= MAX_SIDE or side % 8:
            raise LdmError(
                Code.USAGE,
                f"{name} {side} is not a legal size",
                f"Sizes are multiples of 8 from 8 to {MAX_SIDE}.",
                f"Use {nearest_side(side)}, the nearest legal size.",
            )


def choose_frame(request: Request, source: Picture, mask: np.ndarray | None, size: tuple[int, int] | None) -> Frame:
    """Which part of the canvas is worked on, and how large: see the table in docs/pictures.md."""
    if mask is None:
        return whole(source.size, None) if size is None or size == source.size else cover(source.size, size)
    if request.only_masked and mask.any():
        return around(mask, request.padding, size)
    return whole(source.size, size)


def widen(source: Picture, mask: np.ndarray | None, pad: tuple[int, int, int, int]) -> tuple[Picture, np.ndarray]:
    """The source in a larger canvas, mirrored outwards, and a mask that is 1 in the new area."""
    left, top, right, bottom = pad
    width, height = source.width + left + right, source.height + top + bottom
    if width * height > DEFAULT_MAX_PIXELS:
        raise LdmError(
            Code.USAGE,
            f"pad {pad} makes a canvas of {width}x{height}",
            f"That is {width * height / 1e6:.1f} million pixels, of at most {DEFAULT_MAX_PIXELS / 1e6:.0f} million.",
            "Pad by less.",
        )
    around_it = ((top, bottom), (left, right))
    pixels = np.pad(source.pixels, (*around_it, (0, 0)), mode="symmetric")
    alpha = source.alpha
    if alpha is not None:
        alpha = np.pad(alpha, around_it, constant_values=np.iinfo(alpha.dtype).max)
    inner = np.zeros((source.height, source.width), np.float32) if mask is None else mask
    return replace(source, pixels=pixels, alpha=alpha, sha256=""), np.pad(inner, around_it, constant_values=1)


def work_mask(frame: Frame, mask: np.ndarray) -> np.ndarray:
    """The mask [h,w] at the work size. Black and white stay so: every work pixel that touches white is painted."""
    part = mask[frame.place]
    hole = frame.forward(part[..., None], Filter.BOX)[..., 0]
    binary = bool(np.isin(part, (0, 1)).all())
    return np.asarray((hole > 0) if binary else hole, np.float32)


def explain(frame: Frame, source: Picture, mask: np.ndarray | None) -> list[str]:
    """What was done to fit the picture to the work size, and what a user may not expect."""
    notes = []
    crop = frame.box_size != source.size
    if crop:
        left, top, right, bottom = frame.box
        notes.append(f"worked on the part from ({left}, {top}) to ({right}, {bottom})")
    if frame.scaled != frame.box_size:
        notes.append(f"scaled from {frame.box_size[0]}x{frame.box_size[1]} to {frame.scaled[0]}x{frame.scaled[1]}")
    if frame.work != frame.scaled:
        notes.append(f"padded by reflection to {frame.work[0]}x{frame.work[1]} while working")
    if mask is not None and not mask.any():
        notes.append("the mask is black everywhere, so the picture comes back unchanged")
    elif mask is not None and source.pixels.shape[2] == 1:
        notes.append("the source is grey, so what is painted becomes grey")
    if mask is not None and source.alpha is not None and (source.alpha[mask > 0] == 0).any():
        notes.append("the mask covers transparent pixels; what is painted there stays transparent")
    return notes
