"""What lies below a folder: every file by its path, in the same order on every machine; and its small texts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ldm.data.source import PICTURES, decoded
from ldm.errors import Code, LdmError

SIDECARS = (".txt", ".caption")
BESIDE = ("hints", "masks")  # folders of the root that hold no examples


def hash_file(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, eq=False)
class Listing:
    """All files below a folder, as paths relative to it in sorted order."""

    root: Path
    pictures: tuple[str, ...]
    others: frozenset[str]
    links: tuple[str, ...] = ()  # folders that are links, which are not gone into

    def sidecar(self, picture: str) -> str | None:
        stem = str(PurePosixPath(picture).with_suffix(""))
        return next((stem + suffix for suffix in SIDECARS if stem + suffix in self.others), None)


def list_files(root: Path) -> Listing:
    """Every file below `root` but hidden ones and those in its folders of hints and masks."""
    if not root.is_dir():
        why = "It is a file." if root.exists() else "There is no such folder."
        raise LdmError(Code.FILE, f"data.path {str(root)!r} is not a folder", why, "Check the path for a mistake.")
    links: list[str] = []
    found = sorted(path for path in walk(root, links) if path.split("/")[0] not in BESIDE)
    pictures = tuple(path for path in found if path.lower().endswith(PICTURES))
    return Listing(root, pictures, frozenset(found) - frozenset(pictures), tuple(links))


def walk(root: Path, links: list[str]) -> Iterator[str]:
    """Files by their paths below `root`; folders that are links are added to `links`, since they may lead anywhere."""

    def failed(error: OSError) -> None:
        why = f"{error.strerror or error}."
        raise LdmError(Code.FILE, f"folder {error.filename!r} cannot be read", why, "Check its permissions.") from error

    for folder, below, files in os.walk(root, onerror=failed):
        below[:] = sorted(name for name in below if not name.startswith("."))
        inside = Path(folder).relative_to(root).as_posix()
        prefix = "" if inside == "." else inside + "/"
        links += (prefix + name for name in below if Path(folder, name).is_symlink())
        yield from (prefix + name for name in files if not name.startswith("."))


def stem_of(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def aside(listing: Listing, what: str, strict: bool) -> dict[str, str]:
    """Hints or masks by the path, without suffix, of the picture that they belong to. `strict`: one must belong."""
    folder = listing.root / what
    if not folder.is_dir():
        return {}
    pictures = [path for path in sorted(walk(folder, [])) if path.lower().endswith(PICTURES)]
    found = {stem_of(path): f"{what}/{path}" for path in pictures}
    if strict and found and found.keys().isdisjoint(stem_of(path) for path in listing.pictures):
        many = f"{len(pictures)} pictures in {what!r} belong to no picture"
        why = f"a folder of this name holds {what} and no examples, each named as its picture is ({pictures[0]})"
        fix = "rename what is in it, or the folder itself, if it holds pictures to train on"
        raise LdmError(Code.USAGE, f"data.path {str(listing.root)!r}: {many}", why, fix)
    return found


def read_text(path: Path, most: int | None = None) -> str:
    """The text of a file of at most `most` bytes."""
    if path.exists() and not path.is_file():  # a pipe would be waited for without end
        raise unread(path, OSError("it is no file"))
    try:
        with path.open("rb") as file:
            data = file.read(-1 if most is None else most + 1)
    except OSError as error:
        raise unread(path, error) from error
    if most is not None and len(data) > most:
        raise LdmError(Code.FILE, f"{path} is no caption", f"it has more than {most >> 20} MB", "remove or shorten it")
    return decoded(data)


def unread(path: Path, error: OSError) -> LdmError:
    return LdmError(Code.FILE, f"{path} cannot be read", f"{error.strerror or error}.", "Check its permissions.")
