"""What a user asks for: one frozen record, validated once. The command line, the server and the page derive from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ldm.images import Picture

Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
ImageInput = Path | Picture | Image.Image  # a file, an opened picture, or a PIL image

MAX_PROMPT_BYTES = 20_000
MAX_SIDE = 16_384
MAX_COUNT = 10_000  # pictures of one request


class Record(BaseModel):
    """Frozen, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class LoraUse(Record):
    """An adapter and how strongly it acts; `text_weight` is for its text-tower part (None: the same weight)."""

    path: Path
    weight: Finite = 1.0
    text_weight: Finite | None = None
    any_base: bool = False  # put it on a model that is not the base it was made for (a fine-tune of that base, say)


class ControlUse(Record):
    """A spatial control. `hint` names the detector that turns `image` into a hint; "none": it is one already."""

    model: Annotated[str, Field(min_length=1)]
    image: ImageInput
    hint: str = "none"
    weight: Annotated[float, Field(ge=0.0, le=10.0, allow_inf_nan=False)] = 1.0
    start: Fraction = 0.0
    end: Fraction = 1.0
    mask: ImageInput | None = None
    guess: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> ControlUse:
        if self.start >= self.end:
            raise ValueError(f"start {self.start} is not before end {self.end}")
        return self


class GuidanceUse(Record):
    """How the predictions with and without the prompt are combined. The defaults are plain classifier-free guidance."""

    scale: Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)] = 7.5
    rescale: Fraction = 0.0  # Lin 2023, section 3.4
    interval: tuple[Fraction, Fraction] = (0.0, 1.0)  # parts of the run in which guidance acts (Kynkaanniemi 2024)
    method: Literal["cfg", "apg", "cfg-zero"] = "cfg"
    apg_eta: Finite = 0.0  # APG: weight of the parallel part (Sadat 2024)
    apg_norm: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0  # APG: norm threshold, 0: off
    apg_momentum: Annotated[float, Field(gt=-1.0, lt=1.0, allow_inf_nan=False)] = 0.0
    zero_steps: Annotated[int, Field(ge=0)] = 0  # CFG-zero*: first steps that predict zero velocity (Fan 2025)
    pag: Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)] = 0.0  # perturbed attention (Ahn 2024)
    pag_layers: tuple[str, ...] = ("mid",)


class HiresUse(Record):
    """The second pass: enlarge by `scale`, then image-to-image with `strength`."""

    scale: Annotated[float, Field(gt=1.0, le=8.0, allow_inf_nan=False)] = 2.0
    strength: Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)] = 0.5
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    upscale: Literal["lanczos", "bicubic", "nearest", "latent"] = "lanczos"


class TileUse(Record):
    """Denoise and decode in overlapping tiles of `size` pixels (pictures larger than memory or than the model)."""

    size: Annotated[int, Field(ge=16, le=4096)] = 512
    overlap: Annotated[int, Field(ge=0)] | None = None  # None: a quarter of the size

    @model_validator(mode="after")
    def _overlap_fits(self) -> TileUse:
        if self.overlap is not None and self.overlap >= self.size:
            raise ValueError(f"overlap {self.overlap} is not smaller than the tile size {self.size}")
        return self


class Request(Record):
    """One request. `None` means "what suits the model"; the recipe in the picture holds what was really used."""

    prompt: str = ""
    negative: str | None = None  # None is not "": a stock XL pipeline zeroes None, and encodes ""
    dialect: Literal["a1111", "comfy", "compel"] = "a1111"
    clip_skip: Annotated[int, Field(ge=0, le=12)] = 0  # layers left out at the end of the text tower
    width: int | None = None
    height: int | None = None
    steps: Annotated[int, Field(ge=1, le=1000)] = 25
    solver: str = "auto"
    spacing: str = "auto"
    sigmas: tuple[Annotated[float, Field(ge=0.0, le=1e5, allow_inf_nan=False)], ...] | None = None
    eta: Fraction = 0.0  # DDIM only
    zero_snr: bool | None = None  # rescale the schedule to zero terminal SNR (None: as the checkpoint says)
    prediction: Literal["epsilon", "v_prediction", "sample", "flow"] | None = None  # None: as the checkpoint says
    guidance: GuidanceUse = GuidanceUse()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    count: Annotated[int, Field(ge=1, le=MAX_COUNT)] = 1
    batch: Annotated[int, Field(ge=1, le=256)] = 4  # how many pictures share a network call; does not change them
    variation_seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    variation: Fraction = 0.0  # 0: the seed alone, 1: the variation seed alone

    image: ImageInput | None = None
    strength: Fraction = 0.8
    mask: ImageInput | None = None  # white: paint here; grey: paint with that strength; black: never changes
    fill: Literal["original", "blur", "noise", "colour"] = "original"
    fill_colour: tuple[int, int, int] = (127, 127, 127)
    only_masked: bool = False  # crop to the mask, work at model size, stitch back
    padding: Annotated[int, Field(ge=0, le=4096)] = 32  # context around the mask, for only_masked
    mask_blur: Annotated[float, Field(ge=0.0, le=256.0, allow_inf_nan=False)] = 0.0  # softens inside the mask only
    resize_mask: bool = False
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)  # outpaint: left, top, right, bottom
    keep_location: bool = False

    controls: tuple[ControlUse, ...] = ()
    loras: tuple[LoraUse, ...] = ()
    lora_folder: Path | dict[str, Path] | None = None  # where `<lora:name:weight>` tags are looked up; files by name
    embeddings: tuple[Path, ...] = ()
    wildcards: Path | None = None  # folder of `__file__` wildcards
    hires: HiresUse | None = None
    tile: TileUse | None = None
    refiner: str | None = None
    refiner_start: Annotated[float, Field(gt=0.0, lt=1.0, allow_inf_nan=False)] = 0.8
    exact: bool = False

    @field_validator("prompt", "negative")
    @classmethod
    def _not_endless(cls, text: str | None) -> str | None:
        if text is not None and len(text.encode("utf-8", "surrogatepass")) > MAX_PROMPT_BYTES:
            raise ValueError(f"longer than {MAX_PROMPT_BYTES} bytes; shorten it")
        return text

    @field_validator("width", "height")
    @classmethod
    def _legal_side(cls, side: int | None) -> int | None:
        if side is not None and (side < 8 or side % 8 or side > MAX_SIDE):
            raise ValueError(
                f"{side} is not a multiple of 8 from 8 to {MAX_SIDE}; the nearest legal size is {nearest_side(side)}"
            )
        return side

    @field_validator("pad")
    @classmethod
    def _pad_grows(cls, pad: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        if min(pad) < 0 or max(pad) > MAX_SIDE:
            raise ValueError(f"{pad}: each side must be from 0 to {MAX_SIDE} pixels")
        return pad

    @model_validator(mode="after")
    def _parts_fit(self) -> Request:
        if self.image is None:
            if self.mask is not None:
                raise ValueError("mask needs an image")
            if any(self.pad):
                raise ValueError("pad needs an image")
        if max(self.seed, self.variation_seed or 0) + self.count > 2**63:
            raise ValueError(f"seed {self.seed} and count {self.count} lead beyond the largest seed, {2**63 - 1}")
        self._nothing_in_vain()
        if self.only_masked and self.mask is None:
            raise ValueError("only_masked needs a mask")
        if self.variation > 0 and self.variation_seed is None:
            raise ValueError("variation needs a variation_seed")
        if self.guidance.interval[0] > self.guidance.interval[1]:
            raise ValueError(f"guidance.interval {self.guidance.interval} ends before it starts")
        return self

    def _nothing_in_vain(self) -> None:
        """A field that was set acts, or is refused: who sets a strength means a picture to start from."""
        needs = {
            "strength": ("image", self.image is not None),
            "fill": ("mask or pad", self.mask is not None or any(self.pad)),
            "mask_blur": ("mask or pad", self.mask is not None or any(self.pad)),
            "resize_mask": ("mask", self.mask is not None),
            "refiner_start": ("refiner", self.refiner is not None),
        }
        for name, (needed, there) in needs.items():
            if not there and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} needs {needed}")

    def fields_set(self) -> dict[str, Any]:
        """What differs from the defaults; short enough to print."""
        return {
            k: getattr(self, k)
            for k in type(self).model_fields
            if getattr(self, k) != type(self).model_fields[k].default
        }


def nearest_side(side: float) -> int:
    """The legal size nearest to a wish: a multiple of 8 from 8 to `MAX_SIDE`."""
    if not math.isfinite(side):
        return 512
    return int(min(MAX_SIDE, max(8, round(side / 8) * 8)))
