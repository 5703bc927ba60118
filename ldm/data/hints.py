"""Hint pictures for spatial control, made without a network, by name; each takes and gives [H,W,3] in 0..1."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch.nn import functional as F

from ldm.data import edges
from ldm.data.filters import Array, gaussian
from ldm.data.lines import lines
from ldm.errors import Code, LdmError

Hint = Callable[[Array], Array]


def ready(rgb: Array) -> Array:
    """The picture is a hint already: depth, pose, normals, segmentation."""
    return rgb


def canny(rgb: Array) -> Array:
    """Thin white edges on black."""
    return _three(edges.canny(rgb).astype(np.float32))


def soft(rgb: Array) -> Array:
    """Soft edges (as HED draws them)."""
    return _three(edges.soft(rgb))


def straight(rgb: Array) -> Array:
    """Straight lines (as MLSD draws them)."""
    return _three(lines(rgb))


def scribble(rgb: Array) -> Array:
    """Thick outlines, as drawn by hand."""
    return _three(edges.scribble(rgb))


def blur(rgb: Array) -> Array:
    """A Gaussian blur, as strong for its size as sigma 9 is for 512 pixels."""
    return gaussian(rgb, max(0.5, 9 * max(rgb.shape[:2]) / 512))


def tile(rgb: Array) -> Array:
    """The picture at an eighth of its size (small ones: a quarter), enlarged again: content without detail."""
    factor = 8 if min(rgb.shape[:2]) >= 256 else 4
    return _through(rgb, factor, mode="bilinear")


def grey(rgb: Array) -> Array:
    """Luma 0.299 R + 0.587 G + 0.114 B (BT.601), for colouring a grey picture."""
    return _three(rgb @ np.array([0.299, 0.587, 0.114], np.float32))


def recolour(rgb: Array) -> Array:
    """CIE lightness L* / 100: what stays when only the colours change."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    y = linear @ np.array([0.2126, 0.7152, 0.0722])
    lightness = np.where(y <= 216 / 24389, y * 24389 / 27, 116 * np.cbrt(y) - 16) / 100
    return _three(lightness.astype(np.float32))


def palette(rgb: Array) -> Array:
    """A coarse grid of mean colours, eight cells along the longer side."""
    return _through(rgb, max(1, -(-max(rgb.shape[:2]) // 8)), mode="nearest")


HINTS: Mapping[str, Hint] = MappingProxyType(
    {
        "none": ready,
        "canny": canny,
        "soft": soft,
        "lines": straight,
        "scribble": scribble,
        "blur": blur,
        "tile": tile,
        "grey": grey,
        "recolour": recolour,
        "palette": palette,
    }
)


# Hints that only another program's network can make; under these names, too, the picture is taken as it is.
READY = ("depth", "pose", "openpose", "normal", "normals", "segmentation", "seg")


def make_hint(name: str, rgb: Array) -> Array:
    """The hint picture [H,W,3] in 0..1 that the detector `name` makes of a picture [H,W,3] in 0..1."""
    name = "none" if name in READY else name
    if name not in HINTS:
        near = difflib.get_close_matches(name, (*HINTS, *READY), n=1)
        fix = f"write {near[0]}" if near else "choose one of them; a hint picture made elsewhere is none, depth or pose"
        raise LdmError(Code.USAGE, f"hint {name!r}: unknown", f"hints are {', '.join(HINTS)}", fix)
    if rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape or not np.isfinite(rgb).all():
        why = f"it is {'x'.join(map(str, rgb.shape))}" + ("" if np.isfinite(rgb).all() else " with non-finite values")
        raise LdmError(Code.USAGE, f"hint {name}: needs a picture of three finite channels", why, "give an RGB picture")
    return np.clip(HINTS[name](np.clip(rgb, 0, 1).astype(np.float32)), 0, 1).astype(np.float32)


def _three(grey: Array) -> Array:
    return np.repeat(grey.astype(np.float32)[..., None], 3, axis=2)


def _through(rgb: Array, factor: int, mode: str) -> Array:
    """Down to one mean colour per `factor` pixels, and back to the old size."""
    height, width = rgb.shape[:2]
    small = (max(1, -(-height // factor)), max(1, -(-width // factor)))
    x = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))[None]
    x = F.adaptive_avg_pool2d(x, small)
    x = F.interpolate(x, (height, width), mode=mode, align_corners=False if mode == "bilinear" else None)
    return np.ascontiguousarray(x[0].permute(1, 2, 0).numpy())
