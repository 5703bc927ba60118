"""Pictures in a folder, in the layouts people have: sidecar texts, a metadata table, kohya's numbers, class folders.

Which layout it is follows from what lies there (`data.kind` overrules it). A folder that a layout would pass over is an
error, because pictures that are silently not trained on are found out after days.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from ldm.data.listing import BESIDE, Listing, aside, hash_file, list_files, read_text, stem_of, unread
from ldm.data.settings import Part
from ldm.data.source import (
    MAX_TEXT,
    PICTURES,
    About,
    Source,
    as_captions,
    filled,
    listed,
    no_column,
    numbered,
    text_column,
)
from ldm.errors import Code, LdmError
from ldm.images import Picture, open_image
from ldm.images.size import picture_size

METADATA = ("metadata.jsonl", "metadata.csv")
FOREIGN = (".heic", ".heif", ".avif", ".jxl", ".svg", ".psd", ".raw", ".dng", ".cr2", ".nef", ".arw")
SPLITS = ("train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing")
MANY = 1000  # `2023_summer` is a year, not so many repeats, unless data.kind says kohya
_KOHYA = re.compile(r"(\d+)_(.*)", re.DOTALL)
Fields = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Entry:
    """One picture as a layout sees it: where its words are, or the words."""

    path: str
    fields: Fields = field(default_factory=dict)
    captions: tuple[str, ...] = ()  # where no sidecar has any
    sidecar: str | None = None
    label: object = None
    weight: int = 1


@dataclass(eq=False)
class Folder(Source):
    """Pictures as files. Captions are read when asked for; several lines of a sidecar are several captions."""

    root: Path
    entries: Sequence[Entry]
    templates: tuple[str, ...] = ()
    title: str = ""
    hash_file: Callable[[Path], str] = hash_file
    labels: tuple[str, ...] = ()
    _classes: Sequence[int] | None = None
    foreign: tuple[str, ...] = ()
    _beside: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, index: int) -> str:
        return self.entries[index].path

    def about(self, index: int) -> About:
        entry = self.entries[index]
        captions = self._captions(entry)
        return About(entry.path, captions, self._classes[index] if self._classes else None, None, entry.weight)

    def content(self, index: int) -> str:
        path = self.root / self.entries[index].path
        try:
            return self.hash_file(path)
        except OSError as error:
            raise unread(path, error) from error

    def picture(self, index: int) -> Picture:
        return open_image(self.root / self.entries[index].path)

    def size(self, index: int) -> tuple[int, int]:
        name = self.entries[index].path
        path = self.root / name
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise unread(path, OSError("it is no file"))
        return picture_size(path, f"picture {name!r}")

    def weights(self) -> npt.NDArray[np.int64] | None:
        each = np.array([entry.weight for entry in self.entries], np.int64)
        return each if (each != 1).any() else None

    def hint(self, index: int) -> Picture | None:
        return self._aside("hints", index)

    def mask(self, index: int) -> Picture | None:
        return self._aside("masks", index)

    def _aside(self, what: str, index: int) -> Picture | None:
        entry = self.entries[index]
        named = entry.fields.get("\0" + what) or self._beside.get(what, {}).get(stem_of(entry.path))
        return open_image(self.root / str(named)) if named else None

    def _captions(self, entry: Entry) -> tuple[str, ...]:
        texts = entry.captions
        if entry.sidecar is not None:
            lines = read_text(self.root / entry.sidecar, MAX_TEXT).splitlines()
            texts = tuple(line.strip() for line in lines if line.strip()) or texts
        if not self.templates:
            return texts
        path = PurePosixPath(entry.path)
        known = {"name": path.stem, "folder": path.parent.name, **entry.fields}
        fields = {key: value for key, value in known.items() if not key.startswith("\0")}
        each = [filled(self.templates, {**fields, "text": text}, self.title) for text in texts or ("",)]
        return tuple(caption for captions in each for caption in captions if caption)


def open_folder(path: Path, part: Part, hash_file: Callable[[Path], str] = hash_file) -> Folder:
    """The examples of a folder, or of a metadata table and the folder it lies in."""
    table = path if path.suffix in (".jsonl", ".csv") else None
    root = path.parent if table else path
    listing = list_files(root)
    if table is None and part.kind in ("auto", "folder"):
        table = next((root / name for name in METADATA if (root / name).is_file()), None)
    kind = part.kind if part.kind != "auto" or table else _layout(listing)
    if table is None:
        _check_plain(listing, part)
    if not listing.pictures:
        raise _nothing(root, listing)
    if table is not None:
        entries = _from_table(listing, table, part)
    elif kind == "kohya":
        entries = _kohya(listing)
    elif kind == "classes":
        entries = _classes(listing)
    else:
        entries = [Entry(path, sidecar=listing.sidecar(path)) for path in listing.pictures]
    classes: Sequence[int] | None = None
    labels: tuple[str, ...] = ()
    if all(entry.label is not None for entry in entries):
        classes, labels = numbered([entry.label for entry in entries])
    templates = part.templates or (("{label}",) if kind == "classes" else ())
    title = f"folder {str(root)!r}"
    beside = {what: aside(listing, what, strict=table is None) for what in BESIDE}
    foreign = _foreign(listing) if table is None else ()
    return Folder(root, entries, templates, title, hash_file, labels, classes, foreign, beside)


def _check_plain(listing: Listing, part: Part) -> None:
    """What would be passed over, or do nothing, where no table says which pictures are meant."""
    name = f"data.path {str(listing.root)!r}"
    if listing.links:
        what = f"{name}: {len(listing.links)} folders are links: {listed(listing.links)}"
        why = "links of folders are not followed, since they may lead anywhere, so their pictures would be passed over"
        raise LdmError(Code.USAGE, what, why, "name what they point to as a part of data.mix, or remove the links")
    if part.where:
        what, why = f"{name}: data.where does nothing here", "it chooses rows of a table, and there is none"
        raise LdmError(Code.USAGE, what, why, f"leave it out, or write a {METADATA[0]} beside the pictures")


# Layouts


def _layout(listing: Listing) -> str:
    """Which of the layouts without a table this is."""
    tops = {path.split("/")[0] if "/" in path else "" for path in listing.pictures}
    numbers = {form[1] for folder in _folders(listing) if (form := _KOHYA.fullmatch(folder))}
    if any(int(number) < MANY for number in numbers):
        return "kohya"
    captioned = any(listing.sidecar(path) for path in listing.pictures)
    if not captioned and len(tops) > 1 and all(top.lower() in SPLITS for top in tops):
        what = f"data.path {str(listing.root)!r} holds {listed(sorted(tops))}, which are no classes"
        fix = f"set data.path to {str(listing.root / min(tops))!r}, or say what is meant: data.kind: classes or folder"
        raise LdmError(Code.USAGE, what, "they look like the parts of a set for training and for testing", fix)
    return "classes" if not captioned and "" not in tops and len(tops) > 1 else "folder"


def _folders(listing: Listing) -> set[str]:
    """The names of all folders on the way to a picture."""
    return {part for path in {p.rpartition("/")[0] for p in listing.pictures} for part in path.split("/")}


def _kohya(listing: Listing) -> list[Entry]:
    """`10_sks dog/a.jpg`: ten times an epoch; "sks dog" is the caption where the picture has none of its own."""
    entries: list[Entry] = []
    passed: dict[str, int] = {}
    for path in listing.pictures:
        folder = path.rpartition("/")[0]
        form = _KOHYA.fullmatch(folder)
        if form is None or "/" in folder or int(form[1]) < 1:
            passed[folder] = passed.get(folder, 0) + 1
            continue
        words = form[2].strip()
        sidecar = listing.sidecar(path)
        fields = {"label": words, "words": words}
        entries.append(Entry(path, fields, (words,) if words else (), sidecar, None, int(form[1])))
    if passed:
        raise _passed_over(listing, passed)
    return entries


def _passed_over(listing: Listing, passed: Mapping[str, int]) -> LdmError:
    """Pictures that kohya's layout does not reach, and how to reach them."""
    count = sum(passed.values())
    names = [folder or "the folder itself" for folder in passed]
    inner = {folder.rpartition("/")[0] for folder in passed if _KOHYA.fullmatch(folder.rpartition("/")[2])}
    if inner and "" not in inner:
        fix = f"set data.path to {str(listing.root / min(inner))!r}, or data.kind to folder"
    elif "" in passed:
        fix = "move these pictures into a folder such as '1_words', or set data.kind: folder"
    else:
        fix = f"rename {names[0]!r} to '1_{names[0].rpartition('/')[2]}' (or another number of repeats), or remove it"
    what = f"{count} pictures in {listed(names)} would be passed over"
    why = "in kohya's layout each folder is named <repeats>_<words>, and pictures lie directly in it"
    return LdmError(Code.USAGE, f"data.path {str(listing.root)!r}: {what}", why, fix)


def _classes(listing: Listing) -> list[Entry]:
    """`cat/a.jpg`: the label is the first folder."""
    loose = [path for path in listing.pictures if "/" not in path]
    if loose:
        what = f"data.path {str(listing.root)!r}: {len(loose)} pictures lie in no class folder ({listed(loose)})"
        raise LdmError(Code.USAGE, what, "the label is the folder's name", "move them, or set data.kind: folder")
    entries = []
    for path in listing.pictures:
        label = path.split("/")[0]
        entries.append(Entry(path, {"label": label}, (), listing.sidecar(path), label))
    return entries


def _from_table(listing: Listing, table: Path, part: Part) -> list[Entry]:
    """`file_name` and further columns, one row a picture; pictures without a row are not part of the set."""
    rows = list(_csv_rows(table) if table.suffix == ".csv" else _json_rows(table))
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    if rows and "file_name" not in columns:
        why = f"the columns are {listed(columns)}" + (" (split at commas)" if table.suffix == ".csv" else "")
        raise LdmError(Code.FILE, f"{table}: no column 'file_name'", why, "call the column of the pictures file_name")
    words = text_column(part.text_column, [c for c in columns if c != "name"], table.name)
    label = part.label_column or ("label" if "label" in columns else None)
    if label is not None and label not in columns:
        raise no_column(label, columns, table.name)
    known = set(listing.pictures)
    entries, missing = [], []
    for line, row in rows:
        if not all(str(row.get(key)) in _as_set(value) for key, value in part.where.items()):
            continue
        path = _inside(row.get("file_name"), table, line)
        if path not in known and not (listing.root / path).is_file():
            missing.append(f"{path} (line {line})")
            continue
        beside = [(what, row.get(column)) for what, column in _aside_columns(part)]
        own = {f"\0{what}": _inside(value, table, line) for what, value in beside if value}
        captions = as_captions(row.get(words)) if words else ()
        sidecar = listing.sidecar(path) if words is None else None
        entries.append(Entry(path, {**row, **own}, captions, sidecar, row.get(label) if label else None))
    if missing:
        what = f"{table} names {len(missing)} pictures that are not there: {listed(missing)}"
        raise LdmError(Code.FILE, what, "file_name is relative to its folder", "correct the rows or add the pictures")
    if not entries:
        why = "no row passes data.where" if rows else "the table is empty"
        raise LdmError(Code.FILE, f"{table}: no picture", why, "check data.where and the rows of the table")
    return entries


def _aside_columns(part: Part) -> tuple[tuple[str, str], ...]:
    return ("hints", part.hint_column), ("masks", part.mask_column)


def _as_set(value: object) -> set[str]:
    return {str(v) for v in value} if isinstance(value, list) else {str(value)}


def _inside(value: object, table: Path, line: int) -> str:
    """A path of a table, which may not lead out of its folder."""
    if not isinstance(value, str) or not value:
        why = f"line {line} has no file_name" if not value else f"line {line} holds {str(value)[:40]!r}"
        raise LdmError(Code.FILE, f"{table}: a row without a picture", why, "give each row a file_name")
    path = os.path.normpath(value.replace("\\", "/")).replace(os.sep, "/")
    if path.startswith(("/", "../")) or path == ".." or "\0" in path or Path(path).is_absolute():
        what = f"{table} line {line}: {value[:60]!r} leads out of the folder"
        raise LdmError(Code.REFUSED, what, "pictures lie in the folder of their table", "give a path inside it")
    return path


def _json_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read_text(table).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _bad_line(table, number, f"{error}") from None
        if not isinstance(row, dict):
            raise _bad_line(table, number, "it is no object")
        yield number, row


def _csv_rows(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(read_text(table), newline=""), strict=True)
    header: list[str] | None = None
    try:
        for row in reader:
            if header is None:
                header = [name.strip() for name in row]
            elif row:
                if len(row) != len(header):
                    why = f"it has {len(row)} fields, the header {len(header)} (quote texts that hold commas)"
                    raise _bad_line(table, reader.line_num, why)
                yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise _bad_line(table, reader.line_num, f"{error}") from None


def _bad_line(table: Path, number: int, why: str) -> LdmError:
    form = "file_name,text" if table.suffix == ".csv" else '{"file_name": "a.png", "text": "a cat"}'
    return LdmError(Code.FILE, f"{table} line {number} cannot be read", why, f"write it as {form}")


def _foreign(listing: Listing) -> tuple[str, ...]:
    """Pictures of kinds that are not read; a raw one beside its JPEG is no loss."""
    read = {stem_of(path) for path in listing.pictures}
    return tuple(p for p in sorted(listing.others) if p.lower().endswith(FOREIGN) and stem_of(p) not in read)


def _nothing(root: Path, listing: Listing) -> LdmError:
    foreign = len(_foreign(listing))
    why = f"{foreign} files there are HEIC, AVIF, RAW or drawings, which are not read" if foreign else "it is empty"
    if not foreign and listing.others:
        why = f"of the {len(listing.others)} files there none is one of {', '.join(PICTURES)}"
    fix = "convert them to JPEG or PNG" if foreign else "set data.path to the folder with the pictures"
    return LdmError(Code.FILE, f"data.path {str(root)!r} holds no picture", why, fix)
