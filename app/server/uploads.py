"""Pictures that callers bring: kept as they came, under the hash of their content, decoded before they are kept."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from app.server.decoding import Decoder
from ldm.errors import Code, LdmError
from ldm.images import Picture
from ldm.images.save import new_file

ID = re.compile(r"[0-9a-f]{64}")
DATA_URL = re.compile(r"data:image/[a-z.+-]{1,20};base64,")
CACHED = 256 << 20  # bytes of decoded pictures
SIZES = 10_000  # pictures of which the size is remembered


@dataclass(frozen=True)
class Upload:
    """A picture that is here; `id` is the hash of its file."""

    id: str
    width: int
    height: int


class Uploads:
    """Every method may be called from any thread."""

    def __init__(self, folder: Path, decoder: Decoder, most: int) -> None:
        self.folder, self.decoder, self.most = folder, decoder, most  # bytes that are kept
        self._pictures: OrderedDict[str, Picture] = OrderedDict()
        self._sizes: dict[str, tuple[int, int]] = {}
        self._lock, self._writing = Lock(), Lock()
        self._stored = sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0

    def add(self, data: bytes) -> Upload:
        """Decoded first: what is no picture is not kept."""
        picture = self.look(data)
        name = picture.sha256
        with self._writing:
            if not (path := self.folder / name).exists():
                self._check_room(len(data))
                try:
                    with new_file(path) as file:
                        file.write(data)
                except LdmError as error:
                    raise LdmError(Code.RESOURCE, "The picture cannot be kept.", error.why, error.fix) from error
                self._stored += len(data)
        self._remember(picture)
        return Upload(name, picture.width, picture.height)

    def look(self, data: bytes) -> Picture:
        """The picture in these bytes, of which nothing is kept, nor does it push out what is."""
        try:
            return self._decoded(hashlib.sha256(data).hexdigest(), data)
        except LdmError as error:  # what a caller brings is no file of ours
            raise LdmError(Code.REFUSED, error.what, error.why, error.fix) from error

    def add_text(self, text: str) -> Upload:
        """Base64, as a data URL or bare. An address is refused: nothing is fetched."""
        return self.add(bytes_of(text))

    def found(self, text: str) -> str:
        """The id of a picture that is named by its id or brought along in base64."""
        if not ID.fullmatch(text):
            return self.add_text(text).id
        if not self.has(text):
            what = f"There is no upload {text[:12]}..."
            raise LdmError(Code.USAGE, what, "No picture has that id.", "Send it again.")
        return text

    def has(self, name: str) -> bool:
        """Whether an id is that of a picture which is here."""
        return ID.fullmatch(name) is not None and (self.folder / name).is_file()

    def open(self, name: str) -> Picture:
        """The picture of an id."""
        with self._lock:
            if name in self._pictures:
                self._pictures.move_to_end(name)
                return self._pictures[name]
        self._remember(picture := self._decoded(name, self.file(name)))
        return picture

    def file(self, name: str) -> bytes:
        """The file of an id, as it came."""
        if not ID.fullmatch(name):
            raise LdmError(Code.USAGE, f"{name[:40]!r} is no id of an upload.", "Ids are hashes.", "Send it first.")
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            why = "Somebody removed its file."
            raise LdmError(Code.FILE, f"The upload {name[:12]}... is gone.", why, "Send the picture again.") from error

    def size(self, name: str) -> tuple[int, int]:
        """Width and height of an upload; decoded for it only where that has not been done since the start."""
        with self._lock:
            known = self._sizes.get(name)
        return self.open(name).size if known is None else known

    def _check_room(self, more: int) -> None:
        if self._stored + more > self.most:
            why = f"Uploads take {self._stored / 1e9:.1f} GB, and no more than {self.most / 1e9:.1f} are kept."
            fix = "Whoever runs the server can remove old ones from its folder uploads, and start it again."
            raise LdmError(Code.RESOURCE, "There is no room for another picture.", why, fix)

    def _decoded(self, name: str, data: bytes) -> Picture:
        with self._lock:
            if name in self._pictures:
                return self._pictures[name]
        return replace(self.decoder.decode(data), name=name[:12], sha256=name)

    def _remember(self, picture: Picture) -> None:
        """Of what is kept: it is soon asked for again."""
        name = str(picture.sha256)
        with self._lock:
            self._sizes[name] = picture.size
            while len(self._sizes) > SIZES:
                del self._sizes[next(iter(self._sizes))]
            self._pictures[name] = picture
            while len(self._pictures) > 1 and sum(map(_bytes, self._pictures.values())) > CACHED:
                self._pictures.popitem(last=False)


class Brought(Uploads):
    """Those that came along with jobs, as long as these are under way: in memory alone, so that whoever is killed
    leaves no picture of a caller behind."""

    def __init__(self, decoder: Decoder, under_way: Mapping[str, Mapping[str, bytes]]) -> None:
        super().__init__(Path(os.devnull), decoder, 0)
        self._under_way = under_way

    def file(self, name: str) -> bytes:
        found = next((pictures[name] for pictures in self._under_way.values() if name in pictures), None)
        return super().file(name) if found is None else found


def bytes_of(text: str) -> bytes:
    """The file in a text of base64, as a data URL or bare."""
    found = DATA_URL.match(text)
    try:
        data = base64.b64decode(text[found.end() :] if found else text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        why = "It is neither the id of an upload nor a picture in base64; addresses are not fetched."
        raise LdmError(Code.USAGE, f"{text[:40]!r} is no picture.", why, "Send the picture to /v1/uploads first.")
    return data


def _bytes(picture: Picture) -> int:
    return picture.pixels.nbytes + (0 if picture.alpha is None else picture.alpha.nbytes)
