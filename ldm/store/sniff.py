"""What a file is, told by its first bytes; pickles are recognised here, and refused."""

from __future__ import annotations

import contextlib
import re
import shlex
import zipfile
from enum import Enum
from pathlib import Path

from ldm.errors import Code, LdmError


class Content(Enum):
    """What the bytes are; the value says it as the cause in an error."""

    SAFETENSORS = "safetensors"
    EMPTY = "the file is empty, so writing or fetching it never finished"
    LFS = "it is a git-lfs pointer, a text of a few lines and not the weights"
    HTML = "it is a web page"
    TORCH_ZIP = "it is a pickle in a zip archive, as torch.save writes it"
    TORCH_OLD = "it is a pickle of the old torch.save"
    PICKLE = "it is a Python pickle"
    TAR = "it is a tar archive, as the first torch.save wrote it"
    ZIP = "it is a zip archive"
    GZIP = "it is a gzip archive"
    GGUF = "it is a GGUF file of another program"
    JSON = "it is a JSON text without tensors"
    IMAGE = "it is a picture"
    UNKNOWN = "its first bytes are not those of the format, so it is truncated, overwritten or of another kind"


PICKLES = frozenset({Content.TORCH_ZIP, Content.TORCH_OLD, Content.PICKLE, Content.TAR})
_OLD_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")  # LONG1 0x1950a86a20f9469cfc6c, after PROTO
_TEXT_PICKLE = re.compile(rb"\A(?:[(\]})]*(?:[cgi][\w.]+\n[\w.]+\n|[dlt]p\d+\n|\(dp|\(lp|[ISVFL][^\n]{0,80}\n))")


def sniff(head: bytes, size: int) -> Content:
    """The kind of a file from its first 4096 bytes and its size."""
    if not head:
        return Content.EMPTY
    if len(head) > 8 and head[8:9] == b"{" and (head[7] == 0 or int.from_bytes(head[:8], "little") <= size):
        return Content.SAFETENSORS
    if head.startswith(b"PK\x03\x04"):
        return Content.TORCH_ZIP if b"data.pkl" in head else Content.ZIP
    if head[:1] == b"\x80" and len(head) > 1 and head[1] <= 5:
        return Content.TORCH_OLD if _OLD_MAGIC in head[:40] else Content.PICKLE
    return _plain(head)


def _plain(head: bytes) -> Content:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"version https://git-lfs"):
        return Content.LFS
    if re.match(rb"<(!doctype|html|head|\?xml|body|!--)", text, re.I):
        return Content.HTML
    if head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM")):
        return Content.IMAGE
    if head.startswith(b"GGUF"):
        return Content.GGUF
    if head.startswith(b"\x1f\x8b"):
        return Content.GZIP
    if head[257:262] == b"ustar":
        return Content.TAR
    if text[:1] in (b"{", b"[") and re.match(rb"[{\[]\s*[\"{\[\]}\d]", text):
        return Content.JSON
    return Content.PICKLE if _TEXT_PICKLE.match(head) else Content.UNKNOWN


def safe_name(path: Path) -> Path:
    """Where the safetensors of a pickle go: beside it, under its name, and under another if it claims to be one."""
    plain = path.with_suffix(".safetensors")
    same = plain.name.lower() == path.name.lower()
    return path.with_name(f"{path.stem}-converted.safetensors") if same else plain


def refuse_pickle(path: Path, content: Content) -> None:
    """Raises for the kinds that can run code while they are read."""
    if content in PICKLES:
        raise LdmError(
            Code.REFUSED,
            f"{path} is refused: it is a pickle, whatever its name says.",
            f"Reading a pickle can run any program of its author ({content.value}).",
            "Get the .safetensors of the same model, or run "
            f"`ldm models convert {shlex.quote(str(path))} {shlex.quote(str(safe_name(path)))} --i-trust-this-file`.",
        )


def content_of(path: Path) -> Content:
    """The kind of a file on disk; of a zip archive the list of names is read too."""
    with path.open("rb") as file:
        found = sniff(file.read(4096), path.stat().st_size)
    if found is Content.ZIP:
        with contextlib.suppress(zipfile.BadZipFile, ValueError, NotImplementedError), zipfile.ZipFile(path) as archive:
            if any(name.lower().endswith((".pkl", ".pickle")) for name in archive.namelist()):
                return Content.TORCH_ZIP
    return found
