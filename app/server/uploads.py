"""Pictures that callers bring: kept as they came, under the hash of their content, decoded before they are kept."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from app.server.decoding import Decoder
from ldm.errors import Code, LdmError
from ldm.images import Picture
from ldm.images.save import new_file

ID = re.compile(r"[0-9a-f]{64}")
DATA_URL = re.compile(r"data:image/[a-z.+-]{1,20};base64,")
KEPT = 8  # decoded pictures in memory


@dataclass(frozen=True)
class Upload:
    """A picture that is here; `id` is the hash of its file."""

    id: str
    width: int
    height: int


class Uploads:
    """Every method may be called from any thread."""

    def __init__(self, folder: Path, decoder: Decoder) -> None:
        self.folder, self.decoder = folder, decoder
        self._pictures: OrderedDict[str, Picture] = OrderedDict()
        self._lock, self._writing = Lock(), Lock()

    def add(self, data: bytes) -> Upload:
        """Decoded first: what is no picture is not kept."""
        name = hashlib.sha256(data).hexdigest()
        try:
            picture = self._decoded(name, data)
        except LdmError as error:  # what a caller brings is no file of ours
            raise LdmError(Code.REFUSED, error.what, error.why, error.fix) from error
        with self._writing:
            if not (path := self.folder / name).exists():
                with new_file(path) as file:
                    file.write(data)
        return Upload(name, picture.width, picture.height)

    def add_text(self, text: str) -> Upload:
        """Base64, as a data URL or bare. An address is refused: nothing is fetched."""
        found = DATA_URL.match(text)
        try:
            data = base64.b64decode(text[found.end() :] if found else text, validate=True)
        except (binascii.Error, ValueError):
            data = b""
        if not data:
            why = "It is neither the id of an upload nor a picture in base64; addresses are not fetched."
            raise LdmError(Code.USAGE, f"{text[:40]!r} is no picture.", why, "Send the picture to /v1/uploads first.")
        return self.add(data)

    def found(self, text: str) -> str:
        """The id of a picture that is named by its id or brought along in base64."""
        if not ID.fullmatch(text):
            return self.add_text(text).id
        if not (self.folder / text).is_file():
            raise LdmError(
                Code.USAGE, f"There is no upload {text[:12]}...", "No picture has that id.", "Send it again."
            )
        return text

    def open(self, name: str) -> Picture:
        """The picture of an id."""
        with self._lock:
            if name in self._pictures:
                self._pictures.move_to_end(name)
                return self._pictures[name]
        if not ID.fullmatch(name):
            raise LdmError(Code.USAGE, f"{name[:40]!r} is no id of an upload.", "Ids are hashes.", "Send it first.")
        try:
            data = (self.folder / name).read_bytes()
        except OSError as error:
            why = "Somebody removed its file."
            raise LdmError(Code.FILE, f"The upload {name[:12]}... is gone.", why, "Send the picture again.") from error
        return self._decoded(name, data)

    def _decoded(self, name: str, data: bytes) -> Picture:
        with self._lock:
            if name in self._pictures:
                return self._pictures[name]
        picture = replace(self.decoder.decode(data), name=f"{name[:12]}", sha256=name)
        with self._lock:
            self._pictures[name] = picture
            while len(self._pictures) > KEPT:
                self._pictures.popitem(last=False)
        return picture
