"""Makers of the files that the picture tests read: colour profiles, EXIF, PNG chunks."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
ADOBE_TO_D50 = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))


def profile(kind: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC version 2 profile: a header of 128 bytes, a table of tags, the tags."""
    at, table, body = 132 + 12 * len(tags), b"", b""
    for name, tag in tags.items():
        tag += bytes(-len(tag) % 4)
        table += struct.pack(">4sII", name, at + len(body), len(tag))
        body += tag
    rest = struct.pack(">I", len(tags)) + table + body
    head = struct.pack(">I4sI4s4s4s", 128 + len(rest), bytes(4), 0x02400000, kind, space, pcs)
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + fixed(*D50)
    return head.ljust(128, b"\0") + rest


def gamma_curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def matrix_profile(gamma: float = 2.2, matrix: np.ndarray = ADOBE_TO_D50) -> bytes:
    tags = {name: b"XYZ " + bytes(4) + fixed(*matrix[:, i]) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
    tags |= {name: gamma_curve(gamma) for name in (b"rTRC", b"gTRC", b"bTRC")}
    return profile(b"mntr", b"RGB ", b"XYZ ", tags | {b"wtpt": b"XYZ " + bytes(4) + fixed(*D50)})


def grey_profile(gamma: float = 1.8) -> bytes:
    tags = {b"kTRC": gamma_curve(gamma), b"wtpt": b"XYZ " + bytes(4) + fixed(*D50)}
    return profile(b"mntr", b"GRAY", b"XYZ ", tags)


def lut(grid: int, values: np.ndarray, inputs: int) -> bytes:
    """A lut8Type ('mft1') with straight curves; `values` [grid**inputs, outputs] in 0..255."""
    outputs, ramp = values.shape[1], bytes(range(256))
    head = b"mft1" + bytes(4) + bytes([inputs, outputs, grid, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    return head + ramp * inputs + np.clip(np.rint(values), 0, 255).astype(np.uint8).tobytes() + ramp * outputs


def axes(grid: int, inputs: int) -> np.ndarray:
    steps = np.linspace(0, 1, grid)
    return np.stack(np.meshgrid(*[steps] * inputs, indexing="ij"), axis=-1).reshape(-1, inputs)


def lab_bytes(xyz: np.ndarray) -> np.ndarray:
    t = xyz / D50
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t * (29 / 6) ** 2 / 3 + 4 / 29)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
    return lab * [2.55, 1, 1] + [0, 128, 128]


def from_lab(unit: np.ndarray) -> np.ndarray:
    lab = unit * 255 / [2.55, 1, 1] - [0, 128, 128]
    fy = (lab[:, 0] + 16) / 116
    f = np.stack([fy + lab[:, 1] / 500, fy, fy - lab[:, 2] / 200], axis=1)
    return np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2) * D50


def table_profile() -> bytes:
    """RGB of gamma 1.8 in Adobe primaries, told by tables only."""
    to_lab = lab_bytes(axes(17, 3) ** 1.8 @ ADOBE_TO_D50.T)
    to_rgb = np.clip(from_lab(axes(33, 3)) @ np.linalg.inv(ADOBE_TO_D50).T, 0, 1) ** (1 / 1.8) * 255
    return profile(b"mntr", b"RGB ", b"Lab ", {b"A2B0": lut(17, to_lab, 3), b"B2A0": lut(33, to_rgb, 3)})


def cmyk_profile() -> bytes:
    """Inks that multiply: light = (1 - C, 1 - M, 1 - Y) (1 - K), as linear Adobe RGB."""
    ink = axes(9, 4)
    return profile(
        b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut(9, lab_bytes((1 - ink[:, :3]) * (1 - ink[:, 3:]) @ ADOBE_TO_D50.T), 4)}
    )


def exif(
    orientation: int = 1,
    order: str = "<",
    *,
    gps: bool = False,
    thumbnail: bytes = b"",
    comment: bytes = b"",
    maker: bytes = b"",
) -> bytes:
    """A TIFF structure with Make, Orientation, and on demand a position, a thumbnail, a comment and a maker note."""
    data = bytearray((b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8))
    first: list[tuple[int, int, int, object]] = [(0x010F, 2, 8, b"Camera1\0"), (0x0112, 3, 1, orientation)]
    inner: list[tuple[int, int, int, object]] = [(0x829A, 5, 1, struct.pack(order + "II", 1, 250))]
    if maker:
        inner.append((0x927C, 7, len(maker), maker))
    if comment:
        inner.append((0x9286, 7, len(comment), comment))
    place = [(0x0001, 2, 2, b"N\0"), (0x0002, 5, 3, struct.pack(order + "6I", 48, 1, 51, 1, 1234, 100))]
    count = 2 + 1 + (1 if gps else 0)
    data += bytes(2 + 12 * count + 4)  # the first directory is written last, when all places are known
    first.append((0x8769, 4, 1, folder(data, inner, order)))
    if gps:
        first.append((0x8825, 4, 1, folder(data, place, order)))
    following = 0
    if thumbnail:
        at = len(data)
        data += thumbnail
        following = folder(data, [(0x0201, 4, 1, at), (0x0202, 4, 1, len(thumbnail))], order)
    packed = pack(data, first, order) + struct.pack(order + "I", following)
    data[8 : 8 + len(packed)] = packed
    return bytes(data)


def pack(data: bytearray, rows: Sequence[tuple[int, int, int, object]], order: str) -> bytes:
    out = struct.pack(order + "H", len(rows))
    for tag, kind, count, value in rows:
        if isinstance(value, bytes):
            raw = value
            if len(raw) > 4:
                raw = struct.pack(order + "I", len(data))
                data += value
        else:
            raw = struct.pack(order + ("H" if kind == 3 else "I"), value)
        out += struct.pack(order + "HHI4s", tag, kind, count, raw.ljust(4, b"\0"))
    return out


def folder(data: bytearray, rows: Sequence[tuple[int, int, int, object]], order: str) -> int:
    packed = pack(data, rows, order) + bytes(4)
    at = len(data)
    data += packed
    return at


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_file(array: np.ndarray, colour: int, depth: int, *extra: bytes, size: tuple[int, int] | None = None) -> bytes:
    """An unfiltered PNG of samples [H,W,C]; `extra` are whole chunks before the pixels; `size` lies in the header."""
    height, width = array.shape[:2]
    rows = array.reshape(height, -1).astype(">u2" if depth == 16 else np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", *(size or (width, height)), depth, colour, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(raw)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + b"".join(extra) + body
