"""The size of a picture as it will be seen, from its header: nothing is decoded, so a data set is soon measured."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from ldm.errors import Code, LdmError
from ldm.images.door import DAMAGE, DEFAULT_MAX_PIXELS, HEAD_BYTES, check_head, check_pixels
from ldm.images.exif import clean
from ldm.images.metadata import xmp_orientation


def picture_size(source: Path | bytes, what: str = "the picture") -> tuple[int, int]:
    """(width, height) after turning it upright. What is written behind the pixels of a PNG is not looked at."""
    try:
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
            kind = check_head(file.read(HEAD_BYTES), what, DEFAULT_MAX_PIXELS)
            file.seek(0)
            image = Image.open(file, formats=(kind,))
            width, height = image.size
            check_pixels(width, height, DEFAULT_MAX_PIXELS, what)
            turn = _turn(image, kind)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise LdmError(Code.REFUSED, f"{what} is too large", f"{error}.", "Shrink it with an editor first.") from error
    except DAMAGE as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LdmError(Code.FILE, f"{what} cannot be read", f"{reason}.", "Fetch or export it again.") from error
    return (height, width) if turn in (5, 6, 7, 8) else (width, height)


def _turn(image: Image.Image, kind: str) -> int:
    """The EXIF orientation 1..8 that the size does not know of yet, as `open_image` finds it."""
    if kind == "TIFF":  # Pillow's size is the upright one
        return 1
    turn = clean(image.info.get("exif")).orientation
    packet = image.info.get("xmp", image.info.get("XML:com.adobe.xmp", b""))
    words = packet.decode("utf-8", "replace") if isinstance(packet, bytes) else str(packet)
    return turn if turn != 1 else xmp_orientation(words)
