"""What a file is, by its first bytes: format, size, or what else it may be."""

from __future__ import annotations

import struct

STRANGERS = (
    (
        b"version https://git-lfs",
        "It is a Git LFS pointer, not the picture itself.",
        "Run `git lfs pull`.",
    ),
    (b"<!doctype html", "It is a web page.", "Download the picture itself, not the page that shows it."),
    (b"<html", "It is a web page.", "Download the picture itself, not the page that shows it."),
    (b"<svg", "It is an SVG drawing.", "Export it as PNG."),
    (b"<?xml", "It is XML, perhaps an SVG drawing.", "Export it as PNG."),
    (b"%pdf", "It is a PDF document.", "Export the page as PNG."),
    (b"%!ps", "It is a PostScript document.", "Export the page as PNG."),
    (b"8bps", "It is a Photoshop document.", "Export it as PNG."),
    (b"\x00\x00\x00\x0cjxl ", "It is a JPEG XL picture, which is not read here.", "Convert it to PNG."),
    (b"pk\x03\x04", "It is a zip archive.", "Unpack it first."),
)


def sniff(head: bytes) -> str | None:
    """Pillow's name of the format, None for everything that is not read."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:4] in (b"II*\0", b"MM\0*"):
        return "TIFF"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    if head[:2] == b"BM" and len(head) >= 26:
        return "BMP"
    return None


def header_size(kind: str, head: bytes) -> tuple[int, int] | None:
    """(width, height) of PNG and WebP; None for the others, which Pillow opens without touching memory or pixels."""
    try:
        if kind == "PNG" and head[12:16] == b"IHDR":
            return struct.unpack(">II", head[16:24])
        if kind == "WEBP":
            return webp_size(head)
    except struct.error:
        return None
    return None


def webp_size(head: bytes) -> tuple[int, int] | None:
    """Size from the first chunk of a WebP file (RFC 9649)."""
    name = head[12:16]
    if name == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if name == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if name == b"VP8 ":
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None


def stranger(head: bytes) -> tuple[str, str]:
    """Why a file is not a picture, and what to do."""
    if not head:
        return "It is empty (0 bytes).", "Fetch or export the file again."
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for mark, why, fix in STRANGERS:
        if start.startswith(mark):
            return why, fix
    if head[4:8] == b"ftyp":
        return "It is a HEIC, AVIF or video file, which is not read here.", "Convert it to PNG or JPEG."
    return (
        f"Its content (first bytes {head[:8].hex(' ')}) is none of PNG, JPEG, WebP, TIFF, BMP and GIF.",
        "Give a PNG, JPEG, WebP, TIFF, BMP or GIF file.",
    )
