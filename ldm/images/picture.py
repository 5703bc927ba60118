"""A picture as it is worked on: upright samples in their own depth and profile, and the ways to and from sRGB."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ldm.errors import Code, LdmError
from ldm.images.colour import from_srgb, to_srgb

if TYPE_CHECKING:
    from torch import Tensor

KEPT_TEXT = ("prompt", "workflow")  # ComfyUI's graphs: kept from an input, never invented


@dataclass(frozen=True, eq=False)
class Picture:
    """Samples [H,W,1|3] uint8 or uint16, upright, in the source's colour space, and what travelled with them."""

    pixels: np.ndarray
    alpha: np.ndarray | None = None  # [H,W], the type of `pixels`
    icc: bytes | None = None  # colour profile of `pixels`; None: sRGB
    exif: bytes | None = None  # TIFF structure without the "Exif" prefix, orientation reset
    text: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what opening changed, in plain words
    name: str | None = None  # file name without its folder
    sha256: str = ""  # of the file, or of the samples when there is no file
    exact: bool = False  # equals its source outside a mask, so that a lossy format would break the promise

    def __post_init__(self) -> None:
        p, a = self.pixels, self.alpha
        if p.ndim != 3 or p.shape[2] not in (1, 3) or p.dtype not in (np.uint8, np.uint16) or 0 in p.shape:
            raise ValueError(f"pixels are {p.shape} {p.dtype}, not [H,W,1|3] of uint8 or uint16")
        if a is not None and (a.shape != p.shape[:2] or a.dtype != p.dtype):
            raise ValueError(f"alpha is {a.shape} {a.dtype}, beside pixels of {p.shape} {p.dtype}")
        for name, array in (("pixels", p), ("alpha", a)):
            if array is not None:
                view = array.view()
                view.setflags(write=False)
                object.__setattr__(self, name, view)
        if not self.sha256:
            object.__setattr__(self, "sha256", hash_samples(p, a))

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    def rgb(self, background: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> np.ndarray:
        """sRGB float32 [H,W,3] in 0..1: profile applied, alpha composed over `background`."""
        rgb = to_srgb(self.pixels, self.icc)
        if self.alpha is None:
            return rgb
        a = unit(self.alpha)[..., None]
        return np.asarray(rgb * a + np.asarray(background, np.float32) * (1 - a), np.float32)


def unit(array: np.ndarray) -> np.ndarray:
    """Integer samples as float32 in 0..1."""
    return np.asarray(array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max))


def samples(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Floats in 0..1 as integer samples, rounded to the nearest."""
    top = np.iinfo(dtype).max
    return np.asarray(np.rint(np.clip(array, 0, 1).astype(np.float64) * top).astype(dtype))


def from_rgb(array: np.ndarray, like: Picture | None = None) -> Picture:
    """sRGB floats [H,W,3] in 0..1 as a picture in the depth, channels and profile of `like` (None: 8-bit sRGB).

    Alpha is kept where the sizes agree. A grey `like` gives grey.
    """
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"array is {array.shape}, not [H,W,3]")
    check_finite(array, "the picture")
    if like is None:
        return Picture(samples(array, np.dtype(np.uint8)))
    pixels = samples(from_srgb(array, like.icc, like.pixels.shape[2]), like.pixels.dtype)
    same = pixels.shape[:2] == like.pixels.shape[:2]
    notes = list(like.notes)
    if like.alpha is not None and not same:
        notes.append("transparency was left out, because the size changed")
    if like.pixels.shape[2] == 1:
        notes.append("the source is grey, so what was painted became grey")
    return Picture(
        pixels,
        like.alpha if same else None,
        like.icc,
        like.exif,
        {k: v for k, v in like.text.items() if k in KEPT_TEXT},
        tuple(notes),
        like.name,
    )


def to_tensor(rgb: np.ndarray) -> Tensor:
    """Floats [H,W,3] in 0..1 as a float32 tensor [1,3,H,W] in [-1,1]."""
    import torch  # imported late: opening and saving pictures needs no torch

    chw = np.ascontiguousarray(np.asarray(rgb, np.float32).transpose(2, 0, 1)[None])
    return torch.from_numpy(chw) * 2 - 1


def from_tensor(x: Tensor) -> list[np.ndarray]:
    """A tensor [B,3,H,W] in [-1,1] as B arrays [H,W,3] in 0..1 (clipped); non-finite values are an error."""
    rows = ((x.detach().float().cpu() + 1) / 2).permute(0, 2, 3, 1).numpy()
    for index, row in enumerate(rows):
        check_finite(row, f"picture {index}")  # before clipping, which would hide infinities
    return [np.ascontiguousarray(np.clip(row, 0, 1)) for row in rows]


def check_finite(array: np.ndarray, what: str) -> None:
    """Nothing non-finite becomes a picture: it would be black or white noise without a word."""
    if not np.isfinite(array).all():
        raise LdmError(
            Code.NUMERIC,
            f"{what} has non-finite values",
            f"{int((~np.isfinite(array)).sum())} of {array.size} numbers are NaN or infinite.",
            "Run in float32 (--dtype float32), or lower the guidance scale.",
        )


def hash_samples(pixels: np.ndarray, alpha: np.ndarray | None) -> str:
    """sha256 of shape, type and samples: the identity of a picture that never was a file."""
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype} {alpha is not None}".encode())
    for array in (pixels, alpha):
        if array is not None:
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
