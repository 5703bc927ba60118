"""Colour profiles: samples to sRGB and back.

Matrix and grey profiles are computed here in floats, because ImageCms works on 8 bits only and would throw away 16-bit
steps. Profiles made of tables go through ImageCms. Rendering is relative colorimetric; colours outside are clipped.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

STRIP_ROWS = 64
GRID = np.linspace(0.0, 1.0, 65536)
# sRGB primaries adapted to D50, the white of the profile connection space (IEC 61966-2-1 with Bradford adaptation).
SRGB_TO_D50 = np.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
)
LUMA = np.array([0.2126, 0.7152, 0.0722])  # BT.709 luma of encoded sRGB, for grey without a profile


@dataclass(frozen=True)
class Profile:
    """A profile simple enough to compute: linear = curve(sample), XYZ = matrix @ linear (grey: one curve)."""

    curves: tuple[np.ndarray, ...]  # each [65536], rising, over GRID
    matrix: np.ndarray | None  # [3,3] to D50 XYZ; None: grey


def to_srgb(samples: np.ndarray, icc: bytes | None) -> np.ndarray:
    """Integer samples [H,W,1|3] in the space of `icc` as sRGB float32 [H,W,3] in 0..1."""
    top = np.iinfo(samples.dtype).max
    values = samples.astype(np.float32) / np.float32(top)
    if icc is None:
        return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))
    profile = read_profile(icc)
    if profile is None:
        return through_tables(values, icc, to_srgb=True)
    curves = [curve[:: 65535 // top].astype(np.float32) for curve in profile.curves]
    if profile.matrix is None:
        return np.repeat(encode(curves[0])[samples], 3, axis=2)
    matrix = (np.linalg.inv(SRGB_TO_D50) @ profile.matrix).T.astype(np.float32)
    for top_row in range(0, len(samples), STRIP_ROWS):  # in strips: a large photo needs no copies of itself
        strip = samples[top_row : top_row + STRIP_ROWS]
        linear = np.stack([curve[strip[..., c]] for c, curve in enumerate(curves)], axis=-1)
        values[top_row : top_row + STRIP_ROWS] = encode(linear @ matrix)
    return np.asarray(values)


def from_srgb(rgb: np.ndarray, icc: bytes | None, channels: int) -> np.ndarray:
    """sRGB floats [...,3] in 0..1 as floats [...,channels] in the space of `icc`."""
    rgb = np.asarray(np.clip(np.asarray(rgb, np.float64), 0, 1))
    if icc is None:
        return rgb if channels == 3 else np.asarray((rgb @ LUMA)[..., None])
    profile = read_profile(icc)
    if profile is None:
        return through_tables(rgb, icc, to_srgb=False, channels=channels)
    linear = decode(rgb)
    if profile.matrix is None:
        return np.asarray(np.interp(linear @ SRGB_TO_D50[1], profile.curves[0], GRID)[..., None])
    linear = np.clip(linear @ (np.linalg.inv(profile.matrix) @ SRGB_TO_D50).T, 0, 1)
    out = [np.interp(linear[..., c], curve, GRID) for c, curve in enumerate(profile.curves)]
    return np.asarray(np.stack(out, axis=-1))


def encode(linear: np.ndarray) -> np.ndarray:
    """Linear light to sRGB's curve, clipped to 0..1, as float32."""
    linear = np.clip(linear, 0, 1)
    curved = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(curved, np.float32)


def decode(rgb: np.ndarray) -> np.ndarray:
    """sRGB's curve to linear light."""
    return np.asarray(np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4))


def space(icc: bytes) -> str | None:
    """The colour space a profile is for ("RGB", "GRAY", "CMYK", ...), None where it is not a usable profile."""
    if len(icc) < 132 or icc[36:40] != b"acsp":
        return None
    try:
        ImageCms.ImageCmsProfile(io.BytesIO(icc))
    except (OSError, ImageCms.PyCMSError):
        return None
    return icc[16:20].decode("latin-1").strip()


def usable(icc: bytes, channels: int) -> bool:
    """Whether samples of so many channels can go through the profile to sRGB and back."""
    if space(icc) != {1: "GRAY", 3: "RGB"}[channels]:
        return False
    if read_profile(icc) is not None:
        return True
    try:
        for to in (True, False):
            through_tables(np.zeros((1, 1, channels if to else 3)), icc, to_srgb=to, channels=channels)
    except (OSError, ValueError, ImageCms.PyCMSError):
        return False
    return True


def read_profile(icc: bytes) -> Profile | None:
    """The curves and matrix of a profile; None where only its tables say what it does."""
    try:
        count = struct.unpack(">I", icc[128:132])[0]
        found = [struct.unpack(">4sII", icc[132 + 12 * i : 144 + 12 * i]) for i in range(min(count, 100))]
        tags = {name: icc[start : start + size] for name, start, size in found}
        if b"A2B0" in tags or icc[20:24] not in (b"XYZ ", b"Lab "):
            return None
        if icc[16:20] == b"GRAY" and icc[20:24] == b"XYZ ":
            return Profile((curve(tags[b"kTRC"]),), None)
        columns = [np.array(struct.unpack(">3i", tags[n][8:20])) / 65536 for n in (b"rXYZ", b"gXYZ", b"bXYZ")]
        matrix = np.stack(columns, axis=1)
        if icc[16:20] != b"RGB " or abs(np.linalg.det(matrix)) < 1e-6:
            return None
        return Profile((curve(tags[b"rTRC"]), curve(tags[b"gTRC"]), curve(tags[b"bTRC"])), matrix)
    except (KeyError, struct.error, ValueError):
        return None


def curve(tag: bytes) -> np.ndarray:
    """A tone curve ('curv' or 'para', ICC.1:2022 sections 10.6 and 10.18) sampled over GRID."""
    x = GRID
    if tag[:4] == b"para":
        kind = struct.unpack(">H", tag[8:10])[0]
        n = (1, 3, 4, 5, 7)[min(kind, 4)]
        g, a, b, c, d, e, f = (*(v / 65536 for v in struct.unpack(f">{n}i", tag[12 : 12 + 4 * n])), *[0.0] * 7)[:7]
        if kind == 0:
            y = x**g
        else:
            start = -b / a if kind in (1, 2) else d
            shift = {1: 0.0, 2: c, 3: 0.0}.get(kind, e)
            below = {1: 0.0 * x, 2: 0.0 * x + c, 3: c * x}.get(kind, c * x + f)
            y = np.where(x >= start, np.clip(a * x + b, 0, None) ** g + shift, below)
    else:
        count = struct.unpack(">I", tag[8:12])[0]
        if tag[:4] != b"curv":
            raise ValueError("unknown curve type")
        if count == 0:
            y = x
        elif count == 1:
            y = x ** (struct.unpack(">H", tag[12:14])[0] / 256)
        else:
            table = np.frombuffer(tag[12 : 12 + 2 * count], ">u2") / 65535
            y = np.interp(x, np.linspace(0, 1, len(table)), table)
    return np.maximum.accumulate(np.clip(y, 0, 1))  # rising, so that it can be inverted


def through_tables(values: np.ndarray, icc: bytes, *, to_srgb: bool, channels: int = 3) -> np.ndarray:
    """Floats in 0..1 through a table profile by ImageCms, on 8 bits."""
    own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
    mode = {1: "L", 3: "RGB"}[values.shape[-1] if to_srgb else channels]
    pair = (own, srgb, mode, "RGB") if to_srgb else (srgb, own, "RGB", mode)
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    convert = ImageCms.buildTransform(pair[0], pair[1], pair[2], pair[3], renderingIntent=intent)
    bytes_in = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    image = Image.fromarray(bytes_in[..., 0] if bytes_in.shape[-1] == 1 else bytes_in)
    out = ImageCms.applyTransform(image, convert)
    if out is None:
        raise ValueError("ImageCms returned no picture")
    array = np.asarray(out, np.float32) / np.float32(255)
    return array if array.ndim == 3 else array[..., None]
