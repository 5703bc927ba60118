"""PNG, as far as Pillow does not go: bounded text chunks, 16-bit colour both ways, and text written as iTXt.

Reading walks the chunks once, checks every CRC, and hands decoders a copy without ancillary chunks, so that no text or
profile of a stranger is ever expanded by a library that knows no bound.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from ldm.errors import Code, LdmError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT = 8 << 20  # bytes of one expanded text or profile; the largest ComfyUI graphs seen are below 2 MB
MAX_ALL_TEXT = 16 << 20
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # x, y, dx, dy
LIBPNG_SIDE = 1_000_000  # libpng's own limit
COMFY = ("prompt", "workflow")
STRIP_ROWS = 64  # rows that are filtered at once: keeps the writer's own memory small


@dataclass
class Png:
    """What the chunks of a PNG say."""

    width: int = 0
    height: int = 0
    depth: int = 0
    colour: int = 0  # 0 grey, 2 RGB, 3 palette, 4 grey + alpha, 6 RGBA
    methods: list[int] = field(default_factory=list)  # compression, filter, interlace
    text: dict[str, str] = field(default_factory=dict)
    icc: bytes | None = None
    exif: bytes | None = None
    transparency: bytes | None = None
    animated: bool = False
    parts: list[bytes] = field(default_factory=list)  # IHDR, PLTE, tRNS, IDAT..., as they are in the file


def chunks(data: bytes, what: str) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(name, body, whole) of each chunk up to IEND; truncation and wrong checksums are errors."""
    at = len(SIGNATURE)
    while True:
        if at + 12 > len(data):
            raise broken(what, f"it ends after {len(data)} bytes, before its last chunk")
        size = struct.unpack_from(">I", data, at)[0]
        name, end = data[at + 4 : at + 8], at + 12 + size
        if end > len(data):
            raise broken(what, f"chunk {printable(name)} claims {size} bytes, but the file ends after {len(data)}")
        if zlib.crc32(data[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise broken(what, f"the checksum of chunk {printable(name)} at byte {at} is wrong")
        yield name, data[at + 8 : end - 4], data[at:end]
        if name == b"IEND":
            return
        at = end


def printable(name: bytes) -> str:
    """A chunk's name: four letters, or the bytes of a damaged one, which a terminal might obey."""
    return name.decode("ascii") if name.isalpha() else name.hex(" ")


def parse(data: bytes, what: str) -> Png:
    """Walk a PNG's chunks; `what` names the file in errors."""
    png, total = Png(), 0
    for name, body, whole in chunks(data, what):
        if not png.parts and (name != b"IHDR" or len(body) != 13):
            raise broken(what, "it does not begin with a header")
        if not png.parts:
            png.width, png.height, png.depth, png.colour, *png.methods = struct.unpack(">IIBBBBB", body)
        if name in (b"IHDR", b"PLTE", b"tRNS", b"IDAT"):
            png.parts.append(whole)
        if name == b"tRNS":
            png.transparency = body
        elif name == b"iCCP":
            png.icc = inflate(body.partition(b"\0")[2][1:], what) or b""  # b"": there, but damaged
        elif name == b"eXIf":
            png.exif = body
        elif name == b"acTL":
            png.animated = True
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            key, value = text_chunk(name, body, what)
            total += len(value)
            if total > MAX_ALL_TEXT:
                raise bomb(what, f"its text expands beyond {MAX_ALL_TEXT >> 20} MB")
            png.text.setdefault(key, value)
    return png


def text_chunk(name: bytes, body: bytes, what: str) -> tuple[str, str]:
    """Keyword and text of a tEXt, zTXt or iTXt chunk (PNG third edition, 11.3.3)."""
    key, _, rest = body.partition(b"\0")
    keyword = key.decode("latin-1")
    if name == b"tEXt":
        return keyword, rest.decode("latin-1")
    if name == b"zTXt":
        return keyword, (inflate(rest[1:], what) or b"").decode("latin-1")
    packed, rest = rest[:1] == b"\1", rest[2:]
    _, _, rest = rest.partition(b"\0")  # language
    _, _, rest = rest.partition(b"\0")  # translated keyword
    return keyword, ((inflate(rest, what) or b"") if packed else rest).decode("utf-8", "replace")


def inflate(packed: bytes, what: str) -> bytes | None:
    """Expand zlib data up to `MAX_TEXT`; None where it is damaged."""
    expander = zlib.decompressobj()
    try:
        out = expander.decompress(packed, MAX_TEXT + 1)
    except zlib.error:
        return None
    if len(out) > MAX_TEXT:
        raise bomb(what, f"a text or profile of {len(packed)} bytes expands beyond {MAX_TEXT >> 20} MB")
    return out


def legacy_exif(text: Mapping[str, str]) -> bytes | None:
    """EXIF that ImageMagick wrote before PNG had a chunk for it: hex digits after three lines."""
    lines = text.get("Raw profile type exif", "").split("\n")[3:]
    try:
        return bytes.fromhex("".join(lines)) or None
    except ValueError:
        return None


def read_16_bit(png: Png, what: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The samples uint16 [H,W,1|3] and alpha of a 16-bit PNG, by torchvision: Pillow keeps 8 bits of its colour."""
    import torch
    from torchvision.io import ImageReadMode, decode_image

    buffer = torch.frombuffer(verified(png, what), dtype=torch.uint8)
    planes = decode_image(buffer, ImageReadMode.UNCHANGED).numpy()
    if planes.dtype != np.uint16 or planes.shape[1:] != (png.height, png.width):
        raise broken(what, f"16 bits decode to {planes.dtype} {planes.shape}")
    colours = 1 if png.colour in (0, 4) else 3
    pixels = np.ascontiguousarray(planes[:colours].transpose(1, 2, 0))
    if len(planes) > colours:
        return pixels, np.ascontiguousarray(planes[colours])
    if png.transparency is not None and len(png.transparency) >= 2 * colours:
        key = np.frombuffer(png.transparency[: 2 * colours], ">u2").astype(np.uint16)
        return pixels, np.where((pixels == key).all(axis=2), 0, 65535).astype(np.uint16)
    return pixels, None


def verified(png: Png, what: str, *ancillary: bytes) -> bytearray:
    """The file again, with nothing but its pixels (and the chunks named), which are known to be whole.

    torchvision 0.29 dies of a segmentation fault when libpng reports an error inside the pixel data, and Pillow takes
    interlaced data that ends early for whole. A stream of the right length with legal filter bytes avoids both.
    """
    raw = expand(png, what)
    at, data = 0, np.frombuffer(raw, np.uint8)
    for rows, length in passes(png):
        if (data[at : at + rows * length : length] > 4).any():
            raise broken(what, "its pixel data has an illegal row filter")
        at += rows * length
    out = bytearray(SIGNATURE + png.parts[0])
    for part in png.parts[1:]:
        if part[4:8] in ancillary:
            out += part
    for piece in (chunk(b"IDAT", zlib.compress(raw, 0)), chunk(b"IEND", b"")):
        out += piece
    return out


def expand(png: Png, what: str) -> bytes:
    """The filtered scanlines: exactly as many bytes as the header promises."""
    if png.depth not in DEPTHS.get(png.colour, ()) or png.methods not in ([0, 0, 0], [0, 0, 1]):
        raise broken(what, f"{png.depth} bits of colour type {png.colour} with methods {png.methods} are not PNG")
    if max(png.width, png.height) > LIBPNG_SIDE:
        raise broken(what, f"{png.width}x{png.height} pixels are more than {LIBPNG_SIDE} on a side")
    whole = sum(rows * length for rows, length in passes(png))
    try:
        raw = zlib.decompressobj().decompress(b"".join(p[8:-4] for p in png.parts if p[4:8] == b"IDAT"), whole)
    except zlib.error as error:
        raise broken(what, f"its pixel data cannot be expanded ({error})") from error
    if len(raw) < whole:
        raise broken(what, f"it holds {len(raw)} bytes of pixels, not {whole}")
    return raw


def passes(png: Png) -> list[tuple[int, int]]:
    """(rows, bytes of a row with its filter byte) of each pass; one pass where the picture is not interlaced."""
    bits = png.depth * CHANNELS[png.colour]
    steps = ADAM7 if png.methods[2] else ((0, 0, 1, 1),)
    sizes = [(-(-(png.height - y) // dy), -(-(png.width - x) // dx)) for x, y, dx, dy in steps]
    return [(rows, 1 + (bits * columns + 7) // 8) for rows, columns in sizes if rows > 0 and columns > 0]


def write(
    file: BinaryIO,
    pixels: np.ndarray,
    alpha: np.ndarray | None,
    *,
    icc: bytes | None = None,
    exif: bytes | None = None,
    text: Mapping[str, str] | None = None,
    level: int = 6,
) -> None:
    """Write samples [H,W,1|3] and alpha, uint8 or uint16, losslessly; text goes before the pixels."""
    height, width, colours = pixels.shape
    bits = pixels.dtype.itemsize * 8
    colour = {1: 0, 3: 2}[colours] + (4 if alpha is not None else 0)
    file.write(SIGNATURE)
    put(file, b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    if icc:
        put(file, b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))
    if exif:
        put(file, b"eXIf", exif)
    for key, value in (text or {}).items():
        put(file, *text_piece(key, value))
    packer = zlib.compressobj(level)
    for filtered in filter_rows(pixels, alpha):
        if body := packer.compress(filtered):
            put(file, b"IDAT", body)
    put(file, b"IDAT", packer.flush())
    put(file, b"IEND", b"")


def text_piece(key: str, value: str) -> tuple[bytes, bytes]:
    """Name and body of a text chunk: iTXt (UTF-8), but ComfyUI's ASCII graphs stay tEXt, which is all that it reads."""
    value = value.replace("\0", "\ufffd")
    if key in COMFY and value.isascii():
        return b"tEXt", keyword(key) + b"\0" + value.encode("ascii")
    return b"iTXt", keyword(key) + b"\0\0\0\0\0" + value.encode("utf-8", "replace")


def put(file: BinaryIO, name: bytes, body: bytes) -> None:
    file.write(chunk(name, body))


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(name)))


def keyword(key: str) -> bytes:
    """A legal PNG keyword: 1 to 79 Latin-1 bytes without control characters or spaces at the ends."""
    legal = all(32 <= ord(c) < 127 or 161 <= ord(c) < 256 for c in key) and key == key.strip()
    if not legal or not 1 <= len(key) <= 79:
        raise LdmError(
            Code.USAGE,
            f"text keyword {key!r} cannot be written to a PNG",
            "A keyword is 1 to 79 printable Latin-1 characters without spaces at its ends.",
            "Choose a shorter keyword of plain letters.",
        )
    return key.encode("latin-1")


def filter_rows(pixels: np.ndarray, alpha: np.ndarray | None) -> Iterator[bytes]:
    """Scanlines with the filter byte, a strip at a time; each row takes the filter of least absolute sum."""
    step = pixels.dtype.itemsize * (pixels.shape[2] + (alpha is not None))
    above = np.zeros((1, step * pixels.shape[1]), np.uint8)
    for top in range(0, len(pixels), STRIP_ROWS):
        strip = pixels[top : top + STRIP_ROWS]
        if alpha is not None:
            strip = np.concatenate([strip, alpha[top : top + STRIP_ROWS, :, None]], axis=2)
        big_endian = np.ascontiguousarray(strip.astype(strip.dtype.newbyteorder(">")))
        rows = big_endian.view(np.uint8).reshape(len(strip), -1)
        yield best_filter(rows, np.concatenate([above, rows[:-1]]), step)
        above = rows[-1:]


def best_filter(rows: np.ndarray, above: np.ndarray, step: int) -> bytes:
    """None, Sub, Up, Average and Paeth (PNG 9.2) of each row; the one that looks easiest to compress is kept."""
    left, corner = np.zeros_like(rows), np.zeros_like(rows)
    left[:, step:], corner[:, step:] = rows[:, :-step], above[:, :-step]
    a, b, c = left.astype(np.int16), above.astype(np.int16), corner.astype(np.int16)
    to_a, to_b, to_c = abs(b - c), abs(a - c), abs(a + b - 2 * c)
    paeth = np.where((to_a <= to_b) & (to_a <= to_c), left, np.where(to_b <= to_c, above, corner))
    average = ((a + b) >> 1).astype(np.uint8)
    options = np.stack([rows, rows - left, rows - above, rows - average, rows - paeth])
    cost = np.abs(options.view(np.int8).astype(np.int16)).sum(axis=2, dtype=np.int64)
    chosen = cost.argmin(axis=0)
    out = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
    out[:, 0] = chosen
    out[:, 1:] = options[chosen, np.arange(len(rows))]
    return out.tobytes()


def broken(what: str, why: str) -> LdmError:
    return LdmError(Code.FILE, f"{what} is damaged", f"{why[0].upper()}{why[1:]}.", "Fetch or export the file again.")


def bomb(what: str, why: str) -> LdmError:
    return LdmError(
        Code.REFUSED,
        f"{what} is refused as a decompression bomb",
        f"{why[0].upper()}{why[1:]}.",
        "Remove the text from the file, or save the pixels again with an editor.",
    )
