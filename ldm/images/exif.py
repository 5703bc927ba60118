"""EXIF, changed in place: everything that is not asked about keeps its bytes and offsets (maker notes need them).

The structure is TIFF's: a header, then directories of 12-byte entries; values longer than 4 bytes lie elsewhere.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal, NamedTuple

ORIENTATION, EXIF_FOLDER, GPS_FOLDER = 0x0112, 0x8769, 0x8825
USER_COMMENT = 0x9286
THUMBNAIL_AT, THUMBNAIL_BYTES, STRIPS_AT, STRIPS_BYTES = 0x0201, 0x0202, 0x0111, 0x0117
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}


class Entry(NamedTuple):
    """One entry of a directory; `raw` is its last 4 bytes: the value, or where it lies."""

    tag: int
    kind: int
    length: int
    raw: bytes

    @property
    def nbytes(self) -> int:
        return TYPE_BYTES.get(self.kind, 1) * self.length


@dataclass(frozen=True)
class Cleaned:
    """EXIF that may be passed on, the orientation that was in it, and what was taken out."""

    exif: bytes | None
    orientation: int
    notes: tuple[str, ...]


class Tiff:
    """A view of a TIFF structure that can be read and changed; ValueError or struct.error where it is damaged."""

    def __init__(self, data: bytes) -> None:
        data = data.removeprefix(b"Exif\0\0")
        self.order: Literal["<", ">"] = "<" if data[:4] == b"II*\0" else ">"
        if data[:4] not in (b"II*\0", b"MM\0*"):
            raise ValueError("no TIFF header")
        self.data = bytearray(data)

    def number(self, raw: bytes | bytearray) -> int:
        return int(struct.unpack(self.order + "I", raw)[0])

    @property
    def first(self) -> int:
        return self.number(self.data[4:8])

    def folder(self, at: int) -> tuple[list[Entry], int]:
        """The entries of the directory at `at`, and where the next directory is (0: none)."""
        count = struct.unpack_from(self.order + "H", self.data, at)[0]
        end = at + 2 + 12 * count
        if at < 8 or end > len(self.data):
            raise ValueError("directory outside the data")
        rows = [Entry(*struct.unpack_from(self.order + "HHI4s", self.data, at + 2 + 12 * i)) for i in range(count)]
        following = self.number(self.data[end : end + 4]) if end + 4 <= len(self.data) else 0
        return rows, following

    def value(self, entry: Entry) -> bytes:
        """The bytes of a value, wherever they lie."""
        if entry.nbytes <= 4:
            return entry.raw[: entry.nbytes]
        at = self.number(entry.raw)
        return bytes(self.data[at : at + entry.nbytes])

    def find(self, tag: int, rows: list[Entry]) -> Entry | None:
        return next((e for e in rows if e.tag == tag), None)

    def wipe(self, at: int, size: int) -> None:
        """Zero bytes: what is dropped must not stay readable in the file."""
        end = min(len(self.data), at + size)
        if 8 <= at < end:
            self.data[at:end] = bytes(end - at)

    def wipe_folder(self, at: int) -> None:
        """Zero a directory and the values that it points to."""
        rows, _ = self.folder(at)
        for entry in rows:
            if entry.nbytes > 4:
                self.wipe(self.number(entry.raw), entry.nbytes)
        self.wipe(at, 2 + 12 * len(rows) + 4)

    def rewrite(self, at: int, rows: list[Entry], following: int) -> None:
        """Write a directory that became shorter, over its old place."""
        old = 2 + 12 * len(self.folder(at)[0]) + 4
        self.wipe(at, old)
        packed = self.pack(rows, following)
        self.data[at : at + len(packed)] = packed

    def pack(self, rows: list[Entry], following: int) -> bytes:
        body = b"".join(struct.pack(self.order + "HHI4s", *entry) for entry in rows)
        return struct.pack(self.order + "H", len(rows)) + body + struct.pack(self.order + "I", following)

    def append(self, piece: bytes) -> int:
        """Put bytes at the end (on an even offset) and say where."""
        self.data += bytes(len(self.data) % 2)
        at = len(self.data)
        self.data += piece
        return at

    def with_entry(self, at: int, new: Entry) -> int:
        """A copy, at the end, of the directory at `at` with `new` in its place by tag; where it lies."""
        rows, following = self.folder(at) if at else ([], 0)
        rows = sorted([e for e in rows if e.tag != new.tag] + [new])
        return self.append(self.pack(rows, following))


def clean(exif: bytes | None, *, keep_location: bool = False) -> Cleaned:
    """EXIF with its orientation reset to 1, and without position and thumbnail unless `keep_location`."""
    if not exif:
        return Cleaned(None, 1, ())
    try:
        tiff = Tiff(exif)
        orientation, notes = reset_orientation(tiff), []
        if not keep_location:
            if drop_position(tiff):
                notes.append("the GPS position was left out (keep_location keeps it)")
            if drop_thumbnail(tiff):
                notes.append("the embedded thumbnail was left out (keep_location keeps it)")
    except (ValueError, struct.error):
        return Cleaned(None, 1, ("damaged EXIF data was left out",))
    return Cleaned(bytes(tiff.data), orientation, tuple(notes))


def reset_orientation(tiff: Tiff) -> int:
    """The orientation 1..8 that was there; it becomes 1."""
    rows, _ = tiff.folder(tiff.first)
    for index, entry in enumerate(rows):
        if entry.tag == ORIENTATION and entry.kind == 3 and entry.length == 1:
            value = int(struct.unpack(tiff.order + "H", entry.raw[:2])[0])
            struct.pack_into(tiff.order + "HH", tiff.data, tiff.first + 2 + 12 * index + 8, 1, 0)
            return value if 1 <= value <= 8 else 1
    return 1


def drop_position(tiff: Tiff) -> bool:
    """Take the GPS directory out and zero its bytes; whether there was one."""
    rows, following = tiff.folder(tiff.first)
    gps = [e for e in rows if e.tag == GPS_FOLDER]
    for entry in gps:
        tiff.wipe_folder(tiff.number(entry.raw))
    if gps:
        tiff.rewrite(tiff.first, [e for e in rows if e.tag != GPS_FOLDER], following)
    return bool(gps)


def drop_thumbnail(tiff: Tiff) -> bool:
    """Take the second directory and its picture out and zero their bytes; whether there was one."""
    rows, following = tiff.folder(tiff.first)
    if not following:
        return False
    thumb, _ = tiff.folder(following)
    for at_tag, size_tag in ((THUMBNAIL_AT, THUMBNAIL_BYTES), (STRIPS_AT, STRIPS_BYTES)):
        at, size = tiff.find(at_tag, thumb), tiff.find(size_tag, thumb)
        if at and size and at.length == size.length == 1:
            tiff.wipe(tiff.number(at.raw), tiff.number(size.raw) if size.kind == 4 else 0xFFFF)
    tiff.wipe_folder(following)
    tiff.rewrite(tiff.first, rows, 0)
    return True


def user_comment(exif: bytes | None) -> str:
    """The text of UserComment, "" where there is none."""
    try:
        tiff = Tiff(exif or b"")
        folder = tiff.find(EXIF_FOLDER, tiff.folder(tiff.first)[0])
        entry = folder and tiff.find(USER_COMMENT, tiff.folder(tiff.number(folder.raw))[0])
        return decode_comment(tiff.value(entry)) if entry else ""
    except (ValueError, struct.error):
        return ""


def decode_comment(raw: bytes) -> str:
    """UserComment's 8-byte code names the encoding; UTF-16's byte order is guessed, because writers disagree."""
    code, body = raw[:8], raw[8:]
    if code == b"UNICODE\0":
        body = body[: len(body) // 2 * 2]
        big, little = body.decode("utf-16-be", "replace"), body.decode("utf-16-le", "replace")
        text = max((big, little), key=lambda t: sum(ch < "\u0250" for ch in t))
    elif code == b"JIS\0\0\0\0\0":
        text = body.decode("iso2022_jp", "replace")
    else:
        text = body.decode("utf-8", "replace")
    return text.lstrip("\ufeff").rstrip("\0 ")


def with_user_comment(exif: bytes | None, text: str) -> bytes:
    """EXIF in which UserComment holds `text` as A1111 writes it (UTF-16, big endian); the rest keeps its bytes."""
    tiff = Tiff(exif) if exif else Tiff(b"MM\0*\0\0\0\0")
    body = b"UNICODE\0" + text.encode("utf-16-be", "replace")
    comment = Entry(USER_COMMENT, 7, len(body), struct.pack(tiff.order + "I", tiff.append(body)))
    rows = tiff.folder(tiff.first)[0] if tiff.first else []
    old = tiff.find(EXIF_FOLDER, rows)
    inner = tiff.with_entry(tiff.number(old.raw) if old else 0, comment)
    outer = tiff.with_entry(tiff.first, Entry(EXIF_FOLDER, 4, 1, struct.pack(tiff.order + "I", inner)))
    struct.pack_into(tiff.order + "I", tiff.data, 4, outer)
    return bytes(tiff.data)
