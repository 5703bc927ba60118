"""`save_image`: whole or not at all, never over another file, and with everything that belongs to the picture."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image

from ldm.errors import Code, LdmError
from ldm.images import png as pngs
from ldm.images.colour import to_srgb
from ldm.images.exif import with_user_comment
from ldm.images.metadata import COMMENT_KEY, xmp_packet
from ldm.images.picture import KEPT_TEXT, Picture, unit

Format = Literal["PNG", "JPEG", "WEBP"]
SUFFIXES: Mapping[str, Format] = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
JPEG_SEGMENT = 65_533 - 64  # bytes that one EXIF or XMP segment may hold, with room for its own name
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WEBP_SIDE, JPEG_SIDE = 16_383, 65_500


def save_image(
    picture: Picture,
    path: Path | str,
    *,
    text: Mapping[str, str] | None = None,
    format: str | None = None,
    quality: int = 95,
    lossless: bool = False,
    allow_lossy: bool = False,
) -> Path:
    """Write `picture` to a new file and return its path.

    `format` is png, jpeg or webp (None: by the suffix). `lossless` is for WebP. A picture that is `exact` outside its
    mask is written losslessly, or refused, unless `allow_lossy`.
    """
    path = Path(path)
    kind = picture_format(path, format)
    lossless = kind == "WEBP" and (lossless or (picture.exact and not allow_lossy))
    check_fits(picture, path, kind, allow_lossy)
    whole = whole_text(picture, text)
    with new_file(path) as file:
        if kind == "PNG":
            pngs.write(file, picture.pixels, picture.alpha, icc=picture.icc, exif=picture.exif, text=whole)
        else:
            write_with_pillow(file, picture, kind, whole, quality, lossless, path.name)
    return path


def as_png(picture: Picture, text: Mapping[str, str] | None = None) -> bytes:
    """The file that `save_image` would write as PNG, for those who send it."""
    file = io.BytesIO()
    whole = whole_text(picture, text)
    pngs.write(file, picture.pixels, picture.alpha, icc=picture.icc, exif=picture.exif, text=whole)
    return file.getvalue()


def whole_text(picture: Picture, text: Mapping[str, str] | None) -> dict[str, str]:
    """What goes into the file: of the picture's own texts those that are kept."""
    return {k: v for k, v in picture.text.items() if k in KEPT_TEXT} | dict(text or {})


def picture_format(path: Path, format: str | None = None) -> Format:
    """The format to write: as named, else as the suffix says."""
    wanted = f".{format.lower()}" if format else path.suffix.lower()
    if wanted not in SUFFIXES:
        raise LdmError(
            Code.USAGE,
            f"picture format {wanted.lstrip('.') or '(none)'!r} of {path.name!r} is not written",
            "Pictures are written as png, jpeg or webp.",
            "Use a name that ends in .png, .jpg or .webp.",
        )
    return SUFFIXES[wanted]


def check_fits(picture: Picture, path: Path, kind: Format, allow_lossy: bool) -> None:
    """Refuse what the format cannot hold, before anything is written."""
    lossy = {
        "PNG": "",
        "JPEG": "JPEG changes samples everywhere",
        "WEBP": "WebP has only 8 bits" if picture.pixels.dtype == np.uint16 else "",
    }[kind]
    if (
        picture.exact
        and not allow_lossy
        and kind == "WEBP"
        and not lossy
        and picture.pixels.shape[2] == 1
        and picture.icc
    ):
        lossy = "WebP has no grey pictures with a grey profile"
    if picture.exact and lossy and not allow_lossy:
        raise LdmError(
            Code.USAGE,
            f"{path.name!r} would change the picture outside its mask",
            f"{lossy}, but nothing outside a mask may change.",
            "Save as PNG, or allow a lossy format explicitly.",
        )
    side = {"PNG": 2**31 - 1, "JPEG": JPEG_SIDE, "WEBP": WEBP_SIDE}[kind]
    if max(picture.size) > side:
        why = f"{kind} holds at most {side} pixels a side; the picture is {picture.width}x{picture.height}."
        raise LdmError(Code.USAGE, f"{path.name!r} cannot hold the picture", why, "Save as PNG.")


def write_with_pillow(
    file: BinaryIO, picture: Picture, kind: Format, text: Mapping[str, str], quality: int, lossless: bool, name: str
) -> None:
    """JPEG and WebP. JPEG has no alpha: white comes behind the picture. Both have 8 bits."""
    exif = with_user_comment(picture.exif, text[COMMENT_KEY]) if text.get(COMMENT_KEY) else picture.exif
    xmp = xmp_packet(text)
    if kind == "JPEG" and max(len(exif or b""), len(xmp or b"")) > JPEG_SEGMENT:
        why = f"A JPEG holds at most {JPEG_SEGMENT} bytes of each kind of text."
        raise LdmError(Code.USAGE, f"the text is too long for {name!r}", why, "Save as PNG or WebP.")
    image, icc = flat_image(picture, kind)
    options = {"exif": b"Exif\0\0" + exif if exif else b"", "icc_profile": icc, "xmp": xmp or b"", "quality": quality}
    if kind == "WEBP":
        options |= {"lossless": lossless, "exact": True, "method": 4}
    image.save(file, kind, **{k: v for k, v in options.items() if v is not None and v != b""})


def flat_image(picture: Picture, kind: Format) -> tuple[Image.Image, bytes | None]:
    """An 8-bit Pillow picture that the format can hold, and the profile that fits it."""
    icc = picture.icc
    if kind == "JPEG" and picture.alpha is not None:
        a = unit(picture.alpha)[..., None]
        pixels = np.rint((unit(picture.pixels) * a + (1 - a)) * 255).astype(np.uint8)
    else:
        pixels = eight_bits(picture.pixels)
    if kind == "WEBP" and pixels.shape[2] == 1:
        pixels = np.rint(to_srgb(picture.pixels, icc) * 255).astype(np.uint8) if icc else np.repeat(pixels, 3, axis=2)
        icc = None
    if kind == "WEBP" and picture.alpha is not None:
        pixels = np.concatenate([pixels, eight_bits(picture.alpha)[..., None]], axis=2)
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)), icc


def eight_bits(array: np.ndarray) -> np.ndarray:
    """16-bit samples rounded to 8; 8-bit ones as they are."""
    return array if array.dtype == np.uint8 else ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name only when it is complete and on disk, and never replaces another one."""
    temp = path.with_name(f".ldm-{secrets.token_hex(8)}.tmp")
    make_folder(path.parent)
    try:
        if os.path.lexists(path):  # asked early, so that nothing is encoded in vain
            raise FileExistsError
        with temp.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        publish(temp, path)
    except FileExistsError as error:
        why = "There is a file of that name, and pictures are never overwritten."
        raise LdmError(Code.FILE, f"{path.name!r} exists already", why, "Choose another name or folder.") from error
    except (OSError, ValueError) as error:
        full = getattr(error, "errno", None) in FULL
        reason = getattr(error, "strerror", None) or str(error)
        raise LdmError(
            Code.RESOURCE if full else Code.FILE,
            f"{path.name!r} cannot be written",
            f"{reason}; nothing was left behind.",
            way_out(getattr(error, "errno", None)),
        ) from error
    finally:
        with contextlib.suppress(OSError, ValueError):
            temp.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """The folder with its parents; an error names the part of it that is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        with contextlib.suppress(OSError, ValueError):
            files = [part for part in (folder, *folder.parents) if part.exists() and not part.is_dir()]
            if files:
                what, why = f"{str(files[0])!r} is a file, not a folder", "Pictures are written into folders."
                raise LdmError(Code.FILE, what, why, "Choose another folder.") from error
        why = f"{getattr(error, 'strerror', None) or error}; nothing was left behind."
        code = Code.RESOURCE if number in FULL else Code.FILE
        raise LdmError(code, f"the folder {folder.name[:80]!r} cannot be made", why, way_out(number)) from error


def way_out(number: int | None) -> str:
    """What mends an error of the system, by its number."""
    if number in FULL:
        return "Free some space."
    if number == errno.ENAMETOOLONG:
        return "Choose a shorter name."
    if number == errno.EROFS:
        return "Choose a folder on a disk that can be written."
    return "Check the folder and the right to write there."


def publish(temp: Path, path: Path) -> None:
    """Give the finished file its name. A link fails where the name is taken; a rename would overwrite."""
    try:
        os.link(temp, path)
    except OSError:  # taken, or a file system without links: reserve the name (fails if taken), then rename over it
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        temp.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """The names in a folder on disk, where the system can do that."""
    with contextlib.suppress(OSError):
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def free_path(folder: Path | str, stem: str, suffix: str) -> Path:
    """`folder/stem.suffix`, or the first of `stem-2`, `stem-3`, ... that is not taken."""
    folder, suffix = Path(folder), suffix if suffix.startswith(".") else f".{suffix}"
    names = (f"{stem}{suffix}" if i == 1 else f"{stem}-{i}{suffix}" for i in itertools.count(1))
    return next(folder / name for name in names if not os.path.lexists(folder / name))
