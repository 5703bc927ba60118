"""`open_image`: the only place that decodes a picture. Content decides the format; size comes before decoding."""

from __future__ import annotations

import hashlib
import io
import re
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.errors import Code, LdmError
from ldm.images import png as pngs
from ldm.images.exif import ORIENTATION, Cleaned, clean, user_comment
from ldm.images.metadata import text_from_xmp, xmp_orientation
from ldm.images.modes import Samples, fitting, read_mode
from ldm.images.picture import Picture, hash_samples
from ldm.images.sniff import header_size, sniff, stranger

DEFAULT_MAX_PIXELS = 40_000_000
MAX_FILE_BYTES = 512 << 20  # 40 Mpx of 16-bit RGBA, uncompressed, is 305 MB
HEAD_BYTES = 4096
# What Pillow's decoders raise on damaged files (UnidentifiedImageError is an OSError).
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error, OverflowError)
TIFF_TAGS_KEPT = (
    0x010E,
    0x010F,
    0x0110,
    0x0131,
    0x0132,
    0x013B,
    0x8298,
)  # description, make, model, ...


def open_image(
    source: Path | str | bytes | Image.Image | Picture,
    *,
    keep_location: bool = False,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Picture:
    """A file, its bytes, or a picture in memory as a `Picture`; every refusal is an `LdmError`."""
    if isinstance(source, Picture):
        check_pixels(source.width, source.height, max_pixels, source.name or "the picture")
        return source
    if isinstance(source, Image.Image):
        return from_pillow(source, keep_location, max_pixels)
    if isinstance(source, bytes):
        return from_bytes(source, "the picture", None, keep_location, max_pixels)
    path = Path(source)
    return from_bytes(read_file(path, max_pixels), f"picture {path.name!r}", path.name, keep_location, max_pixels)


def read_file(path: Path, max_pixels: int) -> bytes:
    """The bytes of a picture file, after its head said that it is one of a bearable size."""
    what = f"picture {path.name!r}"
    try:
        if not path.is_file():
            why = "It is a folder." if path.is_dir() else "There is no such file."
            raise LdmError(Code.FILE, f"{what} cannot be opened", why, "Check the path for a spelling mistake.")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            check_head(head, what, max_pixels)
            if path.stat().st_size > MAX_FILE_BYTES:
                why = f"It has {path.stat().st_size >> 20} MB; at most {MAX_FILE_BYTES >> 20} MB are read."
                raise LdmError(Code.REFUSED, f"{what} is too large", why, "Save it smaller or compressed.")
            return head + file.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LdmError(
            Code.FILE, f"{what} cannot be read", f"{reason}.", "Check the file and the right to read it."
        ) from error


def check_head(head: bytes, what: str, max_pixels: int) -> str:
    """The format by content, after refusing strangers and sizes that the first bytes already tell."""
    kind = sniff(head)
    if kind is None:
        why, fix = stranger(head)
        raise LdmError(Code.FILE, f"{what} is not a picture that can be read", why, fix)
    if size := header_size(kind, head):
        check_pixels(*size, max_pixels, what)
    return kind


def check_pixels(width: int, height: int, max_pixels: int, what: str) -> None:
    if width < 1 or height < 1:
        why = f"Its header says {width}x{height} pixels."
        raise LdmError(Code.FILE, f"{what} is empty", why, "Fetch or export the file again.")
    if width * height > max_pixels:
        raise LdmError(
            Code.REFUSED,
            f"{what} is too large: {width}x{height}",
            f"It has {width * height / 1e6:.1f} million pixels; at most {max_pixels / 1e6:.1f} million are decoded.",
            "Shrink the picture with an editor first.",
        )


def from_bytes(data: bytes, what: str, name: str | None, keep_location: bool, max_pixels: int) -> Picture:
    """Decode bytes whose format their content decides."""
    kind = check_head(data[:HEAD_BYTES], what, max_pixels)
    try:
        if kind == "PNG":
            found = decode_png(data, what, keep_location)
        else:
            found = decode_other(data, kind, what, keep_location, max_pixels)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise LdmError(Code.REFUSED, f"{what} is too large", f"{error}.", "Shrink it with an editor first.") from error
    except DAMAGE as error:
        why = f"The {kind} decoder says: {error}."
        raise LdmError(Code.FILE, f"{what} is damaged", why, "Fetch or export the file again.") from error
    return replace(found, name=name, sha256=hashlib.sha256(data).hexdigest())


def decode_png(data: bytes, what: str, keep_location: bool) -> Picture:
    """PNG by our own chunk walk; 16 bits by torchvision, the rest by Pillow. `check_head` has seen its size."""
    png = pngs.parse(data, what)
    text = {k: v for k, v in png.text.items() if not k.startswith("Raw profile type") and k != "XML:com.adobe.xmp"}
    xmp = png.text.get("XML:com.adobe.xmp", "")
    tags = clean(png.exif or pngs.legacy_exif(png.text), keep_location=keep_location)
    notes = ("only the first frame of the animation is used",) if png.animated else ()
    if png.depth == 16:
        found = fitting(*pngs.read_16_bit(png, what), png.icc, ())
    else:
        image = Image.open(io.BytesIO(pngs.verified(png, what, b"PLTE", b"tRNS")), formats=("PNG",))
        image.load()
        found = read_mode(image, png.icc)
    return upright(found, tags, xmp, text, notes)


def decode_other(data: bytes, kind: str, what: str, keep_location: bool, max_pixels: int) -> Picture:
    """JPEG, WebP, TIFF, BMP and GIF by Pillow, restricted to the format that was recognised."""
    if kind == "JPEG" and not jpeg_ends(data):
        raise OSError("the end marker is missing: the file was cut off")
    image = Image.open(io.BytesIO(data), formats=(kind,))
    check_pixels(image.width, image.height, max_pixels, what)
    notes = first_frame(image, kind)
    icc, xmp = image.info.get("icc_profile"), image.info.get("xmp", b"")
    exif = image.info.get("exif")
    if kind == "TIFF":  # Pillow turns these upright while loading
        exif, turn = tiff_exif(image), image.getexif().get(ORIENTATION, 1)
        notes += () if turn == 1 else (f"turned upright (EXIF orientation {turn})",)
    if kind == "TIFF" and image.mode in ("RGB", "RGBA", "RGBX", "CMYK") and 16 in image.tag_v2.get(258, ()):  # type: ignore[attr-defined]
        notes += ("16-bit colour TIFF was read with 8 bits (use PNG to keep 16)",)
    image.load()
    check_pixels(image.width, image.height, max_pixels, what)
    tags = clean(exif, keep_location=keep_location)
    text = {"parameters": comment} if (comment := user_comment(exif)) else {}
    packet = xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else str(xmp)
    return upright(read_mode(image, icc), tags, "" if kind == "TIFF" else packet, text | text_from_xmp(packet), notes)


def upright(found: Samples, tags: Cleaned, xmp: str, text: dict[str, str], notes: tuple[str, ...]) -> Picture:
    """Apply the orientation to the samples, and put everything together."""
    turn = tags.orientation if tags.orientation != 1 else xmp_orientation(xmp)
    notes = (*notes, *found.notes, *tags.notes)
    if turn != 1:
        notes = (*notes, f"turned upright (EXIF orientation {turn})")
    if xmp and not text_from_xmp(xmp):
        notes = (*notes, "the XMP packet was left out")
    alpha = None if found.alpha is None else turned(found.alpha, turn)
    return Picture(turned(found.pixels, turn), alpha, found.icc, tags.exif, text, notes)


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """An array [H,W,...] as EXIF orientation 1..8 says that it is to be seen."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return np.ascontiguousarray(array)


def first_frame(image: Image.Image, kind: str) -> tuple[str, ...]:
    """A note where the file holds more than one picture."""
    if kind in ("GIF", "WEBP", "TIFF") and getattr(image, "is_animated", False):
        return ("only the first frame is used",)
    return ()


def jpeg_ends(data: bytes) -> bool:
    """Whether an end marker follows the first scan: libjpeg invents a missing one, and calls a cut file whole."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xDA:
            return data.find(b"\xff\xd9", at) >= 0
        if marker == 0xFF:
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return False


def tiff_exif(image: Image.Image) -> bytes | None:
    """What of a TIFF's own directory describes the picture (not how its strips are stored), as EXIF."""
    tags, kept = image.getexif(), Image.Exif()
    for tag in TIFF_TAGS_KEPT:
        if tag in tags:
            kept[tag] = tags[tag]
    for folder in (0x8769, 0x8825):
        if inner := tags.get_ifd(folder):
            kept.get_ifd(folder).update(inner)
            kept[folder] = inner
    return kept.tobytes() if len(kept) else None


def from_pillow(image: Image.Image, keep_location: bool, max_pixels: int) -> Picture:
    """A picture that somebody opened or made with Pillow."""
    what = "the PIL image"
    check_pixels(image.width, image.height, max_pixels, what)
    deep = any(isinstance(args := tile[3], str) and ";16" in args for tile in getattr(image, "tile", ()))
    notes = first_frame(image, image.format or "")
    try:
        exif = tiff_exif(image) if image.format == "TIFF" else image.info.get("exif") or image.getexif().tobytes()
        image.load()
    except DAMAGE as error:
        why = f"Pillow says: {error}."
        raise LdmError(Code.FILE, f"{what} cannot be decoded", why, "Fetch or export the file again.") from error
    if deep and image.mode in ("RGB", "RGBA", "LA"):
        notes += ("Pillow had reduced 16-bit colour to 8 bits (give the path to keep 16)",)
    text = {str(k): v for k, v in image.info.items() if isinstance(v, str) and re.fullmatch(r"[\w .-]{1,79}", str(k))}
    if comment := user_comment(exif):
        text.setdefault("parameters", comment)
    xmp = image.info.get("xmp", b"")
    packet = xmp.decode("utf-8", "replace") if isinstance(xmp, bytes) else ""
    tags = clean(exif if len(exif or b"") > 14 else None, keep_location=keep_location)
    if image.format == "TIFF":
        tags, packet = replace(tags, orientation=1), ""
    found = read_mode(image, image.info.get("icc_profile"))
    picture = upright(found, tags, packet, text | text_from_xmp(packet), notes)
    return replace(picture, sha256=hash_samples(picture.pixels, picture.alpha))
