"""A decoded Pillow picture in any of its modes as plain samples: grey or RGB, 8 or 16 bits, alpha apart."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms

from ldm.images.colour import space, usable

SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Samples:
    """[H,W,1|3] and [H,W], uint8 or uint16, the profile that still fits them, and what was changed."""

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes | None = None
    notes: tuple[str, ...] = ()


def read_mode(image: Image.Image, icc: bytes | None) -> Samples:
    """Samples of a loaded picture, with a note for each conversion that is not a mere copy."""
    mode = image.mode
    if mode in SIXTEEN:
        return fitting(np.asarray(image).astype(np.uint16), None, icc, ())
    if mode in ("I", "F"):
        return wide(np.asarray(image), mode, icc)
    if mode in ("CMYK", "LAB"):
        return separated(image, icc)
    key = image.info.get("transparency")
    if mode in ("L", "RGB") and key is not None:
        pixels = np.asarray(image)
        clear = (pixels == np.asarray(key)).all(axis=2) if mode == "RGB" else pixels == key
        alpha = np.where(clear, 0, 255).astype(np.uint8)
        return fitting(pixels, alpha, icc, ("the transparent colour became alpha",))
    if mode in ("L", "RGB"):
        return fitting(np.asarray(image), None, icc, ())
    if mode in ("LA", "La", "RGBA", "RGBa", "PA", "P"):
        return with_alpha(image, icc)
    if mode == "1":
        return fitting(np.asarray(image.convert("L")), None, icc, ("1-bit black and white became 8-bit grey",))
    return fitting(np.asarray(image.convert("RGB")), None, icc, (f"{mode} became RGB",))


def with_alpha(image: Image.Image, icc: bytes | None) -> Samples:
    """Modes that carry alpha, or a palette that may."""
    mode = image.mode
    notes: tuple[str, ...] = ()
    if mode in ("P", "PA"):
        clear = mode == "PA" or "transparency" in image.info
        image = image.convert("RGBA" if clear else "RGB")
        note = f"the palette became {'RGB with alpha' if clear else 'RGB'}"
        array = np.asarray(image)
        return fitting(array[..., :3], array[..., 3] if clear else None, icc, (note,))
    if mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
        notes = ("premultiplied alpha became plain alpha",)
    array = np.asarray(image)
    return fitting(array[..., :-1], array[..., -1], icc, notes)


def wide(values: np.ndarray, mode: str, icc: bytes | None) -> Samples:
    """32-bit integers and floats as 16-bit grey: as they are where they fit, else stretched over their range."""
    finite = np.isfinite(values)
    notes = [] if finite.all() else [f"{int((~finite).sum())} samples that are not numbers became 0"]
    values = np.where(finite, values, 0).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if mode == "I" and low >= 0 and high <= 65535:
        scaled, how = values, "32-bit integers became 16-bit grey with the same values"
    elif mode == "F" and low >= 0 and high <= 1:
        scaled, how = values * 65535, "float samples 0..1 became 16-bit grey"
    elif mode == "F" and low >= 0 and high <= 255:
        scaled, how = values * 257, "float samples 0..255 became 16-bit grey"
    else:
        scaled = (values - low) / max(high - low, 1e-300) * 65535
        how = f"samples from {low:g} to {high:g} were stretched to 16-bit grey"
    return fitting(np.rint(scaled).astype(np.uint16), None, icc, (how, *notes))


def separated(image: Image.Image, icc: bytes | None) -> Samples:
    """CMYK and Lab as sRGB: through the profile where there is one, else by Pillow's plain formula."""
    mode, srgb = image.mode, ImageCms.createProfile("sRGB")
    own: ImageCms.ImageCmsProfile | None = None
    if mode == "LAB":
        own = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    elif icc and space(icc) == "CMYK":
        own = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    try:
        rgb = own and ImageCms.profileToProfile(image, own, srgb, ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB")
    except ImageCms.PyCMSError:
        rgb = None
    how = (
        "sRGB through its profile"
        if rgb and mode == "CMYK"
        else "RGB"
        if rgb
        else "RGB by plain formula (no usable profile)"
    )
    return Samples(np.array(rgb or image.convert("RGB")), None, None, (f"{mode} became {how}",))


def fitting(pixels: np.ndarray, alpha: np.ndarray | None, icc: bytes | None, notes: tuple[str, ...]) -> Samples:
    """Samples as arrays of their own, with the profile only where it is for that number of channels."""
    pixels = np.ascontiguousarray(pixels[..., None] if pixels.ndim == 2 else pixels)
    alpha = None if alpha is None else np.ascontiguousarray(alpha)
    if icc is not None and not usable(icc, pixels.shape[2]):
        note = f"the colour profile ({space(icc) or 'damaged'}) cannot be used: sRGB is assumed"
        icc, notes = None, (*notes, note)
    return Samples(np.array(pixels), None if alpha is None else np.array(alpha), icc, notes)
