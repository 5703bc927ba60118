"""Parquet tables that hold pictures as bytes, one a row. Needs the extra `data` (pyarrow).

Pages of a parquet file are compressed in groups of thousands of rows, so a single row cannot be read. A table that fits
in `data.memory` is read whole; a larger one is unpacked once into a file that is mapped, where any row is one read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.hashes import derived, drop_former
from ldm.data.settings import Part
from ldm.data.source import About, Source, as_captions, filled, listed, no_column, numbered, text_column
from ldm.errors import Code, LdmError
from ldm.extras import install
from ldm.images import Picture, open_image
from ldm.images.size import picture_size
from ldm.store.write import staged


@dataclass(eq=False)
class Parquet(Source):
    """Rows of one or several files. `rows[i]` is where example i is in the table; pictures stay as they are stored."""

    title: str
    table: Any  # pyarrow.Table of the columns that are used, in memory or mapped
    rows: np.ndarray
    files: Sequence[tuple[str, int]]  # the name of each file, and its first row
    columns: dict[str, str | None]  # image, text, hint, mask -> the column's name
    templates: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    _classes: Sequence[int] | None = None
    _starts: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))

    def __post_init__(self) -> None:
        chunks = self.table.column(self.columns["image"]).chunks
        self._starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        row = int(self.rows[index])
        name, first = self.files[int(np.searchsorted([first for _, first in self.files], row, "right")) - 1]
        return f"{name} row {row - first}"

    def about(self, index: int) -> About:
        text = self.columns["text"]
        captions = as_captions(self._value(text, index)) if text and not self.templates else ()
        if self.templates:
            fields = {name: self._value(name, index) for name in self.table.column_names if name not in self._pictures}
            captions = filled(self.templates, fields, self.title)
        return About(self.name(index), captions, self._classes[index] if self._classes else None)

    def content(self, index: int) -> str:
        return hashlib.sha256(self._bytes("image", index) or b"").hexdigest()

    def picture(self, index: int) -> Picture:
        return open_image(self._bytes("image", index) or b"")

    def size(self, index: int) -> tuple[int, int]:
        return picture_size(self._bytes("image", index) or b"", f"{self.title} {self.name(index)}")

    def hint(self, index: int) -> Picture | None:
        data = self._bytes("hint", index)
        return open_image(data) if data else None

    def mask(self, index: int) -> Picture | None:
        data = self._bytes("mask", index)
        return open_image(data) if data else None

    @property
    def _pictures(self) -> set[str | None]:
        return {self.columns[name] for name in ("image", "hint", "mask")}

    def _value(self, column: str, index: int) -> Any:
        row = int(self.rows[index])
        chunk = int(np.searchsorted(self._starts, row, "right")) - 1
        return self.table.column(column).chunk(chunk)[row - int(self._starts[chunk])].as_py()

    def _bytes(self, what: str, index: int) -> bytes | None:
        """The stored picture; also where it is a record of `bytes` and `path`, as the Hugging Face hub writes it."""
        column = self.columns[what]
        value = self._value(column, index) if column else None
        return stored(value)


def open_parquet(paths: Sequence[Path], part: Part, memory: float, index: str | None) -> Parquet:
    """One table over all files, in order; rows that `part.where` leaves out are no examples."""
    pa, pq = pyarrow()
    title = f"table {paths[0].name!r}" + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
    try:
        files = [pq.ParquetFile(path, memory_map=True) for path in paths]
        known = list(files[0].schema_arrow.names)
        columns = _columns(pa, part, files[0].schema_arrow, title)
        _check_alike(paths, files)
        used = [name for name in known if name in columns.values() or not _is_heavy(pa, files[0], name)]
        if sum(_nbytes(file) for file in files) <= memory * 1e9:
            table = pa.concat_tables([file.read(used) for file in files])
        else:
            table = pa.concat_tables(
                [_mapped(pa, file, path, used, index) for file, path in zip(files, paths, strict=True)]
            )
        table = _aligned(pa, table)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(title, error) from error
    rows = _passing(pa, table, part, title)
    label = part.label_column or ("label" if "label" in known else None)
    if label is not None and label not in known:
        raise no_column(label, known, title)
    classes: Sequence[int] | None = None
    labels: tuple[str, ...] = ()
    if label is not None:
        classes, labels = numbered(table.column(label).take(pa.array(rows)).to_pylist())
    starts = np.cumsum([0, *(file.metadata.num_rows for file in files)]).tolist()
    told = [(path.name, first) for path, first in zip(paths, starts[:-1], strict=True)]
    return Parquet(title, table, rows, told, columns, part.templates, labels, classes)


def stored(value: Any) -> bytes | None:
    """The picture in a cell: its bytes, or a record of `bytes` and `path`."""
    return value.get("bytes") if isinstance(value, dict) else value


def unreadable(title: str, error: Exception) -> LdmError:
    fix = "fetch the file again, or check that it is a parquet file"
    return LdmError(Code.FILE, f"{title} cannot be read", f"{error}"[:200].replace("\n", " "), fix)


def pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        fix = f"install it: {install('data')}"
        raise LdmError(Code.RESOURCE, "parquet files cannot be read here", "pyarrow is not installed", fix) from error
    return pyarrow, parquet


def _columns(pa: Any, part: Part, schema: Any, title: str) -> dict[str, str | None]:
    known = list(schema.names)
    if part.image_column not in known:
        raise no_column(part.image_column, known, title)
    if not _holds_pictures(pa, schema.field(part.image_column).type):
        why = f"it is of the type {schema.field(part.image_column).type}; names of files and addresses are not followed"
        fix = "write the bytes of each picture file into it, or name another column: data.image_column"
        raise LdmError(Code.FILE, f"{title}: column {part.image_column!r} holds no pictures", why, fix)
    beside = {"hint": part.hint_column, "mask": part.mask_column}
    aside = {
        what: name if name in known and _holds_pictures(pa, schema.field(name).type) else None
        for what, name in beside.items()
    }
    return {"image": part.image_column, "text": text_column(part.text_column, known, title), **aside}


def _check_alike(paths: Sequence[Path], files: Sequence[Any]) -> None:
    """Columns that some files lack would be lost for all."""
    each = [{name for name in file.schema_arrow.names if not name.startswith("__")} for file in files]
    for path, names in zip(paths, each, strict=True):
        if names != each[0]:
            what = f"tables {paths[0].name!r} and {path.name!r} have different columns"
            why = f"only one of them has {listed(sorted(names ^ each[0]))}"
            raise LdmError(Code.FILE, what, why, "give each kind of table a folder of its own, as parts of data.mix")


def _holds_pictures(pa: Any, kind: Any) -> bool:
    """Bytes, or a record with bytes."""
    if pa.types.is_struct(kind):
        found = kind.get_field_index("bytes")
        return found >= 0 and _holds_pictures(pa, kind.field(found).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_heavy(pa: Any, file: Any, name: str) -> bool:
    """Binary columns other than the ones used, such as embeddings and thumbnails."""
    kind = file.schema_arrow.field(name).type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind))


def _nbytes(file: Any) -> int:
    groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
    return int(sum(group.total_byte_size for group in groups))


def _mapped(pa: Any, file: Any, path: Path, used: list[str], index: str | None) -> Any:
    """The used columns, unpacked once into a file of Arrow's own format, which is mapped."""
    place = f" {path.absolute()}" if index else ""  # tables of one name meet there
    goal = derived(path, Path(index) if index else path.parent, f"{used}{place}", ".arrow")
    if not goal.exists():
        try:
            with staged(goal) as stage:
                schema = pa.schema([file.schema_arrow.field(name) for name in used])
                with pa.OSFile(str(stage), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                    for group in file.iter_batches(batch_size=256, columns=used):
                        writer.write_batch(group.select(used).cast(schema))
            drop_former(goal)
        except LdmError:
            if not goal.exists():  # otherwise another process was faster, which is as good
                raise
    return pa.ipc.open_file(pa.memory_map(str(goal))).read_all()


def _aligned(pa: Any, table: Any) -> Any:
    """The same chunks in every column, so that one search finds a row in all of them."""
    batches = table.to_batches()
    return pa.Table.from_batches(batches, table.schema) if batches else table


def _passing(pa: Any, table: Any, part: Part, title: str) -> np.ndarray:
    """The numbers of the rows whose columns have the wanted values."""
    keep = np.ones(table.num_rows, bool)
    for column, value in part.where.items():
        if column not in table.column_names:
            raise no_column(column, table.column_names, title)
        wanted = {str(v) for v in value} if isinstance(value, list) else {str(value)}
        keep &= np.array([str(v) in wanted for v in table.column(column).to_pylist()], bool)
    rows = np.flatnonzero(keep)
    if not len(rows):
        why = "no row passes data.where" if part.where else "the table is empty"
        raise LdmError(Code.FILE, f"{title}: no picture", why, "check data.where and the rows of the table")
    return rows
